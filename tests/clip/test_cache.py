"""Cached features are those of the encoder, to the rounding of their storage, whoever built them and however."""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from blemish.clip import cache as cache_module
from blemish.clip.cache import FeatureCache, default_folder, image_key, resolved_spec
from blemish.clip.model import CLIP
from blemish.clip.weights import load_clip
from blemish.errors import BadImage, BadOption, OutputError, UnknownName
from blemish.types import FeatureSpec, ImageFeatures

SIZE = 40
RAW = FeatureSpec(layers=(0.25, 1.0, 3), projected=False, position_resize="bilinear")
STREAMS = FeatureSpec(layers=(4, 2), streams=("vv", "qk"), stream_start=2, class_ln_post=False)
SECOND = FeatureSpec(layers=(1.0, 1.0), streams=("qk", "kk", "qq"), stream_ffn=True, class_size=24)
CLASS_ONLY = FeatureSpec(streams=())
TOLERANCE = {"fp16": 2**-11, "bf16": 2**-8, "int8": 1 / 250}


@pytest.fixture(scope="module")
def clip(small_backbone: Path) -> CLIP:
    return load_clip(small_backbone)


def pixels(key: str) -> np.ndarray:
    return np.random.default_rng(list(key.encode())).standard_normal((3, SIZE, SIZE)).astype(np.float32)


