"""AA-CLIP's two files, as the authors' code writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_clip import encode, make

from blemish.clip.config import CLIPConfig
from blemish.clip.model import CLIP
from blemish.errors import BadCheckpoint, BadOption
from blemish.methods import build
from blemish.methods.official import from_official, read_official, recognise, to_official, write_official

VARIANT: tuple[str, dict[str, Any]] = ("aa_clip", {"text_adapters": 2, "image_adapters": 3})


@pytest.fixture
def method(clip: CLIP) -> Any:
    made = make(clip, VARIANT)
    made.reset(torch.Generator().manual_seed(8))
    return made


def save(folder: Path, method: Any) -> Path:
    content = to_official(method)
    state = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"epoch": 5, "text_adapter": content["text_adapter"]}, folder / "text_adapter.pth")
    path = folder / "image_adapter_20.pth"
    torch.save({"epoch": 20, "image_adapter": content["image_adapter"], "image_optimizer": state}, path)
    return path


def same(got: Any, method: Any, clip: CLIP) -> None:
    state = got.state_dict()
    assert all(torch.equal(state[name], t) for name, t in method.state_dict().items())
    with torch.no_grad():
        images = encode(clip, method, 2)
        assert torch.equal(got(images).map, method(images).map)


def test_names_of_the_papers_backbone() -> None:
    with torch.device("meta"):
        large = CLIP(CLIPConfig())
    content = to_official(build("aa_clip", large).to_empty(device="cpu"))
    assert {k: tuple(t.shape) for k, t in content["text_adapter"].items()} == {
        f"{i}.fc.0.weight": (768, 768) for i in range(4)
    }
    expected = {f"layer_adapters.{i}.fc.0.weight": (1024, 1024) for i in range(6)}
    expected |= {f"seg_proj.{i}.fc.weight": (768, 1024) for i in range(4)}
    expected |= {"det_proj.fc.weight": (768, 1024)}
    assert {k: tuple(t.shape) for k, t in content["image_adapter"].items()} == expected
    info = recognise(content)
    assert info is not None and (info.method, info.backbone) == ("aa_clip", "ViT-L-14-336")
    assert info.values == 12_582_912 and info.options == {"text_adapters": 3, "image_adapters": 6}


def test_the_image_file_with_the_text_file_beside_it(
    clip: CLIP, method: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same(read_official(save(tmp_path, method), clip), method, clip)
    assert "no scale" in caplog.text and "transductive_minmax" in caplog.text
    write_official(method, tmp_path / "both.pth")
    same(read_official(tmp_path / "both.pth", clip), method, clip)
    other = make(clip, VARIANT)
    from_official(other, to_official(method))
    same(other, method, clip)


def test_one_file_alone(clip: CLIP, method: Any, tmp_path: Path) -> None:
    path = save(tmp_path, method)
    with pytest.raises(BadCheckpoint, match="name the file with the image_adapter"):
        read_official(tmp_path / "text_adapter.pth", clip)
    (tmp_path / "text_adapter.pth").write_bytes(b"no tensors")
    with pytest.raises(BadCheckpoint, match="image_adapter alone; put text_adapter"):
        read_official(path, clip)


def test_options_that_the_file_decides(clip: CLIP, method: Any, tmp_path: Path) -> None:
    path = save(tmp_path, method)
    with pytest.raises(BadOption, match="image_adapters"):
        read_official(path, clip, image_adapters=2)
    with pytest.raises(BadCheckpoint, match="heads for 4 levels, the option layers names 2"):
        read_official(path, clip, layers=(2, 4))
