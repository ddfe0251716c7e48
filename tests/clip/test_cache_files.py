"""The cache on disk: damage, no room, interrupted builds, folders and the keys of pictures."""

from __future__ import annotations

import collections
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cached_features import RAW, SIZE, STREAMS, Loader, check_equal, encoded, pixels

from blemish.clip import cache as cache_module
from blemish.clip.cache import FeatureCache, default_folder, image_key
from blemish.clip.model import CLIP
from blemish.clip.weights import load_clip
from blemish.errors import BadImage, OutputError


@pytest.fixture(scope="module")
def clip(small_backbone: Path) -> CLIP:
    return load_clip(small_backbone)


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
