"""The authors' file of ViP2-CLIP: round trips, the state word in it, and refusals."""

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

NAME = "vip2_clip"


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return load(NAME).clip


def authors_content(legacy: bool = True) -> dict[str, Any]:
    """The golden parts nested as the authors' program saves them, with the buffers of the specification."""
    golden = load(NAME)
    content: dict[str, Any] = {"prompt_learner": {}, "Zero_try": {}}
    for key, value in golden.method.items():
        group, _, rest = key.partition(".")
        content[group][rest] = value
    ids = golden.config["token_ids"]
    for state, name in (("normal", "pos"), ("abnormal", "neg")):
        padded = torch.tensor([ids[state] + [0] * (77 - len(ids[state]))], dtype=torch.int32)
        words = golden.clip.embed(torch.tensor(ids["abnormal" if legacy else state] + [0] * 64))[None]
        parts = {"prefix": words[:, :1], "middle": words[:, 8:9], "suffix": words[:, 12:]}
        content["prompt_learner"] |= {f"token_{part}_{name}": t.clone() for part, t in parts.items()}
        content["prompt_learner"][f"tokenized_prompts_{name}"] = padded
    return content


def save(content: dict[str, Any], folder: Path) -> Path:
    path = folder / "visa_train_epoch_10.pth"
    torch.save(content, path)
    return path


@pytest.mark.parametrize("legacy", [True, False])
def test_their_file_through_ours_and_back(clip: CLIP, legacy: bool, tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        method = read_official(save(authors_content(legacy), tmp_path), clip)
    assert not caplog.records and not method.training
    assert method.config.legacy_state_word is legacy
    write_official(method, tmp_path / "written.pth")
    written = torch.load(tmp_path / "written.pth", weights_only=True)
    original = authors_content(legacy)
    assert written.keys() == original.keys()
    for group, tensors in original.items():
        assert written[group].keys() == tensors.keys()
        for key, value in tensors.items():
            got = written[group][key]
            assert got.shape == value.shape and got.dtype == value.dtype, key
            torch.testing.assert_close(got, value, atol=1e-6 if key == "prompt_temp_l1" else 0.0, rtol=0)


@pytest.mark.parametrize("options", [{}, {"n_static": 4, "n_dynamic": 2, "legacy_state_word": True}], ids=str)
def test_ours_through_their_file_and_back(clip: CLIP, options: dict[str, Any], tmp_path: Path) -> None:
    method = build(NAME, clip, **options)
    method.reset(torch.Generator().manual_seed(1))
    write_official(method, tmp_path / "x.pth")
    again = read_official(tmp_path / "x.pth", clip, NAME)
    assert again.config == method.config
    for key, value in method.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_recognised_by_content(tmp_path: Path) -> None:
    path = save(authors_content(), tmp_path).rename(tmp_path / "weights.bin")
    for source in (path, str(path), authors_content()):
        info = recognise(source)
        assert info is not None and info.method == NAME and info.backbone == ""
        assert (info.text_width, info.vision_width) == (32, None)
        assert info.options == {"n_static": 7, "n_dynamic": 3}
        assert info.defaults == {"legacy_state_word": True}
    bare = authors_content()
    bare["prompt_learner"] = {k: v for k, v in bare["prompt_learner"].items() if not k.startswith("token")}
    info = recognise(bare)
    assert info is not None and info.method == NAME and info.defaults == {}


def test_file_of_the_papers_size() -> None:
    with torch.device("meta"):
        large = CLIP(CLIPConfig())
    method = build(NAME, large)
    shapes = {k: torch.empty(v.shape) for k, v in method.state_dict().items()}
    info = recognise(
        {
            "prompt_learner": {
                "cls_ctx": shapes["object_tokens"],
                "ctx_pos": shapes["normal_context"],
                "ctx_neg": shapes["abnormal_context"],
                **{k: v for k, v in shapes.items() if k.startswith("meta")},
            },
            "Zero_try": {k: v for k, v in shapes.items() if k.startswith("fgp")}
            | {"prompt_temp_l1": torch.zeros(())},
        }
    )
    assert info is not None and info.values == 4_149_121 and info.backbone == "ViT-L-14-336"


def test_word_of_the_file_yields_to_the_callers(clip: CLIP, tmp_path: Path) -> None:
    path = save(authors_content(), tmp_path)
    assert not read_official(path, clip, legacy_state_word=False).config.legacy_state_word
    with pytest.raises(BadOption, match="n_static is 9, but"):
        read_official(path, clip, n_static=9)


def test_ablations_read_what_they_need(clip: CLIP, tmp_path: Path) -> None:
    path = save(authors_content(), tmp_path)
    for off in ("use_vca", "use_fgp"):
        method = read_official(path, clip, **{off: False})
        assert torch.equal(
            method.normal_context, authors_content()["prompt_learner"]["ctx_pos"].to(torch.float32)
        )
        with pytest.raises(BadOption, match="use_vca and use_fgp must be on"):
            to_official(method)


def test_other_files_are_refused(clip: CLIP, tmp_path: Path) -> None:
    path = save(authors_content(), tmp_path)
    with pytest.raises(BadCheckpoint, match="holds vip2_clip, not anomaly_clip"):
        read_official(path, clip, method="anomaly_clip")
    with pytest.raises(BadCheckpoint, match="needs a backbone of text width 32, this one has 20"):
        read_official(path, make_clip(CONFIG))


@pytest.mark.parametrize(
    ("group", "key"),
    [
        ("prompt_learner", "ctx_neg"),
        ("prompt_learner", "cls_prompter.fc.1.2.bias"),
        ("Zero_try", "q_proj_pre.weight"),
    ],
)
def test_missing_and_misshapen_tensors_are_named(clip: CLIP, group: str, key: str, tmp_path: Path) -> None:
    content = authors_content()
    value = content[group].pop(key)
    with pytest.raises(BadCheckpoint, match=rf"1 of 24 tensors are missing, first .*{key}"):
        read_official(save(content, tmp_path), clip)
    content[group][key] = torch.cat([value, value])
    with pytest.raises(BadCheckpoint, match=f"{key} is "):
        read_official(save(content, tmp_path), clip)


@pytest.mark.parametrize("key", ["token_prefix_pos", "token_middle_neg", "token_suffix_neg"])
def test_other_words_are_warned_about(
    clip: CLIP, key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = authors_content()
    content["prompt_learner"][key] = torch.randn_like(content["prompt_learner"][key])
    with caplog.at_level(logging.WARNING):
        read_official(save(content, tmp_path), clip)
    assert "other word embeddings" in caplog.text and key in caplog.text


def test_unknown_prompt_learners_are_none_of_ours() -> None:
    content = authors_content()
    assert recognise({"prompt_learner": content["prompt_learner"]}) is None
    assert recognise({"Zero_try": content["Zero_try"]}) is None
    assert len(flatten(content)) == 25 + 8
