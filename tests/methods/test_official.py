"""The authors' files: round trips with the golden parts in their own nesting, and every refusal."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from small_clip import CONFIG, make_clip

from blemish.clip.config import CLIPConfig
from blemish.clip.model import CLIP
from blemish.errors import BadCheckpoint, BadOption, OutputError
from blemish.methods import build
from blemish.methods.official import flatten, read_official, recognise, to_official, write_official
from golden_data import load

GROUPS = ("trainable_linearlayer", "New_Lan_Embed", "Zero_try")


def authors_content(name: str) -> dict[str, Any]:
    """The golden parts nested as the authors' programs save them."""
    flat = dict(load(name).method)
    if name == "anomaly_clip":
        width = flat["ctx_pos"].shape[-1]
        for i in range(sum(key.startswith("compound_prompts_text.") for key in flat)):
            flat.setdefault(f"compound_prompt_projections.{i}.weight", torch.randn(896, width))
            flat.setdefault(f"compound_prompt_projections.{i}.bias", torch.randn(896))
        return {"prompt_learner": flat}
    content: dict[str, Any] = {}
    for key, value in flat.items():
        group, _, rest = key.partition(".")
        if group in GROUPS:
            content.setdefault(group, {})[rest] = value
        else:
            # top-level entries are saved as parameters, not plain tensors
            content[key] = torch.nn.Parameter(value)
    return content


