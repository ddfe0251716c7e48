"""VCP-CLIP+'s authors' file: their golden parts in their own nesting, round trips, refusals."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from small_clip import CONFIG, make_clip

from blemish.clip.config import CLIPConfig
from blemish.clip.model import CLIP
from blemish.errors import BadCheckpoint, BadOption
from blemish.methods import build
from blemish.methods.official import flatten, read_official, recognise, to_official, write_official
from golden_data import load

NAME = "vcp_clip_plus"
GROUPS = ("trainable_linearlayer", "New_Lan_Embed", "Zero_try")
UNUSED = ("New_Lan_Embed.prompt_query", "New_Lan_Embed.prompt_linear1", "prompt_text_projection")


def authors_content() -> dict[str, Any]:
    """The golden parts nested as the authors' program saves them, with CLIP and the prompts under `model`."""
    golden = load(NAME)
    content: dict[str, Any] = {}
    for key, value in golden.method.items():
        group, _, rest = key.partition(".")
        if group in GROUPS:
            content.setdefault(group, {})[rest] = value
        elif key != "beta":
            content[key] = torch.nn.Parameter(value)
    prompts = {key: value for key, value in content.items() if "prompt" in key}
    model = dict(golden.clip.state_dict()) | prompts
    words = model["token_embedding.weight"]
    model["token_embedding.weight"] = torch.cat([words, torch.randn(1, words.shape[1])])
    model["visual.positional_embedding"] = golden.clip.visual.positions((37, 37), "bicubic_antialias")
    return content | {"model": model}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "epoch_10.pth"
    torch.save(authors_content(), path)
    return path


def test_recognised_by_content(file: Path) -> None:
    info = recognise(file)
    assert info is not None and info.method == NAME
    assert info.options == {"idp_tokens": 3, "category_tokens": 2, "deep_tokens": 1}
    assert (info.text_width, info.vision_width, info.backbone) == (24, 32, "")
    assert info.values == sum(v.numel() for k, v in load(NAME).method.items() if k != "beta")


def test_their_file_through_ours_and_back(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = load(NAME).clip
    with caplog.at_level(logging.WARNING):
        method = read_official(file, clip, method=NAME)
    assert not caplog.records and not method.training
    assert float(method.beta) == 0.5, "beta is not in the file"
    write_official(method, file.with_name("written.pth"))
    written, original = torch.load(file.with_name("written.pth"), weights_only=True), authors_content()
    assert written.keys() == original.keys()
    ours, theirs = flatten(written), flatten(original)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].shape == value.shape and ours[key].dtype == value.dtype, key
        if key.removeprefix("model.").startswith(UNUSED):
            assert not ours[key].any(), key
        elif key == "model.token_embedding.weight":
            assert torch.equal(ours[key][:-1], value[:-1])
        else:
            assert torch.equal(ours[key], value), key


def test_ours_through_their_file_and_back(tmp_path: Path) -> None:
    clip = load(NAME).clip
    method = build(NAME, clip, idp_tokens=5, deep_tokens=2)
    method.reset(torch.Generator().manual_seed(1))
    write_official(method, tmp_path / "x.pth")
    again = read_official(tmp_path / "x.pth", clip)
    assert again.config == method.config
    for key, value in method.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_file_without_idp_is_read_on_request(file: Path) -> None:
    """Their code saves IDP and Pre-VCP both; only the user knows which was trained."""
    method = read_official(file, load(NAME).clip, idp=False, uniop=False)
    assert method.idp is None and method.alpha is None
    assert torch.equal(method.category, load(NAME).method["New_Lan_Embed.prompt_query"][0])
    with pytest.raises(BadOption, match="idp_tokens is 4, but"):
        read_official(file, load(NAME).clip, idp_tokens=4)


def test_file_of_the_papers_size() -> None:
    with torch.device("meta"):
        large = CLIP(CLIPConfig())
    made = build(NAME, large)
    flat = {name: torch.zeros(p.shape, device="meta") for name, p in made.named_parameters()}
    content = {
        "trainable_linearlayer": {"fc.0.weight": flat["linear.0.weight"]},
        "New_Lan_Embed": {"prompt_query": torch.zeros(1, 2, 768, device="meta")},
        "prompt_token_embedding.prompt_tokens": flat["idp.tokens"][None],
    }
    info = recognise(content)
    assert info is not None and info.method == NAME and info.backbone == "ViT-L-14-336"


def test_missing_parts_wrong_backbone_and_method(file: Path) -> None:
    with pytest.raises(BadCheckpoint, match="holds vcp_clip_plus, not vcp_clip"):
        read_official(file, load(NAME).clip, method="vcp_clip")
    with pytest.raises(BadCheckpoint, match="text width 24, this one has 20"):
        read_official(file, make_clip(CONFIG))
    content = authors_content()
    del content["alpha"]
    torch.save(content, file)
    with pytest.raises(BadCheckpoint, match=r"1 of \d+ tensors are missing, first alpha"):
        read_official(file, load(NAME).clip)


def test_other_words_are_warned_about(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = authors_content()
    content["model"]["token_embedding.weight"] = torch.randn(49_409, 24)
    torch.save(content, file)
    with caplog.at_level(logging.WARNING):
        read_official(file, load(NAME).clip)
    assert "other word embeddings" in caplog.text


def test_vcp_clip_is_not_mistaken() -> None:
    info = recognise(to_official(build("vcp_clip", load("vcp_clip").clip)))
    assert info is not None and info.method == "vcp_clip"


@pytest.mark.parametrize("options", [{"idp": False}, {"uniop": False}, {"preset": "baseline"}])
def test_variants_their_files_cannot_hold(options: dict[str, Any]) -> None:
    with pytest.raises(BadOption, match="idp and uniop"):
        to_official(build(NAME, load(NAME).clip, **options))
    with pytest.raises(BadOption, match="joint width"):
        to_official(build(NAME, make_clip(CONFIG), **options))