class Loader:
    """Makes the network's input of each key and counts how often."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys, self.calls = keys, Counter[str]()

    def __call__(self, index: int) -> np.ndarray:
        self.calls[self.keys[index]] += 1
        return pixels(self.keys[index])


def encoded(clip: CLIP, keys: Sequence[str], spec: FeatureSpec) -> ImageFeatures:
    with torch.no_grad():
        return clip.encode_image(torch.from_numpy(np.stack([pixels(key) for key in keys])), spec)


def check_equal(found: ImageFeatures, expected: ImageFeatures, storage: str) -> None:
    """The same structure, and values as near as the storage allows."""

    def near(a: Tensor, b: Tensor, tolerance: float) -> None:
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert a.is_contiguous()
        peak = b.abs().amax(-1, keepdim=True)
        assert ((a - b).abs() <= tolerance * peak + 1e-5).all()

    assert list(found.tokens) == list(expected.tokens)
    for stream, layers in expected.tokens.items():
        assert isinstance(found.tokens[stream], tuple)
        for a, b in zip(found.tokens[stream], layers, strict=True):
            near(a, b, TOLERANCE[storage])
    for field in dataclasses.fields(expected):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(b, Tensor):
            near(a, b, 1e-5)
        elif field.name != "tokens":
            assert a == b


@pytest.mark.parametrize("storage", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("spec", [FeatureSpec(), RAW, STREAMS, SECOND, CLASS_ONLY])
def test_cached_features_are_those_of_the_encoder(
    tmp_path: Path, clip: CLIP, spec: FeatureSpec, storage: str
) -> None:
    keys = list("abcdefg")
    cache = FeatureCache(tmp_path, clip, spec, SIZE, storage=storage, shard_images=3)
    cache.build(keys, Loader(keys), batch_size=2)
    wanted = ["f", "a", "f", "c"]
    found = cache.read(wanted)
    check_equal(found, encoded(clip, wanted, spec), storage)
    assert (found.plain_class_feature is None) == (spec.class_size is None)
    size = sum(path.stat().st_size for path in cache.folder.glob("*.shard"))
    assert 7 * cache.bytes_per_image <= size <= 7 * cache.bytes_per_image + 3 * 8192


def test_half_precision_weights_are_kept_exactly(tmp_path: Path, small_backbone: Path) -> None:
    clip = load_clip(small_backbone, dtype=torch.bfloat16)
    cache = FeatureCache(tmp_path, clip, RAW, SIZE, storage="bf16")
    cache.build(["a", "b"], Loader("ab"))
    found, expected = cache.read(["b", "a"]), encoded(clip, ["a", "b"], RAW)
    assert found.class_feature.dtype == torch.bfloat16
    for a, b in zip(found.tokens["qk"], expected.tokens["qk"], strict=True):
        assert torch.equal(a, b.flip(0))
    assert torch.equal(found.class_feature, expected.class_feature.flip(0))


def test_features_can_be_learned_from(tmp_path: Path, clip: CLIP) -> None:
    cache = FeatureCache(tmp_path, clip, RAW, SIZE)
    cache.build(["a"], Loader("a"))
    weight = torch.ones(32, requires_grad=True)
    (cache.read(["a"]).tokens["qk"][0] @ weight).sum().backward()
    assert weight.grad is not None


def test_autocast_of_the_caller_does_not_change_the_values(tmp_path: Path, clip: CLIP) -> None:
    cache = FeatureCache(tmp_path, clip, RAW, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        cache.build(["a"], Loader("a"))
    check_equal(cache.read(["a"]), encoded(clip, ["a"], RAW), "fp16")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (FeatureSpec(layers=(0.25, 0.5, 1.0)), FeatureSpec(layers=(1, 2, 4))),
        (FeatureSpec(layers=(1, 4)), FeatureSpec(layers=(4, 1, 1))),
        (FeatureSpec(streams=("qk", "vv")), FeatureSpec(streams=("vv", "qk"))),
        (FeatureSpec(), FeatureSpec(stream_start=0.5, stream_ffn=True)),
        (FeatureSpec(streams=("vv",), stream_start=0.5), FeatureSpec(streams=("vv",), stream_start=2)),
        (FeatureSpec(), FeatureSpec(activation="quick_gelu")),
        (FeatureSpec(streams=()), FeatureSpec(streams=(), layers=(1,), projected=False, stream_start=3)),
    ],
)
def test_specifications_that_mean_the_same_share_a_cache(
    tmp_path: Path, clip: CLIP, one: FeatureSpec, other: FeatureSpec
) -> None:
    first, second = (FeatureCache(tmp_path, clip, spec, SIZE) for spec in (one, other))
    assert first.folder == second.folder
    first.build(["a", "b"], Loader("ab"))
    loader = Loader("ab")
    second.build(["a", "b"], loader)
    assert not loader.calls
    check_equal(second.read(["b"]), encoded(clip, ["b"], other), "fp16")


def test_everything_that_decides_the_values_has_a_cache_of_its_own(
    tmp_path: Path, clip: CLIP, small_backbone: Path
) -> None:
    other = load_clip(small_backbone)
    other.visual.ln_post.weight.data += 1
    other.fingerprint = ""
    half = load_clip(small_backbone, dtype=torch.bfloat16)
    vv = FeatureSpec(streams=("vv",))
    specs: list[tuple[CLIP, FeatureSpec, int, str]] = [
        (clip, FeatureSpec(), SIZE, "fp16"),
        (other, FeatureSpec(), SIZE, "fp16"),
        (half, FeatureSpec(), SIZE, "fp16"),
        (clip, FeatureSpec(), 48, "fp16"),
        (clip, FeatureSpec(), SIZE, "int8"),
        (clip, FeatureSpec(layers=(1,)), SIZE, "fp16"),
        (clip, FeatureSpec(projected=False), SIZE, "fp16"),
        (clip, FeatureSpec(class_ln_post=False), SIZE, "fp16"),
        (clip, FeatureSpec(position_resize="bilinear"), SIZE, "fp16"),
        (clip, FeatureSpec(activation="gelu"), SIZE, "fp16"),
        (clip, FeatureSpec(class_size=32), SIZE, "fp16"),
        (clip, vv, SIZE, "fp16"),
        (clip, dataclasses.replace(vv, stream_start=3), SIZE, "fp16"),
        (clip, dataclasses.replace(vv, stream_ffn=True), SIZE, "fp16"),
    ]
    folders = [FeatureCache(tmp_path, c, spec, s, storage=st).folder for c, spec, s, st in specs]
    assert len(set(folders)) == len(specs)
    assert {folder.parent for folder in folders} == {tmp_path}


def test_every_field_of_a_specification_is_accounted_for(clip: CLIP) -> None:
    """A new field that is left out of the name of a cache would give one method another's features."""
    described = FeatureCache(Path("unused"), clip, FeatureSpec(), SIZE)._describe()["spec"]
    assert set(described) == {f.name for f in dataclasses.fields(FeatureSpec)} - {"cacheable"}
    assert resolved_spec(FeatureSpec(), clip) == resolved_spec(resolved_spec(FeatureSpec(), clip), clip)


