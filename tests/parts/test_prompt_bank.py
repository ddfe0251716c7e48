from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.model import CLIP
from blemish.clip.tokenizer import Tokenizer
from blemish.parts import prompt_bank
from blemish.parts.prompt_bank import (
    APRIL_TEMPLATES,
    BANKS,
    OPENAI_BEST,
    OPENAI_TEMPLATES,
    WINCLIP_TEMPLATES,
    BankTexts,
    PromptBank,
    encode_sentences,
)

VISION = VisionConfig(width=16, layers=1, heads=2, patch_size=8, image_size=16, mlp_width=16)
TEXT = TextConfig(width=16, layers=2, heads=2, mlp_width=32)


@pytest.fixture(scope="module")
def clip() -> CLIP:
    torch.manual_seed(0)
    made = CLIP(CLIPConfig(embed_dim=12, vision=VISION, text=TEXT)).reset_parameters().freeze()
    made.tokenizer = Tokenizer.clip()
    return made


@pytest.mark.parametrize(
    ("name", "normal", "abnormal"),
    [
        ("winclip", 154, 88),
        ("winclip_legacy21", 147, 84),
        ("april35", 245, 175),
        ("ada4", 28, 20),
        ("aaclip", 6, 10),
        ("anovl", 462, 462),
        ("anovl_texture", 462, 462),
        ("openai80", 80, 80),
        ("openai7", 7, 7),
    ],
)
def test_numbers_of_sentences(name: str, normal: int, abnormal: int) -> None:
    found = BANKS[name].sentences("screw")
    assert tuple(map(len, found)) == (normal, abnormal)
    assert all(
        "screw" in s and "{" not in s and "@" not in s and "  " not in s for s in (*found[0], *found[1])
    )
    if name != "winclip_legacy21":
        assert all(count == 1 for both in found for count in Counter(both).values())


@pytest.mark.parametrize(
    ("name", "side", "sentence"),
    [
        ("winclip", 0, "a cropped photo of a screw"),
        ("winclip", 0, "a photo of the small flawless screw"),
        ("winclip", 0, "a photo of a screw without defect for visual inspection"),
        ("winclip", 1, "a jpeg corrupted photo of the damaged screw"),
        ("winclip", 1, "a photo of the screw with flaw for anomaly detection"),
        ("winclip_legacy21", 0, "a close-up photo of a unblemished screw."),
        ("april35", 0, "a photo of the cool perfect screw."),
        ("april35", 0, "there is a screw in the scene."),
        ("april35", 0, "this is one screw without damage in the scene."),
        ("april35", 1, "a black and white photo of a broken screw."),
        ("april35", 1, "a photo of my screw with defect."),
        ("ada4", 1, "a low resolution photo of the broken screw."),
        ("aaclip", 0, "a photo of the screw."),
        ("aaclip", 1, "a broken screw."),
        ("aaclip", 1, "a photo of a screw with flaw."),
        ("anovl", 0, "a bright industrial image of the normal screw"),
        ("anovl", 1, "a manufacturing image of a imperfect screw for visual inspection"),
        ("anovl_texture", 1, "a surface picture of the small blemished screw"),
        ("anovl_texture", 0, "a dark textural photo of a flawless screw"),
        ("openai80", 0, "a normal screw in a video game."),
        ("openai80", 1, "a photo of the hard to see anomalous screw."),
        ("openai80", 1, "graffiti of a anomalous screw."),
        ("openai7", 1, "itap of a anomalous screw."),
    ],
)
def test_exact_sentences(name: str, side: int, sentence: str) -> None:
    found = BANKS[name].sentences("screw")
    assert sentence in found[side] and sentence not in found[1 - side]


def test_states() -> None:
    plain = {name: PromptBank(b.normal, b.abnormal, ("{}",)).sentences("x") for name, b in BANKS.items()}
    without = ["x without flaw", "x without defect", "x without damage"]
    flawed = ["x with flaw", "x with defect", "x with damage"]
    for name in ("winclip", "winclip_legacy21", "april35", "ada4"):
        assert plain[name][0] == ["x", "flawless x", "perfect x", "unblemished x", *without]
        assert plain[name][1] == [
            "damaged x",
            *(["broken x"] if name in ("april35", "ada4") else []),
            *flawed,
        ]
    for name in ("anovl", "anovl_texture"):
        assert plain[name][0] == ["normal x", "flawless x", "perfect x", "unblemished x", *without]
        assert plain[name][1] == ["damaged x", "abnormal x", "imperfect x", "blemished x", *flawed]


