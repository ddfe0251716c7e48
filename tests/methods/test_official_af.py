"""AF-CLIP's two files: a pickled adaptor, which is read without running it, and the prompt's vectors."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_clip import CONFIG, encode, make, make_clip
from torch import nn

from blemish.clip.model import CLIP
from blemish.describe import describe
from blemish.errors import BadCheckpoint
from blemish.methods.official import from_official, read_official, recognise, to_official, write_official

VARIANT: tuple[str, dict[str, Any]] = ("af_clip", {"heads": 2, "n_ctx": 3})


class Attention(nn.Module):
    """Children by the names of the authors' files; what they compute is of no account here."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        ours = method.adaptor
        self.to_q, self.to_k, self.to_v = ours.query, ours.key, ours.value
        self.to_out = nn.Sequential(ours.out, nn.Dropout(0.0))


class Norm(nn.Module):
    def __init__(self, method: Any) -> None:
        super().__init__()
        self.norm = method.adaptor.norm
        self.attn = Attention(method)


class Saved(nn.Module):
    def __init__(self, method: Any) -> None:
        super().__init__()
        self.attention = Norm(method)
        self.names = {"a", "set"}


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return logging.error, ("a file was executed",)


@pytest.fixture
def method(clip: CLIP) -> Any:
    made = make(clip, VARIANT)
    made.reset(torch.Generator().manual_seed(8))
    return made


def save(folder: Path, method: Any, adaptor: Any = None) -> Path:
    torch.save(adaptor or Saved(method), folder / "visa_adaptor.pt")
    torch.save(nn.Parameter(method.words.detach()[None].clone()), folder / "visa_prompt.pt")
    return folder / "visa_adaptor.pt"


def same(got: Any, method: Any, clip: CLIP) -> None:
    state = got.state_dict()
    assert all(torch.equal(state[name], t) for name, t in method.state_dict().items())
    with torch.no_grad():
        features = encode(clip, method, 2)
        assert torch.equal(got(features).map, method(features).map)


def test_either_file_of_a_pair_gives_the_method(clip: CLIP, method: Any, tmp_path: Path) -> None:
    path = save(tmp_path, method)
    for file in (path, tmp_path / "visa_prompt.pt"):
        info = recognise(file)
        assert info is not None and info.method == "af_clip" and info.backbone == ""
        assert info.options == {"n_ctx": 3, "heads": 2, "head_width": 64}
        assert info.values == sum(p.numel() for p in method.parameters())
        same(read_official(file, clip), method, clip)
    assert describe(path)["kind"] == "official checkpoint"


def test_a_state_dict_in_place_of_the_object(clip: CLIP, method: Any, tmp_path: Path) -> None:
    same(read_official(save(tmp_path, method, Saved(method).state_dict()), clip), method, clip)


def test_tensors_without_a_place_are_refused(clip: CLIP, method: Any, tmp_path: Path) -> None:
    more = {"attention.attn.to_q.bias": torch.zeros(128)}
    with pytest.raises(BadCheckpoint, match=r"1 tensors have no place in af_clip, first .*to_q\.bias"):
        read_official(save(tmp_path, method, Saved(method).state_dict() | more), clip)


def test_written_and_read(clip: CLIP, method: Any, tmp_path: Path) -> None:
    write_official(method, tmp_path / "both.pth")
    same(read_official(tmp_path / "both.pth", clip), method, clip)
    other = make(clip, VARIANT)
    from_official(other, to_official(method))
    same(other, method, clip)
    assert to_official(method)["adaptor"].keys() == Saved(method).state_dict().keys()


def test_nothing_of_a_file_is_run(
    clip: CLIP, method: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = Saved(method)
    saved.evil = Evil()  # type: ignore[assignment]
    same(read_official(save(tmp_path, method, saved), clip), method, clip)
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    assert recognise(tmp_path / "evil.pth") is None
    assert "executed" not in caplog.text


def test_an_adaptor_alone_says_what_is_missing(clip: CLIP, method: Any, tmp_path: Path) -> None:
    path = save(tmp_path, method)
    path.rename(tmp_path / "other.pt")
    with pytest.raises(BadCheckpoint, match=r"adaptor alone.*visa_prompt\.pt"):
        read_official(tmp_path / "other.pt", clip)
    with pytest.raises(BadCheckpoint, match="prompt alone"):
        read_official(tmp_path / "visa_prompt.pt", clip)
    (tmp_path / "visa_prompt.pt").write_bytes(b"no tensor")
    (tmp_path / "other.pt").rename(path)
    with pytest.raises(BadCheckpoint, match="does not hold the prompt"):
        recognise(path)
    torch.save(torch.ones(2, 3), tmp_path / "numbers.pt")
    assert recognise(tmp_path / "numbers.pt") is None


def test_an_adaptor_of_another_backbone(clip: CLIP, method: Any, tmp_path: Path) -> None:
    other = make_clip(replace(CONFIG, vision=replace(CONFIG.vision, width=24, mlp_width=24)))
    with pytest.raises(BadCheckpoint, match="image width 36, this one has 24"):
        read_official(save(tmp_path, method), other)
