"""Files that are no usable CLIP: each is refused with its cause in one line."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from blemish.clip.formats import read_tensors, to_openai_names
from blemish.errors import BadWeights, WeightsNotFound


def refused(path: Path) -> str:
    with pytest.raises(BadWeights) as raised:
        to_openai_names(read_tensors(path), path)
    text = str(raised.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"", "the file is empty"),
        ("a.safetensors", b"these are not the weights you want\n", "a text file that starts with 'these are"),
        ("a.pt", b"<!DOCTYPE html>\n<html><body>404</body></html>", "an HTML page"),
        ("a.bin", b"\n  <html lang='en'>", "an HTML page"),
        ("a.pt", b"version https://git-lfs.example/spec/v1\noid sha256:1\n", "a git-lfs pointer"),
        ("a.pt", bytes(range(200, 256)) * 20, "neither safetensors nor a torch file"),
        ("a.safetensors", (40).to_bytes(8, "little") + b'{"a": 1', "truncated or damaged safetensors"),
        ("a.pt", b"\x80\x02}q\x00", "truncated or damaged torch file"),
    ],
)
def test_foreign_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refused(tmp_path / name)


def save_scripted(tensors: dict[str, Any], path: Path) -> None:
    module = nn.Linear(300, 300)
    torch.jit.save(torch.jit.script(module), str(path))


def save_legacy(tensors: dict[str, Any], path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("save", [save_file, torch.save, save_legacy, save_scripted])
def test_truncated_files(tmp_path: Path, save: Callable[[Any, Path], Any], kept: float) -> None:
    path = tmp_path / "weights"
    save({"visual.class_embedding": torch.randn(300, 300)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert "truncated" in refused(path)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match=r"no weight file at .*gone\.pt; check the path"):
        read_tensors(tmp_path / "gone.pt")
    assert "cannot be read" in refused(tmp_path)


class Payload:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran-foreign-code"),))


def test_pickled_objects_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Payload()}, tmp_path / "a.pt")
    assert "Python objects besides tensors" in refused(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    assert "Python objects besides tensors" in refused(tmp_path / "b.pt")
    assert not (tmp_path / "ran-foreign-code").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["patch_embed.proj.weight", "blocks.0.attn.qkv.weight"], "timm's image tower alone"),
        (["visual.trunk.patch_embed.proj.weight"], "image tower is another architecture"),
        (["visual.layer1.0.conv1.weight", "positional_embedding"], "a ResNet CLIP"),
        (
            ["prompt_learner.ctx_pos", "prompt_learner.ctx_neg"],
            "a method's checkpoint rather than a backbone",
        ),
        (["fc.weight", "fc.bias"], "no CLIP: visual.class_embedding is missing; it starts with fc.bias"),
    ],
)
def test_other_kinds_of_weights(tmp_path: Path, names: list[str], message: str) -> None:
    save_file({name: torch.zeros(2) for name in names}, tmp_path / "a.safetensors")
    assert message in refused(tmp_path / "a.safetensors")


def test_other_pickled_contents(tmp_path: Path) -> None:
    learner = {"prompt_learner": OrderedDict(ctx_pos=torch.zeros(1)), "epoch": 15}
    torch.save(learner, tmp_path / "epoch_15.pth")
    assert "its entries are prompt_learner, epoch" in refused(tmp_path / "epoch_15.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    assert "holds a list, expected a state dictionary" in refused(tmp_path / "list.pth")
    torch.save({}, tmp_path / "none.pth")
    assert "its entries are none" in refused(tmp_path / "none.pth")
