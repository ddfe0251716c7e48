"""Captions name state, defect, material, colour and shape; the vocabulary is large and stable."""

from __future__ import annotations

import numpy as np
import pytest

from blemish.synth import DEFECTS, MATERIALS, SHAPES, captions, draw, vocabulary_texts, wrong_captions
from blemish.synth.captions import (
    ABNORMAL_STATES,
    DEFECT_WORDS,
    GENERIC,
    MATERIAL_WORDS,
    NORMAL_STATES,
    SHAPE_WORDS,
    extent,
    nouns_of,
    states_of,
)
from blemish.synth.palette import COLOURS, colour_name


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_every_name_has_words() -> None:
    assert set(MATERIAL_WORDS) == set(MATERIALS)
    assert set(SHAPE_WORDS) == set(SHAPES)
    assert set(DEFECT_WORDS) == set(DEFECTS)


@pytest.mark.parametrize("seed", range(8))
def test_captions_agree_with_the_state(seed: int) -> None:
    picture = draw(rng(seed), 96)
    texts = captions(picture, rng(seed, 1), 60)
    assert len(texts) == 60
    assert len(set(texts)) > 20
    wrong = NORMAL_STATES if picture.defect_type else ABNORMAL_STATES
    for text in texts:
        assert not set(wrong) & set(text.replace(".", "").split()), text
    if picture.defect_type:
        assert any(word in text for text in texts for word in DEFECT_WORDS[picture.defect_type][0])
        assert picture.states[: len(ABNORMAL_STATES)] == ABNORMAL_STATES
    else:
        assert picture.states == NORMAL_STATES
    assert any(word in text for text in texts for word in nouns_of(picture.material, picture.shape))
    assert any(word in text for text in texts for word in MATERIAL_WORDS[picture.material])
    assert any(picture.colour in text for text in texts)
    assert any(word in text.replace(".", "").split() for text in texts for word in GENERIC)


def test_the_plain_wordings_occur() -> None:
    good, bad = (draw(rng(0), 96, defect=d) for d in (False, True))
    normal, abnormal = captions(good, rng(1), 3000), captions(bad, rng(2), 3000)
    shapes = nouns_of(good.material, good.shape)
    assert any(f"a photo of a good {shape}" in normal for shape in shapes)
    assert "a photo of a normal object" in normal
    assert "object." in normal
    assert any(f"a photo of a damaged {shape}" in abnormal for shape in nouns_of(bad.material, bad.shape))
    assert "a photo of an anomalous object" in abnormal
    assert "damaged object." in abnormal


@pytest.mark.parametrize("seed", range(6))
def test_wrong_captions_are_false_in_one_respect(seed: int) -> None:
    picture = draw(rng(seed), 96)
    texts = wrong_captions(picture, rng(seed, 1), 80)
    assert len(texts) == 80 and len(set(texts)) > 40
    assert texts == wrong_captions(picture, rng(seed, 1), 80)
    states = [text.startswith("a damaged") for text in texts]
    flipped = [state != (picture.defect_type is not None) for state in states]
    assert 15 < sum(flipped) < 50
    for text in (text for text, other_state in zip(texts, flipped, strict=True) if not other_state):
        padded = f" {text} "
        respects = [
            (picture.colour,),
            MATERIAL_WORDS[picture.material],
            nouns_of(picture.material, picture.shape),
            DEFECT_WORDS[picture.defect_type][0] if picture.defect_type else ("without", "in good condition"),
        ]
        true = [any(f" {word} " in padded for word in words) for words in respects]
        assert sum(true) >= 2 and not all(true), text


def test_size_and_place() -> None:
    mask = np.zeros((90, 90), dtype=bool)
    mask[2:5, 80:82] = True
    assert extent(mask) == ("tiny", "at the top right")
    mask[:] = False
    mask[40:50, 40:50] = True
    assert extent(mask) == ("small", "in the middle")
    mask[35:55, 0:60] = True
    assert extent(mask)[0] == "large"
    picture = draw(rng(3), 96, defect=True)
    assert any(extent(picture.mask)[1] in text for text in captions(picture, rng(4), 200))


def test_captions_are_seeded() -> None:
    picture = draw(rng(5), 96)
    assert captions(picture, rng(6), 10) == captions(picture, rng(6), 10)
    assert captions(picture, rng(6), 10) != captions(picture, rng(7), 10)
    assert captions(picture, rng(6), 0) == []


def test_states_of_several_defects_are_unique() -> None:
    states = states_of(("scratch", "stain", "scratch"))
    assert {"scratched", "stained", "damaged"} <= set(states)
    assert len(states) == len(set(states))


def test_vocabulary_is_large_and_contains_what_methods_say() -> None:
    texts = vocabulary_texts()
    assert len(texts) > 10_000
    assert texts == vocabulary_texts()
    words = {word.strip(".,") for text in texts for word in text.split()}
    assert {"photo", "good", "damaged", "object", "without", "defect", "bottle", "pcb", "transistor"} <= words
    assert set(COLOURS) <= words
    assert {"damaged object.", "object.", "a photo of a good bottle"} <= set(texts)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0.02, 0.02, 0.02), "black"),
        ((0.95, 0.95, 0.95), "white"),
        ((0.5, 0.5, 0.5), "grey"),
        ((0.9, 0.1, 0.1), "red"),
        ((0.1, 0.7, 0.2), "green"),
        ((0.1, 0.2, 0.8), "blue"),
        ((0.45, 0.28, 0.15), "brown"),
    ],
)
def test_colour_names(rgb: tuple[float, float, float], name: str) -> None:
    assert colour_name(rgb) == name
    assert name in COLOURS
