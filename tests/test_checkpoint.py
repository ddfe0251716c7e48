"""Our checkpoint file: round trip, and every way in which a file can be the wrong one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blemish.checkpoint import (
    CheckpointMeta,
    is_checkpoint,
    load_checkpoint,
    load_parts,
    read_meta,
    save_checkpoint,
)
from blemish.clip.weights import load_clip
from blemish.describe import describe
from blemish.errors import BadCheckpoint, OutputError
from blemish.loading import load
from blemish.methods import build

Make = Callable[..., Path]


def test_round_trip_keeps_tensors_and_meta(tmp_path: Path) -> None:
    learned = torch.nn.Linear(3, 2)
    meta = CheckpointMeta(
        "anomaly_clip",
        options={"layers": [0.5, 1.0], "sigma": 4.0, "name": "a\nb"},
        backbone="ViT-é",
        backbone_config={"embed_dim": 8},
        image_size=518,
        image_threshold=0.25,
        notes="two\nlines",
    )
    path = tmp_path / "deep" / "part.safetensors"
    save_checkpoint(path, learned, meta)
    found, tensors = load_checkpoint(path)
    assert found.options == meta.options
    assert (found.backbone, found.image_size, found.image_threshold, found.pixel_threshold, found.notes) == (
        "ViT-é",
        518,
        0.25,
        None,
        "two\nlines",
    )
    assert {"blemish", "torch", "python"} <= found.versions.keys()
    assert read_meta(path) == found
    other = torch.nn.Linear(3, 2)
    load_parts(other, "anomaly_clip", tensors, path)
    assert torch.equal(other.weight, learned.weight) and torch.equal(other.bias, learned.bias)
    assert [p.name for p in path.parent.iterdir()] == ["part.safetensors"]


def test_saving_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        save_checkpoint(tmp_path / "file" / "a.safetensors", torch.nn.Linear(1, 1), CheckpointMeta("m"))


def test_parts_that_do_not_fit_are_named(tmp_path: Path) -> None:
    learned = torch.nn.Linear(3, 2)
    good = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    before = learned.weight.clone()
    for tensors, words in (
        ({"weight": good["weight"]}, "bias missing"),
        (good | {"extra": torch.zeros(1)}, "extra unknown"),
        (good | {"bias": torch.zeros(5)}, r"bias is \(5,\), needed is \(2,\)"),
    ):
        with pytest.raises(BadCheckpoint, match=words):
            load_parts(learned, "anomaly_clip", tensors, tmp_path / "x")
    assert torch.equal(learned.weight, before)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"just some words of text\n", "text"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs"),
        (bytes(range(256)) * 4, "no safetensors file"),
    ],
)
def test_other_files_are_explained(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=words) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) <= 2
    assert not is_checkpoint(path)
    assert describe(path)["kind"] == "unknown"
    with pytest.raises(BadCheckpoint, match=words):
        load(checkpoint=path)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_truncated(tmp_path: Path, small_checkpoint: Make, share: float) -> None:
    whole = small_checkpoint().read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadCheckpoint, match="truncated"):
        load(checkpoint=path)


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="does not exist"):
        load(checkpoint=tmp_path / "no.safetensors")
    with pytest.raises(BadCheckpoint, match="folder"):
        load(checkpoint=tmp_path)
    with pytest.raises(BadCheckpoint, match="does not exist"):
        describe(tmp_path / "no.pth")


def test_newer_version_and_backbone_file(
    tmp_path: Path, small_backbone: Path, small_checkpoint: Make
) -> None:
    tensors = load_file(small_checkpoint())
    path = tmp_path / "new.safetensors"
    save_file(tensors, path, metadata={"format": "blemish-checkpoint", "format_version": "9", "method": "x"})
    with pytest.raises(BadCheckpoint, match="version 9"):
        read_meta(path)
    save_file(tensors, path, metadata={"format": "blemish-checkpoint", "format_version": "1"})
    with pytest.raises(BadCheckpoint, match="names no method"):
        read_meta(path)
    with pytest.raises(BadCheckpoint, match="--backbone"):
        load_checkpoint(small_backbone / "model.safetensors")


def test_describe_tells_the_kinds_apart(small_backbone: Path, small_checkpoint: Make) -> None:
    own = describe(small_checkpoint("vcp_clip"))
    assert (own["kind"], own["method"], own["image_size"]) == ("checkpoint", "vcp_clip", 48)
    assert own["parameters"] > 0 and len(own["sha256"]) == 64
    assert describe(small_backbone)["kind"] == "backbone"
    assert describe(small_backbone)["fingerprint"] == own["backbone_fingerprint"]


def test_another_method_is_refused(small_backbone: Path, small_checkpoint: Make) -> None:
    with pytest.raises(BadCheckpoint, match="of vcp_clip, not of anomaly_clip"):
        load("anomaly_clip", small_backbone, small_checkpoint("vcp_clip"))


def test_backbone_of_other_dimensions(small_backbone: Path, small_checkpoint: Make) -> None:
    config = load_clip(small_backbone).config.to_dict()
    config["text"]["width"] = 768
    path = small_checkpoint(backbone="ViT-L-14-336", backbone_config=config)
    with pytest.raises(BadCheckpoint, match=r"text width 768.*--backbone ViT-L-14-336"):
        load(backbone=small_backbone, checkpoint=path)


def test_other_weights_of_the_same_shape_only_warn(
    small_checkpoint: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load(checkpoint=small_checkpoint(backbone_fingerprint="0" * 16))
    assert "other weights" in caplog.text
    caplog.clear()
    load(checkpoint=small_checkpoint())
    assert "other weights" not in caplog.text


def test_options_that_change_the_shapes_are_refused(small_checkpoint: Make) -> None:
    with pytest.raises(BadCheckpoint, match="words"):
        load(checkpoint=small_checkpoint(), n_ctx=7)


def test_authors_file(tmp_path: Path, small_backbone: Path) -> None:
    from blemish.methods.official import to_official

    clip = load_clip(small_backbone)
    path = tmp_path / "epoch_15.pth"
    torch.save(to_official(build("anomaly_clip", clip)), path)
    found = describe(path)
    assert (found["kind"], found["method"]) == ("official checkpoint", "anomaly_clip")
    detector = load(backbone=small_backbone, checkpoint=path)
    assert detector.setup.method == "anomaly_clip"
    with pytest.raises(BadCheckpoint, match="vcp_clip"):
        load("vcp_clip", small_backbone, path)