@pytest.fixture(params=["anomaly_clip", "vcp_clip"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def file(name: str, tmp_path: Path) -> Path:
    path = tmp_path / "epoch_15.pth"
    torch.save(authors_content(name), path)
    return path


def test_their_file_through_ours_and_back(name: str, file: Path, tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        method = read_official(file, load(name).clip)
    assert not caplog.records
    assert not method.training
    write_official(method, tmp_path / "written.pth")
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []
    written = torch.load(tmp_path / "written.pth", weights_only=True)
    original = authors_content(name)
    assert written.keys() == original.keys()
    ours, theirs = flatten(written), flatten(original)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].shape == value.shape and ours[key].dtype == value.dtype, key
        if "projections" not in key and key != "prompt_text_projection":
            assert torch.equal(ours[key], value), key
        else:
            assert not ours[key].any()


def test_ours_through_their_file_and_back(name: str, tmp_path: Path) -> None:
    clip = load(name).clip
    method = build(name, clip)
    method.reset(torch.Generator().manual_seed(1))
    write_official(method, tmp_path / "x.pth")
    again = read_official(tmp_path / "x.pth", clip)
    assert again.config == method.config
    for key, value in method.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_recognised_by_content(name: str, file: Path) -> None:
    renamed = file.rename(file.with_name("weights.bin"))
    for source in (renamed, str(renamed), authors_content(name)):
        info = recognise(source)
        assert info is not None and info.method == name and info.backbone == ""
        assert info.text_width == load(name).clip.config.text.width
    if name == "anomaly_clip":
        learner = load(name).config["prompt_learner"]
        assert info.options == {key: learner[key] for key in ("n_ctx", "depth", "t_n_ctx")}
    else:
        config = load(name).config
        lengths = {"category_tokens": config["prompt_len"], "deep_tokens": config["deep_prompt_len"]}
        assert info.options == lengths


def test_shapes_decide_options(tmp_path: Path) -> None:
    clip = load("anomaly_clip").clip
    write_official(build("anomaly_clip", clip, n_ctx=5, depth=4, t_n_ctx=3), tmp_path / "a.pth")
    made = read_official(tmp_path / "a.pth", clip, sigma=2.0)
    assert (made.config.n_ctx, made.config.depth, made.config.t_n_ctx, made.config.sigma) == (5, 4, 3, 2.0)
    with pytest.raises(BadOption, match="n_ctx is 12, but"):
        read_official(tmp_path / "a.pth", clip, n_ctx=12)
    clip = load("vcp_clip").clip
    write_official(build("vcp_clip", clip, category_tokens=3, deep_tokens=2), tmp_path / "v.pth")
    made = read_official(tmp_path / "v.pth", clip, alpha=0.5)
    assert (made.config.category_tokens, made.config.deep_tokens, made.config.alpha) == (3, 2, 0.5)


def test_file_of_the_papers_size() -> None:
    with torch.device("meta"):
        large = CLIP(CLIPConfig())
    method = build("vcp_clip", large).to_empty(device="cpu")
    method.reset()
    content = to_official(method)
    info = recognise(content)
    assert info is not None and info.values == 8_277_770
    assert info.backbone == "ViT-L-14-336" and (info.text_width, info.vision_width) == (768, 1024)
    learner = {
        "ctx_pos": torch.zeros(1, 1, 12, 768),
        "ctx_neg": torch.zeros(1, 1, 12, 768),
        **{f"compound_prompts_text.{i}": torch.zeros(4, 768) for i in range(8)},
    }
    info = recognise({"prompt_learner": learner})
    assert info is not None and info.backbone == "ViT-L-14-336" and info.values == 43_008


def test_wrong_backbone_is_explained(tmp_path: Path) -> None:
    torch.save({"prompt_learner": {"ctx_pos": torch.zeros(1, 1, 12, 768)}}, tmp_path / "a.pth")
    with pytest.raises(BadCheckpoint) as caught:
        read_official(tmp_path / "a.pth", make_clip(CONFIG))
    text = str(caught.value)
    assert "text width 768" in text and "has 20" in text and "ViT-L-14-336" in text


def test_wrong_method_is_explained(name: str, file: Path) -> None:
    other = "vcp_clip" if name == "anomaly_clip" else "anomaly_clip"
    with pytest.raises(BadCheckpoint, match=f"holds {name}, not {other}"):
        read_official(file, load(name).clip, method=other)


def test_missing_and_misshapen_tensors_are_named(name: str, tmp_path: Path) -> None:
    content = authors_content(name)
    group, key = ("prompt_learner", "ctx_neg") if name == "anomaly_clip" else ("Zero_try", "q_proj_pre.bias")
    value = content[group].pop(key)
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(BadCheckpoint, match=rf"1 of \d+ tensors are missing, first .*{key}"):
        read_official(tmp_path / "x.pth", load(name).clip)
    content[group][key] = value[..., :-1]
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(BadCheckpoint, match=f"{key} is "):
        read_official(tmp_path / "x.pth", load(name).clip)


def test_surplus_tensors_are_ignored(name: str, tmp_path: Path) -> None:
    content = authors_content(name)
    next(v for v in content.values() if isinstance(v, dict))["surplus"] = torch.zeros(3)
    torch.save(content, tmp_path / "x.pth")
    read_official(tmp_path / "x.pth", load(name).clip)


def test_other_words_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = authors_content("anomaly_clip")
    learner = content["prompt_learner"]
    learner["token_suffix_neg"] = torch.randn_like(learner["token_suffix_neg"])
    torch.save(content, tmp_path / "x.pth")
    with caplog.at_level(logging.WARNING):
        read_official(tmp_path / "x.pth", load("anomaly_clip").clip)
    assert "other word embeddings" in caplog.text and "token_suffix_neg" in caplog.text


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("/tmp/blemish_was_here"),)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "error::UserWarning")
@pytest.mark.parametrize(
    "kind", ["text", "empty", "truncated", "list", "other", "other_methods", "pickle", "script"]
)
def test_other_files_are_none_of_ours(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    whole = tmp_path / "whole.pth"
    torch.save(authors_content("anomaly_clip"), whole)
    contents: dict[str, Any] = {
        "list": [torch.zeros(2)],
        "other": {"state_dict": {"ctx_pos": torch.zeros(2)}, "prompt_learner": {"ctx_pos": torch.zeros(())}},
        "other_methods": {
            "prompt_learner": {"cls_ctx": torch.zeros(3, 8), "ctx_pos": torch.zeros(1, 1, 7, 8)}
        },
        "pickle": {"prompt_learner": Malicious()},
    }
    if kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        path.write_bytes(whole.read_bytes()[:-1000])
    elif kind == "script":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    else:
        torch.save(contents[kind], path)
    assert recognise(path) is None
    assert not Path("/tmp/blemish_was_here").exists()
    with pytest.raises(BadCheckpoint, match="no authors' checkpoint"):
        read_official(path, load("anomaly_clip").clip)


def test_variants_their_files_cannot_hold() -> None:
    anomaly, vcp = load("anomaly_clip").clip, load("vcp_clip").clip
    for method in (
        build("anomaly_clip", anomaly, object_aware=True),
        build("vcp_clip", vcp, "baseline"),
        build("vcp_clip", anomaly),
    ):
        with pytest.raises(BadOption):
            to_official(method)
    shared = to_official(build("anomaly_clip", anomaly, shared_words=True))["prompt_learner"]
    assert torch.equal(shared["ctx_pos"], shared["ctx_neg"])


def test_paths_that_cannot_be_used(tmp_path: Path) -> None:
    clip = load("vcp_clip").clip
    with pytest.raises(BadCheckpoint, match="does not exist"):
        read_official(tmp_path / "missing.pth", clip)
    with pytest.raises(BadCheckpoint, match="is no file"):
        read_official(tmp_path, clip)
    with pytest.raises(OutputError, match="cannot write"):
        write_official(build("vcp_clip", clip), tmp_path / "missing" / "x.pth")
    assert list(tmp_path.iterdir()) == []