def test_templates() -> None:
    assert (len(WINCLIP_TEMPLATES), len(APRIL_TEMPLATES), len(OPENAI_TEMPLATES)) == (22, 35, 80)
    assert set(OPENAI_BEST) < set(OPENAI_TEMPLATES)
    assert all(t.endswith(".") for t in (*APRIL_TEMPLATES, *OPENAI_TEMPLATES))
    legacy = Counter(BANKS["winclip_legacy21"].templates)
    assert sum(legacy.values()) == 21 and "a cropped photo of a {}." not in legacy
    assert legacy["a jpeg corrupted photo of the {}."] == 2
    assert "a jpeg corrupted photo of a {}." not in legacy


def test_class_names_with_braces_stay_as_they_are() -> None:
    assert BANKS["aaclip"].sentences("{} {x}")[0][0] == "{} {x}."


@torch.no_grad()
def test_prototypes_are_means_of_sentences(clip: CLIP) -> None:
    for each in (True, False):
        bank = PromptBank(("{}", "good {}"), ("bad {}",), ("a {}.", "the large {}."), normalise_each=each)
        found = bank.text_features(clip, "nut")
        for prototype, sentences in zip(found, bank.sentences("nut"), strict=True):
            rows = []
            for sentence in sentences:
                ids = clip.tokenizer([sentence], 77)  # type: ignore[misc]
                row = clip.encode_text(ids)[0]
                rows.append(row / row.norm() if each else row)
            mean = torch.stack(rows).mean(dim=0)
            torch.testing.assert_close(prototype, mean / mean.norm())


@torch.no_grad()
def test_long_class_names_and_many_sentences(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.isfinite(encode_sentences(clip, ["word " * 200])).all()
    sentences = BANKS["ada4"].sentences("nut")[0]
    at_once = encode_sentences(clip, sentences)
    monkeypatch.setattr(prompt_bank, "CHUNK", 5)
    torch.testing.assert_close(encode_sentences(clip, sentences), at_once)


def test_texts_per_image(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = BankTexts(clip, BANKS["aaclip"])
    assert texts.per_image(None, 3).shape == (1, 2, 12)
    assert torch.equal(texts.per_image(None, 3)[0], texts.of("object"))
    mixed = texts.per_image(["metal_nut", "screw", "metal nut"], 3)
    assert mixed.shape == (3, 2, 12) and torch.equal(mixed[0], mixed[2])
    torch.testing.assert_close(mixed.norm(dim=-1), torch.ones(3, 2))
    assert torch.equal(mixed[1], texts.of("screw"))
    with pytest.raises(ValueError, match="2 class names for 3 images"):
        texts.per_image(["a", "b"], 3)
    encoded: list[str] = []

    def record(bank: PromptBank, clip: CLIP, name: str, activation: str) -> torch.Tensor:
        encoded.append(name)
        return torch.eye(2, 12)

    monkeypatch.setattr(PromptBank, "text_features", record)
    texts.per_image(["screw", "tile", "screw"], 3)
    texts.per_image(["tile"], 1)
    assert encoded == ["tile"]


def test_texts_made_in_inference_mode_serve_training(clip: CLIP) -> None:
    texts = BankTexts(clip, BANKS["aaclip"])
    with torch.inference_mode():
        texts.of("screw")
    weight = torch.nn.Parameter(torch.ones(12))
    (F.normalize(texts.of("screw"), dim=-1) @ weight).sum().backward()
    assert weight.grad is not None and not texts.of("screw").requires_grad


def test_few_classes_are_kept(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_bank, "KEPT", 3)
    texts = BankTexts(clip, PromptBank(("{}",), ("bad {}",), ("{}",)))
    for i in range(10):
        texts.of(f"thing {i}")
    assert len(texts._known) == 3