def test_only_what_is_missing_is_computed(tmp_path: Path, clip: CLIP) -> None:
    cache = FeatureCache(tmp_path, clip, RAW, SIZE, shard_images=2)
    assert cache.missing(list("abcab")) == [0, 1, 2, 3, 4]
    loader = Loader("abcab")
    cache.build(list("abcab"), loader)
    assert loader.calls == Counter("abc")
    assert cache.missing(list("abcd")) == [3]
    seen: list[tuple[int, int]] = []
    loader = Loader("dacbe")
    cache.build(list("dacbe"), loader, batch_size=1, on_progress=lambda *done: seen.append(done))
    assert loader.calls == Counter("de")
    assert seen == [(1, 2), (2, 2), (2, 2)]
    again = FeatureCache(tmp_path, clip, RAW, SIZE)
    assert again.missing(list("abcde")) == []
    check_equal(again.read(list("edcba")), encoded(clip, list("edcba"), RAW), "fp16")


def test_a_damaged_file_is_redone(tmp_path: Path, clip: CLIP, caplog: pytest.LogCaptureFixture) -> None:
    keys = list("abcdef")
    cache = FeatureCache(tmp_path, clip, RAW, SIZE, shard_images=2)
    cache.build(keys, Loader(keys))
    victim = sorted(cache.folder.glob("*.shard"))[1]
    data = bytearray(victim.read_bytes())
    data[5000] ^= 4
    victim.write_bytes(bytes(data))
    cache = FeatureCache(tmp_path, clip, RAW, SIZE, shard_images=2)
    loader = Loader(keys)
    assert len(cache.missing(keys)) == 2
    cache.build(keys, loader)
    assert sorted(loader.calls.values()) == [1, 1]
    assert victim.name in caplog.text
    assert not victim.exists()
    check_equal(cache.read(keys), encoded(clip, keys, RAW), "fp16")


def test_a_failing_picture_costs_no_finished_ones(tmp_path: Path, clip: CLIP) -> None:
    keys = list("abcdef")

    def load(index: int) -> np.ndarray:
        if keys[index] == "d":
            raise BadImage("d.png: broken")
        return pixels(keys[index])

    cache = FeatureCache(tmp_path, clip, RAW, SIZE)
    with pytest.raises(BadImage, match=r"d\.png: broken"):
        cache.build(keys, load, batch_size=1)
    assert cache.missing(keys) == [3, 4, 5]
    assert not list(cache.folder.glob("*.part"))
    with pytest.raises(KeyboardInterrupt):
        cache.build(
            keys, Loader(keys), batch_size=1, on_progress=lambda *_: signal.raise_signal(signal.SIGINT)
        )
    assert cache.missing(keys) == [4, 5]


