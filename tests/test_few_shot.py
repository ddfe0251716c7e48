"""Normal images for few-shot methods: which ones, the memory file, the detector, `blemish predict --normal`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import blemish
from blemish import few_shot
from blemish.cli import main
from blemish.describe import describe
from blemish.detector import Detector
from blemish.errors import BadCheckpoint, BadImage, BadOption
from blemish.few_shot import choose, is_memory, normal_images

Make = Callable[..., Path]


@pytest.fixture
def normals(draw: Make, tmp_path: Path) -> Path:
    folder = tmp_path / "normal"
    for i in range(5):
        draw(f"normal/{i}.png", (40 + i, 30))
    return folder


@pytest.fixture
def load(small_checkpoint: Make) -> Callable[..., Detector]:
    path = small_checkpoint("april_gan")
    return lambda **more: blemish.load(checkpoint=path, class_name="nut", **more)


def test_a_folder_of_normal_images(load: Callable[..., Detector], normals: Path, draw: Make) -> None:
    plain, few = load(), load(normal=normals)
    path = draw("a.png", (50, 40))
    before, after = plain.predict(path), few.predict(path)
    assert not np.allclose(before.map, after.map) and before.score != after.score
    assert after.map_range == (0.0, 2 * before.map_range[1])
    assert (plain.setup.normal_images, few.setup.normal_images) == (0, 5)
    assert plain.setup.memory_sha256 == "" and len(few.setup.memory_sha256) == 64
    seen = few.predict(next(iter(normals.iterdir())))
    zero_shot = plain.predict(next(iter(normals.iterdir())))
    np.testing.assert_allclose(seen.map, zero_shot.map, atol=2e-3)


def test_python_and_load_remember_alike(load: Callable[..., Detector], normals: Path, draw: Make) -> None:
    paths = sorted(normals.iterdir())
    detector, path = load(), draw("a.png")
    zero_shot = detector.predict(path)
    detector.remember(paths[:2])
    detector.remember([Image.open(paths[2]), np.asarray(Image.open(paths[3])), str(paths[4])])
    other = load(normal=[str(p) for p in paths])
    assert detector.setup.memory_sha256 == other.setup.memory_sha256
    assert np.array_equal(detector.predict(path).map, other.predict(path).map)
    detector.forget()
    assert np.array_equal(detector.predict(path).map, zero_shot.map)
    assert (detector.setup.normal_images, detector.setup.memory_sha256) == (0, "")


def test_thresholds_made_without_them_are_dropped(load: Callable[..., Detector], normals: Path) -> None:
    assert load().setup.threshold == 0.5
    few = load(normal=normals)
    assert few.setup.threshold is None and few.setup.pixel_threshold is None
    given = load(normal=normals, threshold=0.2, pixel_threshold=1.0)
    assert (given.setup.threshold, given.setup.pixel_threshold) == (0.2, 1.0)


def test_memory_file_gives_the_same_results(
    load: Callable[..., Detector], normals: Path, draw: Make, tmp_path: Path
) -> None:
    few, path = load(normal=normals), draw("a.png", (50, 40))
    few.save_memory(tmp_path / "nut.memory.safetensors")
    assert is_memory(tmp_path / "nut.memory.safetensors") and not is_memory(path) and not is_memory(tmp_path)
    again = load(normal=tmp_path / "nut.memory.safetensors")
    assert again.setup == few.setup
    assert np.array_equal(again.predict(path).map, few.predict(path).map)
    assert again.predict(path).score == few.predict(path).score
    found = describe(tmp_path / "nut.memory.safetensors")
    assert (found["kind"], found["method"], found["images"]) == ("memory", "april_gan", 5)


def test_memory_file_is_small(load: Callable[..., Detector], normals: Path, tmp_path: Path) -> None:
    """Half precision, patches only."""
    few = load(normal=normals)
    few.save_memory(tmp_path / "m")
    patches, config = (48 // few.clip.config.vision.patch_size) ** 2, few.clip.config.vision
    expected = 5 * len(few.method.blocks) * patches * config.width * 2  # type: ignore[attr-defined]
    assert expected <= (tmp_path / "m").stat().st_size < expected + 4000


def test_tiles_are_remembered_as_tiles(load: Callable[..., Detector], draw: Make, tmp_path: Path) -> None:
    path = draw("wide.png", (90, 40))
    few = load(normal=path, tile=40)
    zero_shot = load(tile=40).predict(path)
    np.testing.assert_allclose(few.predict(path).map, zero_shot.map, atol=2e-3)
    few.save_memory(tmp_path / "m")
    assert load(normal=tmp_path / "m", tile=40).setup == few.setup
    for other in ({}, {"tile": 48}, {"tile": 40, "overlap": 0.5}):
        with pytest.raises(BadCheckpoint, match="tile"):
            load(normal=tmp_path / "m", **other)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"image_size": 56}, "was made with image size 48, here it is 56"),
        ({"position_resize": "bilinear"}, "position resize bicubic_antialias, here it is bilinear"),
        ({"layers": (1, 2)}, "was made with layers"),
        ({"shots": 2}, "memory already made"),
    ],
)
def test_memories_of_other_settings_are_refused(
    small_checkpoint: Make, small_backbone: Path, normals: Path, tmp_path: Path, other: dict, words: str
) -> None:
    size = {"image_size": 48}
    first = blemish.load(checkpoint=small_checkpoint("april_gan"), normal=normals)
    first.save_memory(tmp_path / "m")
    if "layers" in other:
        other["checkpoint"] = small_checkpoint("april_gan", options={"layers": other["layers"]})
    with pytest.raises((BadCheckpoint, BadOption), match=words):
        blemish.load(**({"checkpoint": small_checkpoint("april_gan")} | size | other), normal=tmp_path / "m")


def test_memories_of_other_methods_backbones_and_versions_are_refused(
    load: Callable[..., Detector], normals: Path, tmp_path: Path
) -> None:
    few, path = load(normal=normals), tmp_path / "m"
    few.save_memory(path)
    tensors = load_file(path)
    header = {key: json.dumps(value) for key, value in few_shot.describe_memory(path).items()}
    header |= {"format": "blemish-memory", "format_version": "1"}
    for changes, words in (
        ({"method": '"win_clip"'}, "made with method win_clip, here it is april_gan"),
        (
            {"backbone_fingerprint": '"abc"', "backbone": '"ViT-B-32"'},
            r"backbone ViT-B-32 \(abc\), here it is",
        ),
        ({"format_version": "2"}, "memory version 2"),
        ({"images": "{"}, "header is damaged"),
    ):
        save_file(tensors, path, metadata=header | changes)
        with pytest.raises(BadCheckpoint, match=words):
            load(normal=path)
    save_file({"1": torch.ones(2, 3)}, path, metadata=header)
    with pytest.raises(BadCheckpoint, match="does not fit"):
        load(normal=path)


def test_methods_without_a_memory_refuse_before_anything_is_loaded(
    small_checkpoint: Make, normals: Path, draw: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = blemish.load(checkpoint=small_checkpoint())
    for call in (
        lambda: detector.remember([draw("a.png")]),
        detector.forget,
        lambda: detector.save_memory("x"),
    ):
        with pytest.raises(BadOption, match=r"anomaly_clip cannot use normal images.*april_gan"):
            call()
    monkeypatch.setattr("blemish.loading._load_backbone", lambda *given: pytest.fail("backbone was loaded"))
    with pytest.raises(BadOption, match="anomaly_clip cannot use normal images"):
        blemish.load(checkpoint=small_checkpoint(), normal=normals)
    with pytest.raises(BadOption, match="pass --normal"):
        blemish.load(checkpoint=small_checkpoint("april_gan"), shots=3)


def test_a_checkpoint_is_no_memory_and_a_memory_no_checkpoint(
    load: Callable[..., Detector], small_checkpoint: Make, normals: Path, tmp_path: Path
) -> None:
    with pytest.raises((BadImage, BadOption)):
        load(normal=small_checkpoint())
    load(normal=normals).save_memory(tmp_path / "m.safetensors")
    with pytest.raises(BadCheckpoint, match="memory of normal images, not a checkpoint"):
        blemish.load(checkpoint=tmp_path / "m.safetensors")


def test_failure_leaves_the_memory_as_it_was(
    load: Callable[..., Detector], normals: Path, tmp_path: Path
) -> None:
    few, paths = load(normal=normals, shots=2), sorted(normals.iterdir())
    before = few.setup
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(BadImage, match=r"bad\.png"):
        few.remember([paths[0], tmp_path / "bad.png"])
    with pytest.raises(BadOption, match="more than 64"):
        few.remember(paths[:1] * 63)
    assert few.setup == before and few_shot.digest(few.method.memory()) == before.memory_sha256  # type: ignore[attr-defined]
    with pytest.raises(BadOption, match="no normal images"):
        load().remember([])


def test_which_images_are_taken(normals: Path, tmp_path: Path) -> None:
    found = normal_images(normals)
    assert [p.name for p in found] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert normal_images([found[3], found[1]]) == [found[3], found[1]]
    drawn = {tuple(normal_images(normals, 2, seed)) for seed in range(20)}
    assert len(drawn) > 3 and all(len(set(some)) == 2 for some in drawn)
    assert normal_images(normals, 2, 7) == normal_images(normals, 2, 7)
    assert normal_images(normals, 5, 7) == found
    (tmp_path / "empty").mkdir()
    for source, words in ((tmp_path / "empty", "empty"), (tmp_path / "none", "none")):
        with pytest.raises((BadImage, BadOption), match=words):
            normal_images(source)
    with pytest.raises(BadOption, match=r"--shots 6 asks for more normal images than .* has \(5\)"):
        normal_images(normals, 6)


def test_numbers_of_images() -> None:
    assert choose(range(64), None, 0, "x") == list(range(64))
    with pytest.raises(BadOption, match="x has 65 images; a memory takes 1 to 64, choose some with --shots"):
        choose(range(65), None, 0, "x")
    assert len(choose(range(1000), 64, 0, "x")) == 64
    for shots in (0, -1, 65):
        with pytest.raises(BadOption, match=f"shots is {shots}"):
            choose(range(100), shots, 0, "x")


def test_command(
    small_checkpoint: Make, normals: Path, draw: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    common = ["predict", str(draw("in/a.png")), "--checkpoint", str(small_checkpoint("april_gan"))]
    common += ["--class-name", "nut"]
    kept = tmp_path / "kept" / "nut.safetensors"
    one = [*common, "--normal", str(normals), "--shots", "3", "--seed", "2", "--save-memory", str(kept)]
    assert main([*one, "-o", str(tmp_path / "one")]) == 0
    assert main([*common, "--normal", str(kept), "-o", str(tmp_path / "two")]) == 0
    runs = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert runs[0]["normal_images"] == runs[1]["normal_images"] == 3
    assert runs[0]["memory_sha256"] == runs[1]["memory_sha256"]
    records = [json.loads((tmp_path / n / "predictions.jsonl").read_text()) for n in ("one", "two")]
    assert records[0]["score"] == records[1]["score"]
    assert main([*common, "--normal", str(normals), "-o", str(tmp_path / "one"), "--resume"]) == 2
    assert "normal_images was 3 and is now 5" in capfd.readouterr().err
    assert main([*common, "--save-memory", str(kept), "-o", str(tmp_path / "three")]) == 2
    assert "remembers no normal images; give some with --normal" in capfd.readouterr().err
    assert kept.is_file()


def test_one_warning_without_a_class_name(
    small_checkpoint: Make, draw: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    inputs = [str(draw(f"in/{i}.png")) for i in range(3)]
    for method, told, count in (("april_gan", [], 1), ("april_gan", ["nut"], 0), ("vcp_clip", [], 0)):
        given = ["--checkpoint", str(small_checkpoint(method)), "--batch-size", "1"]
        given += ["--class-name", *told] if told else []
        assert main(["predict", *inputs, *given, "-o", str(tmp_path / "out"), "--overwrite"]) == 0
        assert capfd.readouterr().err.count('falls back to "object"') == count


def test_one_warning_for_a_class_name_of_no_use(
    small_checkpoint: Make, draw: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    inputs = [str(draw(f"in/{i}.png")) for i in range(3)]
    told = ["--class-name", "nut", "--batch-size", "1", "-o", str(tmp_path / "out"), "--overwrite"]
    for given, count in (
        (["--checkpoint", str(small_checkpoint("vcp_clip"))], 1),
        (["--checkpoint", str(small_checkpoint("april_gan"))], 0),
        (["--method", "clip_ac"], 1),  # the embedded one names every class "object"
        (["--method", "clip_ac", "--set", 'noun=""'], 0),
    ):
        assert main(["predict", *inputs, *given, *told]) == 0
        assert capfd.readouterr().err.count("--class-name 'nut' changes nothing") == count


def test_words_for_class_names(
    small_checkpoint: Make, draw: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words.toml"
    words.write_text('pcb1 = "sensor board"\n"metal nut" = "steel nut"\n')
    common = ["predict", str(draw("a.png")), "--checkpoint", str(small_checkpoint("april_gan"))]
    common += ["-o", str(tmp_path / "out"), "--class-names", str(words)]
    assert main([*common, "--class-name", "metal nut"]) == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["class_name"] == "steel nut"
    capfd.readouterr()
    for given, text in (
        (["--class-name", "pcb"], "did you mean 'pcb1'"),
        ([], "--class-names has words for --class-name"),
    ):
        assert main([*common, *given, "--overwrite"]) == 2
        assert text in capfd.readouterr().err
    for content, text in (
        ("", "names no class"),
        ("a = 3", "a is 3; expected words in quotes"),
        ('a = " "', "expected words"),
        ("[a]\nb = 'c'", "expected words"),
        ("a = ", "not valid TOML"),
    ):
        words.write_text(content)
        assert main([*common, "--class-name", "a", "--overwrite"]) == 2
        shown = capfd.readouterr().err
        assert text in shown and "Traceback" not in shown
