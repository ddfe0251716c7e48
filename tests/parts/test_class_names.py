from __future__ import annotations

import pytest
import torch

from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.model import CLIP
from blemish.clip.tokenizer import Tokenizer
from blemish.parts.class_names import ClassNameFilter, cleaned, spaced

VISION = VisionConfig(width=16, layers=1, heads=2, patch_size=8, image_size=16, mlp_width=16)
TEXT = TextConfig(width=16, layers=1, heads=2, mlp_width=16)


@pytest.fixture(scope="module")
def clip() -> CLIP:
    torch.manual_seed(0)
    made = CLIP(CLIPConfig(embed_dim=16, vision=VISION, text=TEXT)).reset_parameters().freeze()
    made.tokenizer = Tokenizer.clip()
    return made


def text(clip: CLIP, words: str) -> torch.Tensor:
    """The frozen CLIP's own text feature, by the ordinary way through token ids."""
    assert clip.tokenizer is not None
    ids = [clip.tokenizer.sot, *clip.tokenizer.encode(words), clip.tokenizer.eot]
    return clip.encode_text(torch.tensor([ids]))[0]


@pytest.mark.parametrize(
    ("name", "plain", "clean"),
    [
        ("chewinggum", "chewinggum", "chewinggum"),
        ("pipe_fryum", "pipe fryum", "pipe fryum"),
        ("macaroni1", "macaroni1", "macaroni"),
        ("macaroni2", "macaroni2", "macaroni"),
        ("pcb4", "pcb4", "pcb"),
        ("01", "01", ""),
        ("Metal-Nut_02 ", "metal nut 02", "metal nut"),
        ("bracket_black", "bracket black", "bracket black"),
        ("", "", ""),
    ],
)
def test_names_as_written_in_prompts(name: str, plain: str, clean: str) -> None:
    assert spaced(name) == plain and cleaned(name) == clean


def test_table_of_the_paper(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's outcomes on VisA, when CLIP's judgements are as the paper reports them."""
    unseen = ("chewinggum", "fryum", "pipe fryum")
    chosen = ClassNameFilter(clip, "object")
    monkeypatch.setattr(chosen, "fits", lambda _, terms: [t not in unseen for t in terms])
    names = ["chewinggum", "fryum", "pipe_fryum", "macaroni1", "macaroni2", "pcb1", "pcb4", "01"]
    expected = ["object", "object", "object", "macaroni", "macaroni", "pcb", "pcb", "object"]
    assert chosen.per_image(torch.zeros(8, 16), names) == expected


@torch.no_grad()
def test_the_closer_text_wins(clip: CLIP) -> None:
    chosen = ClassNameFilter(clip, "object")
    own, other = text(clip, "A photo of a pipe fryum"), text(clip, "A photo of an object")
    images = torch.stack([3 * own, other, own + 0.99 * other / other.norm() * own.norm()])
    assert chosen.per_image(images, ["pipe_fryum"] * 3) == ["pipe fryum", "object", "pipe fryum"]
    assert chosen.per_image(images, ["01", "object", "02"]) == ["object"] * 3


@torch.no_grad()
def test_generic_words_have_their_article(clip: CLIP) -> None:
    for generic, sentence in (("item", "A photo of an item"), ("product", "A photo of a product")):
        chosen = ClassNameFilter(clip, generic)
        assert chosen.per_image(text(clip, sentence)[None], ["screw"]) == [generic]
        assert chosen.per_image(text(clip, "A photo of a screw")[None], ["screw"]) == ["screw"]


@torch.no_grad()
def test_majority_of_a_class(clip: CLIP) -> None:
    chosen = ClassNameFilter(clip, "object")
    own, other = text(clip, "A photo of a screw"), text(clip, "A photo of an object")
    images = torch.stack([own, own, other])
    assert chosen.per_class(images, ["screw"] * 3) == ["screw"] * 3
    assert chosen.per_class(images[1:], ["screw"] * 2) == ["screw"] * 2, "a tie keeps the name"
    chosen.vote(torch.stack([other, other, own]), ["screw1"] * 3)
    assert chosen.per_class(images, ["screw1"] * 3) == ["object"] * 3, "earlier votes decide"
    assert chosen.per_class(images, ["screw2"] * 3) == ["screw"] * 3, "another class votes for itself"
    mixed = chosen.per_class(images[[0, 2, 2]], ["screw1", "screw2", "screw2"])
    assert mixed == ["object"] * 3
    chosen.clear()
    assert chosen.per_class(images, ["screw1"] * 3) == ["screw"] * 3