def test_an_interrupted_build_gives_the_values_of_an_uninterrupted_one(tmp_path: Path, clip: CLIP) -> None:
    keys = list("abcdefgh")
    whole = FeatureCache(tmp_path / "whole", clip, RAW, SIZE, shard_images=4)
    whole.build(keys, Loader(keys), batch_size=2)
    broken = FeatureCache(tmp_path / "broken", clip, RAW, SIZE, shard_images=4)

    def stop(done: int, _: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken.build(keys, Loader(keys), batch_size=2, on_progress=stop)
    assert broken.missing(keys) == [6, 7]
    broken.build(keys, Loader(keys), batch_size=2)
    a, b = whole.read(keys), broken.read(keys)
    assert torch.equal(a.class_feature, b.class_feature)
    for one, other in zip(a.tokens["qk"], b.tokens["qk"], strict=True):
        assert torch.equal(one, other)


def test_features_that_are_not_finite_are_refused(tmp_path: Path, clip: CLIP) -> None:
    cache = FeatureCache(tmp_path, clip, RAW, SIZE)
    with pytest.raises(BadImage, match="image a: NaN or infinity"):
        cache.build(["a"], lambda index: np.full((3, SIZE, SIZE), np.nan, np.float32))
    assert cache.missing(["a"]) == [0]


def test_inputs_of_another_size_are_refused(tmp_path: Path, clip: CLIP) -> None:
    cache = FeatureCache(tmp_path, clip, RAW, SIZE)
    with pytest.raises(ValueError, match=r"\(3, 48, 48\).*expected \(3, 40, 40\)"):
        cache.build(["a"], lambda index: np.zeros((3, 48, 48), np.float32))


def test_impossible_wishes_are_refused(tmp_path: Path, clip: CLIP) -> None:
    with pytest.raises(BadOption, match="cannot be cached"):
        FeatureCache(tmp_path, clip, FeatureSpec(cacheable=False), SIZE)
    with pytest.raises(UnknownName, match="fp16"):
        FeatureCache(tmp_path, clip, RAW, SIZE, storage="fp8")
    for size in (0, -8, 41):
        with pytest.raises(BadOption, match="multiple of the patch size 8"):
            FeatureCache(tmp_path, clip, RAW, size)
    cache = FeatureCache(tmp_path, clip, RAW, SIZE)
    with pytest.raises(BadOption, match="batch_size"):
        cache.build(["a"], Loader("a"), batch_size=0)
    with pytest.raises(OutputError, match=r"does not hold image a .*run again"):
        cache.read(["a"])
    with pytest.raises(ValueError, match="no keys"):
        cache.read([])
    assert not list(tmp_path.iterdir())


def test_the_size_is_announced_and_refused_without_room(
    tmp_path: Path, clip: CLIP, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="blemish")
    cache = FeatureCache(tmp_path / "not" / "yet", clip, RAW, SIZE)
    cache.require_room(3)
    cache.build(list("abc"), Loader("abc"))
    announced = [r.message for r in caplog.records if r.name == "blemish.clip.cache"]
    assert len(announced) == 1
    assert f"{3 * cache.bytes_per_image} bytes" in announced[0]
    usage = collections.namedtuple("usage", "total used free")
    free = 2 * cache.bytes_per_image + cache_module.MARGIN - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, free))
    with pytest.raises(OutputError, match="make room") as refused:
        cache.build(list("abcde"), Loader("abcde"))
    assert f"{2 * cache.bytes_per_image} bytes" in str(refused.value)
    assert f"{free} bytes" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert cache.missing(list("abcde")) == [3, 4]
    cache.require_room(1)
    cache.build(list("abc"), Loader("abc"))  # nothing to write, so no room is needed


def test_a_file_in_place_of_the_folder_is_one_error(tmp_path: Path, clip: CLIP) -> None:
    (tmp_path / "file").write_text("")
    cache = FeatureCache(tmp_path / "file", clip, RAW, SIZE)
    assert cache.missing(["a"]) == [0]
    with pytest.raises(OutputError, match="choose another"):
        cache.build(["a"], Loader("a"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_may_only_be_read_is_read(tmp_path: Path, clip: CLIP) -> None:
    cache = FeatureCache(tmp_path, clip, RAW, SIZE)
    cache.build(["a"], Loader("a"))
    cache.folder.chmod(0o555)
    try:
        again = FeatureCache(tmp_path, clip, RAW, SIZE)
        again.build(["a"], Loader("a"))
        assert len(again.read(["a"])) == 1
        with pytest.raises(OutputError, match="permission"):
            again.build(["b"], Loader("b"))
    finally:
        cache.folder.chmod(0o755)


def test_the_folder_says_what_it_holds_and_names_no_place(tmp_path: Path, clip: CLIP) -> None:
    cache = FeatureCache(tmp_path, clip, STREAMS, SIZE, storage="int8")
    cache.build(["a"], Loader("a"))
    text = (cache.folder / "cache.json").read_text()
    said = json.loads(text)
    assert said["backbone"] == "small"
    assert said["fingerprint"] == clip.fingerprint
    assert (said["image_size"], said["storage"]) == (SIZE, "int8")
    assert said["spec"]["layers"] == [2, 4]
    assert said["bytes_per_image"] == cache.bytes_per_image
    assert {"blemish", "torch", "version"} <= set(said)
    for path in cache.folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
        assert str(Path.home()).encode() not in path.read_bytes()


def test_threads_may_read_at_once(tmp_path: Path, clip: CLIP) -> None:
    keys = [str(number) for number in range(12)]
    FeatureCache(tmp_path, clip, RAW, SIZE, shard_images=1).build(keys, Loader(keys))
    cache = FeatureCache(tmp_path, clip, RAW, SIZE)
    expected = encoded(clip, keys, RAW)
    failures: list[BaseException] = []

    def read(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(12)
        try:
            for i in order:
                found = cache.read([keys[i]])
                assert torch.allclose(found.class_feature[0], expected.class_feature[i], atol=1e-4)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_pictures_are_known_by_content_and_treatment(draw: Callable[..., Path], tmp_path: Path) -> None:
    one, two = draw("one.png"), draw("two.png")
    copy = tmp_path / "copy.png"
    copy.write_bytes(one.read_bytes())
    assert image_key(one) == image_key(copy) == image_key(str(one))
    keys = [
        image_key(one),
        image_key(two),
        image_key(one, "a", "b"),
        image_key(one, "ab"),
        image_key(one, ""),
    ]
    assert len(set(keys)) == len(keys)
    assert image_key(one, "b", "a") != image_key(one, "a", "b")
    with pytest.raises(BadImage, match=r"none\.png: cannot be read \(no such file"):
        image_key(tmp_path / "none.png")
    with pytest.raises(BadImage, match="not a regular file"):
        image_key(tmp_path)


def test_the_usual_folder_follows_the_user_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
    assert default_folder() == Path("/somewhere/cache/blemish/features")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "blemish" / "features"


SCRIPT = """
import json, sys, time
from pathlib import Path
import numpy as np, torch
from blemish.clip.cache import FeatureCache
from blemish.clip.weights import load_clip
from blemish.types import FeatureSpec

torch.set_num_threads(1)
folder, backbone, log, go, pause, *keys = sys.argv[1:]
cache = FeatureCache(folder, load_clip(backbone), FeatureSpec(projected=False), 40, shard_images=4)
Path(log).touch()
while not Path(go).exists():
    time.sleep(0.01)

def load(index):
    time.sleep(float(pause))
    rng = np.random.default_rng(list(keys[index].encode()))
    with open(log, "a") as file:
        file.write(keys[index] + "\\n")
    return rng.standard_normal((3, 40, 40)).astype(np.float32)

cache.build(keys, load, batch_size=2)
assert cache.missing(keys) == []
"""
PLAIN = FeatureSpec(projected=False)
WAIT = 300.0  # seconds after which a test gives up; starting a process takes a minute where many run


class Builders:
    """Processes that build the same cache and write down what they load."""

    def __init__(self, folder: Path, backbone: Path) -> None:
        self.folder, self.backbone, self.logs = folder, backbone, list[Path]()
        self.go, self.cache = folder / "go", folder / "cache"

    def start(self, keys: Sequence[str], pause: float) -> subprocess.Popen[bytes]:
        log = self.folder / f"log{len(self.logs)}"
        self.logs.append(log)
        values: list[Any] = [self.cache, self.backbone, log, self.go, pause, *keys]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, values)], env=environment)

    def release(self) -> None:
        wait_for(lambda: all(log.exists() for log in self.logs))
        self.go.touch()

    def loaded(self) -> list[list[str]]:
        return [log.read_text().split() for log in self.logs]


@pytest.fixture
def builders(tmp_path: Path, small_backbone: Path) -> Builders:
    return Builders(tmp_path, small_backbone)


def wait_for(condition: Callable[[], bool], seconds: float = WAIT) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.slow
def test_two_processes_share_the_work(builders: Builders, clip: CLIP) -> None:
    keys = [str(number) for number in range(32)]
    processes = [builders.start(keys, 0.05), builders.start(keys, 0.05)]
    builders.release()
    assert [process.wait(WAIT) for process in processes] == [0, 0]
    loaded = builders.loaded()
    assert Counter(loaded[0] + loaded[1]) == Counter(keys)  # nothing twice
    assert all(loaded)  # and neither only waited
    cache = FeatureCache(builders.cache, clip, PLAIN, SIZE)
    check_equal(cache.read(keys), encoded(clip, keys, PLAIN), "fp16")
    assert not list(cache.folder.glob("*.part"))


@pytest.mark.slow
def test_what_another_process_is_computing_is_waited_for(builders: Builders, clip: CLIP) -> None:
    keys = list("abcd")  # one file, so that there is nothing to do but wait
    cache = FeatureCache(builders.cache, clip, PLAIN, SIZE)
    process = builders.start(keys, 2)
    builders.release()
    wait_for(lambda: any(cache.folder.glob("*.part")) or any(cache.folder.glob("*.shard")))
    loader = Loader(keys)
    cache.build(keys, loader)
    assert not loader.calls
    assert process.wait(WAIT) == 0
    check_equal(cache.read(keys), encoded(clip, keys, PLAIN), "fp16")


@pytest.mark.slow
def test_a_kill_costs_the_unfinished_file_and_no_more(builders: Builders, clip: CLIP) -> None:
    keys = [str(number) for number in range(24)]
    cache = FeatureCache(builders.cache, clip, PLAIN, SIZE, shard_images=4)
    process = builders.start(keys, 1)
    builders.release()
    wait_for(lambda: len(list(cache.folder.glob("*.shard"))) >= 2)
    wait_for(lambda: len(list(cache.folder.glob("*.part"))) >= 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = list(cache.folder.glob("*.part"))
    stored = sorted(set(range(24)) - set(cache.missing(keys)))
    assert left
    assert 8 <= len(stored) < 24
    assert stored == list(range(len(stored)))
    loader = Loader(keys)
    cache.build(keys, loader, batch_size=2)
    assert loader.calls == Counter(keys[len(stored) :])  # what was finished is not done again
    assert not any(path.exists() for path in left)
    check_equal(cache.read(keys), encoded(clip, keys, PLAIN), "fp16")


@pytest.mark.slow
def test_who_waits_for_a_process_that_is_killed_takes_over(builders: Builders, clip: CLIP) -> None:
    keys = list("abcd")
    cache = FeatureCache(builders.cache, clip, PLAIN, SIZE)
    process = builders.start(keys, WAIT)
    builders.release()
    wait_for(lambda: any(cache.folder.glob("*.part")))
    loader = Loader(keys)
    thread = threading.Thread(target=cache.build, args=(keys, loader), daemon=True)
    thread.start()
    time.sleep(0.3)
    assert not loader.calls
    process.send_signal(signal.SIGKILL)
    process.wait()
    thread.join(WAIT)
    assert loader.calls == Counter(keys)
    assert cache.missing(keys) == []
