"""Sentences about pictures: state, defect, material, colour and shape in many wordings.

`vocabulary_texts` also speaks of real products, textures and scans, so that a tokenizer trained on it knows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from blemish.synth.palette import COLOURS

if TYPE_CHECKING:
    import numpy as np

    from blemish.synth.draw import Picture

NORMAL_STATES = (
    "good",
    "normal",
    "perfect",
    "flawless",
    "intact",
    "undamaged",
    "unblemished",
    "clean",
    "faultless",
)
ABNORMAL_STATES = (
    "damaged",
    "defective",
    "anomalous",
    "abnormal",
    "faulty",
    "imperfect",
    "flawed",
    "blemished",
)
GENERIC = (
    "object",
    "surface",
    "texture",
    "part",
    "item",
    "product",
    "thing",
    "workpiece",
    "sample",
    "component",
)

MATERIAL_WORDS: dict[str, tuple[str, ...]] = {
    "plastic": ("plastic", "plain plastic"), "paint": ("painted", "lacquered", "coated"),
    "brushed": ("brushed metal", "metal", "metallic"), "steel": ("steel", "rolled steel", "metal"),
    "cast": ("cast metal", "rough cast", "metal"), "wood": ("wood", "wooden"), "leather": ("leather",),
    "skin": ("skin",), "tissue": ("tissue", "mucous tissue"), "stone": ("stone", "granite"),
    "concrete": ("concrete", "cement"), "marble": ("marble", "veined stone"),
    "asphalt": ("asphalt", "gritty", "road"), "carpet": ("carpet", "pile"),
    "paper": ("paper", "cardboard"), "rubber": ("rubber",), "ceramic": ("ceramic", "glazed", "porcelain"),
    "foam": ("foam", "sponge", "porous"), "fabric": ("fabric", "woven fabric", "textile", "cloth"),
    "knit": ("knitted", "knitwear"), "stripes": ("striped", "lined"),
    "checks": ("chequered", "plaid", "checked"), "corrugated": ("corrugated", "ribbed"),
    "dots": ("dotted", "perforated", "studded"), "cells": ("cellular", "pebbled", "grained"),
    "tiles": ("tiled", "tile", "brick"), "mesh": ("mesh", "grid", "wire"),
    "panel": ("solar cell", "panel"), "printed": ("printed", "label"),
    "circuit": ("circuit board", "pcb", "printed circuit"),
    "dough": ("baked", "dough", "cookie", "biscuit"), "peel": ("fruit", "peel", "vegetable"),
    "glass": ("glass", "glossy", "screen"), "road": ("road", "asphalt", "pavement"),
    "honeycomb": ("honeycomb", "perforated", "hexagonal"), "zipper": ("zipper", "toothed"),
    "bristles": ("bristle", "brush", "toothbrush"), "leadframe": ("lead frame", "chip", "wafer"),
    "board": ("circuit board", "pcb", "assembled board"), "mri": ("brain", "brain mri", "head mri"),
    "ct": ("brain", "head ct", "brain ct"), "ultrasound": ("ultrasound", "thyroid"),
    "xray": ("chest", "x-ray", "lung"), "endoscopy": ("colon", "endoscopy", "bowel"),
}  # fmt: skip
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "surface": ("surface", "texture", "sheet"), "disc": ("disc", "cap", "coin", "lid"), "washer": ("washer", "ring"),
    "bar": ("bar", "rod", "block", "strip"), "nut": ("nut", "hexagon"), "bolt": ("bolt", "screw"),
    "capsule": ("capsule", "pill", "tablet"), "plate": ("plate", "panel"), "bracket": ("bracket", "angle"),
    "gear": ("gear", "toothed wheel"), "cookie": ("cookie", "biscuit", "lump", "nugget"),
    "shaft": ("shaft", "spindle", "cylinder", "tube"), "row": ("row of parts", "array", "set of parts"),
    "bottle": ("bottle", "cup", "lid", "bottle top"), "cable": ("cable", "wire"),
    "component": ("component", "transistor", "chip", "connector"), "tube": ("tube", "candle", "dowel", "hose"),
    "heap": ("set of pieces", "group of parts", "pile"), "kernel": ("nut", "fruit", "hazelnut", "cashew", "potato"),
}  # fmt: skip
NOUNS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("mri", "ct"), ("scan", "image", "slice", "section")),
    "ultrasound": ("scan", "image", "picture"),
    "xray": ("image", "picture", "radiograph"),
    "endoscopy": ("image", "view", "picture"),
    "board": ("board", "assembly", "surface"),
    "zipper": ("zipper", "fastener", "surface"),
    "bristles": ("brush", "head", "surface"),
}
"""Nouns for full-frame materials that are more than a surface."""
DEFECT_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "scratch": (("scratch", "scratches", "scrape"), ("scratched",)),
    "streak": (("streak", "line", "missing thread", "roller mark"), ("streaked",)),
    "crack": (("crack", "fracture", "fissure"), ("cracked", "fractured")),
    "hole": (("hole", "puncture", "pit"), ("punctured", "pierced")),
    "pits": (("pits", "pores", "spots", "specks"), ("pitted", "spotted")),
    "stain": (("stain", "spot", "smudge", "liquid stain"), ("stained", "dirty")),
    "discolouration": (("discolouration", "colour defect", "wrong colour"), ("discoloured", "faded")),
    "contamination": (("contamination", "dirt", "residue", "foreign material"), ("contaminated", "dirty")),
    "warp": (("distortion", "deformation"), ("distorted", "deformed", "bent")),
    "smear": (("smear", "worn spot", "blur"), ("smeared", "worn")),
    "dent": (("dent", "dimple", "bump"), ("dented",)),
    "lump": (("lump", "blister", "polyp", "swelling", "lesion", "tumor"), ("swollen", "blistered")),
    "wrinkle": (("wrinkle", "fold", "crease"), ("wrinkled", "creased", "folded")),
    "cut": (("cut", "slit", "tear"), ("cut", "torn")),
    "thread": (("thread", "hair", "fibre", "loose thread"), ("soiled",)),
    "burn": (("burn", "rust", "scorch mark", "corrosion"), ("burnt", "rusty")),
    "missing": (("missing part", "missing piece", "broken piece"), ("broken", "incomplete")),
    "chip": (("chip", "flake", "spalling"), ("chipped", "flaked")),
    "foreign": (("foreign object", "extra part", "debris"), ("contaminated",)),
    "misplaced": (("misplaced part", "shifted part", "misalignment"), ("misplaced", "misaligned")),
    "open_circuit": (("open circuit", "break", "gap"), ("interrupted", "broken")),
    "short": (("short circuit", "short", "bridge"), ("shorted", "bridged")),
    "spur": (("spur", "protrusion", "burr"), ("faulty",)),
    "mouse_bite": (("mouse bite", "nick", "notch"), ("nicked",)),
    "pinhole": (("pin hole", "pinhole", "void"), ("faulty",)),
    "island": (("spurious copper", "island", "splash"), ("faulty",)),
    "oil": (("oil", "oil stain", "grease", "wet spot"), ("oily", "greasy")),
    "glue": (("glue", "glue strip", "adhesive", "wax drop"), ("sticky", "contaminated")),
    "mould": (("mould", "fungus", "rot"), ("mouldy", "rotten")),
    "poke": (("poke", "prick", "poked hole"), ("poked", "pierced")),
    "abrasion": (("abrasion", "rough patch", "wear mark"), ("abraded", "worn", "rough")),
    "crumbs": (("crumbs", "fragments", "chippings"), ("crumbling",)),
    "broken": (("break", "broken piece", "fracture"), ("broken", "fractured")),
    "bent": (("bend", "bent part", "bent lead"), ("bent", "crooked")),
    "wrong_colour": (("wrong colour", "colour spot", "wrong part"), ("discoloured", "mixed up")),
    "turned": (("turned part", "flipped part", "rotated part"), ("misaligned", "flipped")),
    "weave_error": (("weaving fault", "missing thread", "pulled thread", "broken yarn"), ("frayed", "snagged")),
    "misprint": (("misprint", "faulty imprint", "print error"), ("misprinted",)),
    "lesion": (("lesion", "mole", "melanoma", "rash"), ("diseased",)),
    "polyp": (("polyp", "growth", "swelling"), ("diseased", "swollen")),
    "tumour": (("tumor", "tumour", "mass"), ("diseased",)),
    "bleed": (("haemorrhage", "hemorrhage", "bleeding"), ("diseased", "bleeding")),
    "nodule": (("nodule", "cyst", "mass"), ("diseased",)),
    "opacity": (("opacity", "infiltrate", "pneumonia"), ("diseased",)),
}  # fmt: skip
_VIEWS = (
    "a photo of {}", "a photo of {} for visual inspection", "a close-up photo of {}", "a cropped photo of {}",
    "a picture of {}", "a bright photo of {}", "a blurry photo of {}", "there is {} in the scene", "{}", "{}.",
    "an image of {}",
)  # fmt: skip
_MASS = {
    "discolouration", "contamination", "dirt", "residue", "foreign material", "rust", "corrosion",
    "debris", "spalling", "spurious copper", "misalignment", "swelling", "distortion", "deformation",
    "oil", "grease", "glue", "adhesive", "mould", "fungus", "rot", "haemorrhage", "hemorrhage", "bleeding",
    "pneumonia", "melanoma",
}  # fmt: skip
_NORMAL = (
    "{article} {state} {noun}", "{thing} without defect", "{thing} without damage", "{thing} without flaw",
    "{article} {state} {thing}", "{noun} without any defect", "{thing}, no defect",
    "{thing} in good condition", "{state} {noun}", "{state} {thing}",
)  # fmt: skip
_ABNORMAL = (
    "{article} {state} {noun}", "{thing} with a defect", "{thing} with damage", "{thing} with flaw",
    "{article} {state} {thing}", "a {noun} with {defect}", "{thing} with {defect}", "{defect} on {noun}",
    "{state} {noun}", "{state} {thing}", "{noun} that has {defect}", "{thing}, {defect}",
    "{defect} on a {thing}",
)  # fmt: skip
_THIRDS = (("top", "", "bottom"), ("left", "", "right"))
PRODUCTS = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal nut", "pill", "screw",
    "tile", "toothbrush", "transistor", "wood", "zipper", "candle", "capsules", "cashew", "chewing gum",
    "fryum", "macaroni", "pcb", "pipe fryum", "bracket black", "bracket brown", "bracket white",
    "connector", "metal plate", "tubes", "brain", "liver", "retina", "chest", "skin", "colon", "thyroid",
    "head", "solar panel", "road", "bridge", "concrete wall", "steel strip", "magnetic tile", "rail",
    "ball screw", "cookie", "biscuit", "textile", "printed circuit board", "circuit board", "phone screen",
    "kitchen tile", "aluminium", "electrical commutator", "bagel", "cable gland", "carrot", "dowel",
    "foam", "peach", "potato", "rope", "tire", "car", "engine", "glass", "ceramic", "weld", "gear",
    "bearing", "casting", "plastic cap", "box", "label", "food", "fruit", "fabric", "knitwear", "wafer",
    "chip", "lens", "battery", "wheel", "pipe", "tissue", "polyp", "scan", "x-ray image",
    "microscope image", "photo",
)  # fmt: skip


def states_of(defects: Sequence[str]) -> tuple[str, ...]:
    """Words for the state of a picture with these defects: the general ones, then those of each defect."""
    own = [word for name in dict.fromkeys(defects) for word in DEFECT_WORDS[name][1]]
    return (*ABNORMAL_STATES, *dict.fromkeys(own))


def nouns_of(material: str, shape: str) -> tuple[str, ...]:
    """The words for what is seen: of the shape, or of a material that fills the picture with more than itself."""
    return NOUNS.get(material, SHAPE_WORDS[shape]) if shape == "surface" else SHAPE_WORDS[shape]


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _one(defect: str) -> str:
    """The words for a defect with their article, which plurals and substances have none of."""
    return defect if defect.endswith("s") or defect in _MASS else f"{_article(defect)} {defect}"


def _sentence(
    rng: np.random.Generator,
    words: tuple[str, str, str],
    defect: str | None,
    states: Sequence[str],
    view: str,
) -> str:
    """One sentence; words are (material, shape, colour) in everyday words."""
    material, shape, colour = words
    noun = _pick(rng, GENERIC) if rng.random() < 0.35 else shape
    parts = [w for w, share in ((colour, 0.7), (material, 0.8)) if rng.random() < share]
    thing = " ".join([*parts, noun])
    state = _pick(rng, states)
    if defect is None:
        template = _pick(rng, _NORMAL)
        named = ""
    else:
        template = _pick(rng, _ABNORMAL)
        named = _one(_pick(rng, DEFECT_WORDS[defect][0]))
    text = template.format(article=_article(state), state=state, noun=noun, thing=thing, defect=named)
    return view.format(text)


def _fixed(shape: str, normal: bool) -> tuple[str, ...]:
    """The plain wordings that methods use at test time."""
    nouns = (shape, "object")
    if normal:
        return tuple(
            t
            for n in nouns
            for t in (
                f"a photo of a good {n}", f"a photo of a normal {n}", f"a photo of a perfect {n}",
                f"a photo of a flawless {n}", f"{n}.", f"a photo of {_article(n)} {n}",
                f"{n} without defect", f"normal {n}", f"good {n}.",
            )
        )  # fmt: skip
    return tuple(
        t
        for n in nouns
        for t in (
            f"a photo of a damaged {n}", f"a photo of an anomalous {n}", f"a photo of a broken {n}",
            f"damaged {n}.", f"a photo of a defective {n}", f"{n} with defect",
            f"a photo of an abnormal {n}", f"abnormal {n}", f"{n} with flaw",
        )
    )  # fmt: skip


def title(rng: np.random.Generator, material: str, shape: str, colour: str, defect: str | None) -> str:
    """The full caption: colour, material and shape, and the defect or its absence."""
    thing = f"{colour} {_pick(rng, MATERIAL_WORDS[material])} {_pick(rng, nouns_of(material, shape))}"
    if defect is None:
        ending = _pick(rng, ("without defect", "without damage", "without flaw", "in good condition"))
        return f"{_article(colour)} {thing} {ending}"
    return f"a damaged {thing} with {_one(_pick(rng, DEFECT_WORDS[defect][0]))}"


def extent(mask: np.ndarray) -> tuple[str, str]:
    """Words for the size and the place of what a mask (H, W) marks: ("tiny", "at the top left")."""
    import numpy as np

    share = float(mask.mean())
    size = "tiny" if share < 0.002 else "small" if share < 0.02 else "" if share < 0.08 else "large"
    rows, columns = np.nonzero(mask)
    down = _THIRDS[0][min(2, int(3 * rows.mean() / mask.shape[0]))]
    across = _THIRDS[1][min(2, int(3 * columns.mean() / mask.shape[1]))]
    words = " ".join(word for word in (down, across) if word)
    return size, f"at the {words}" if words else "in the middle"


def _located(picture: Picture, rng: np.random.Generator) -> str:
    """A caption that also says how large the defect is and where."""
    assert picture.defect_type is not None
    size, place = extent(picture.mask)
    thing = f"{_pick(rng, MATERIAL_WORDS[picture.material])} {_pick(rng, nouns_of(picture.material, picture.shape))}"
    named = _one(_pick(rng, DEFECT_WORDS[picture.defect_type][0]))
    if size and named.startswith(("a ", "an ")):
        named = f"{_article(size)} {size} {named.split(' ', 1)[1]}"
    elif size:
        named = f"{size} {named}"
    return (
        f"{thing} with {named} {place}"
        if rng.random() < 0.6
        else f"{named} {place} of {_article(thing)} {thing}"
    )


def wrong_captions(picture: Picture, rng: np.random.Generator, n: int) -> list[str]:
    """n captions that are false of the picture, each in one respect: state, defect, material, shape or colour.

    They are close to true ones, as hard negatives of an image-text contrast need to be.
    """
    found: list[str] = []
    while len(found) < n:
        material, shape, colour, defect = picture.material, picture.shape, picture.colour, picture.defect_type
        kind = rng.random()
        if kind < 0.4:
            defect = _pick(rng, tuple(DEFECT_WORDS)) if defect is None else None
        elif kind < 0.6 and defect is not None:
            shared = set(DEFECT_WORDS[defect][0])
            defect = _pick(
                rng, [name for name, (words, _) in DEFECT_WORDS.items() if not shared & set(words)]
            )
        elif kind < 0.75:
            shared = set(MATERIAL_WORDS[material])
            material = _pick(rng, [name for name, words in MATERIAL_WORDS.items() if not shared & set(words)])
        elif kind < 0.88:
            shared = set(nouns_of(material, shape))
            shape = _pick(rng, [name for name in SHAPE_WORDS if not shared & set(nouns_of(material, name))])
        else:
            colour = _pick(rng, [name for name in COLOURS if name != colour])
        found.append(title(rng, material, shape, colour, defect))
    return found


def captions(picture: Picture, rng: np.random.Generator, n: int) -> list[str]:
    """n varied captions of a picture: its material, colour, shape, state and defect in changing words and order.

    Every caption says or implies whether there is a defect, except the bare class names. Repetitions may occur.
    """
    normal = picture.defect_type is None
    fixed = _fixed(_pick(rng, nouns_of(picture.material, picture.shape)), normal)
    found: list[str] = []
    for _ in range(n):
        kind = rng.random()
        if kind < 0.25:
            found.append(_pick(rng, fixed))
        elif kind < 0.32 and not normal:
            found.append(_located(picture, rng))
        elif kind < 0.4:
            found.append(title(rng, picture.material, picture.shape, picture.colour, picture.defect_type))
        else:
            words = (
                _pick(rng, MATERIAL_WORDS[picture.material]),
                _pick(rng, nouns_of(picture.material, picture.shape)),
                picture.colour,
            )
            found.append(_sentence(rng, words, picture.defect_type, picture.states, _pick(rng, _VIEWS)))
    return found


@lru_cache(maxsize=1)
def vocabulary_texts() -> list[str]:
    """About 30,000 varied sentences over the whole vocabulary, always the same: training text for a small tokenizer."""
    nouns = list(dict.fromkeys([*PRODUCTS, *GENERIC, *(w for ws in SHAPE_WORDS.values() for w in ws)]))
    own_states = [w for _, states in DEFECT_WORDS.values() for w in states]
    states = list(dict.fromkeys([*NORMAL_STATES, *ABNORMAL_STATES, *own_states]))
    texts: list[str] = []
    for index, noun in enumerate(nouns):
        texts += [*_fixed(noun, True), *_fixed(noun, False)]
        for turn, state in enumerate(states):
            view = _VIEWS[(index + turn) % len(_VIEWS)]
            texts.append(view.format(f"{_article(state)} {state} {noun}"))
        for turn, (kinds, _) in enumerate(DEFECT_WORDS.values()):
            for kind in kinds:
                view = _VIEWS[(index + turn + len(kind)) % len(_VIEWS)]
                texts.append(view.format(f"{_article(noun)} {noun} with {_one(kind)}"))
    places = [f"{down} {across}".strip() for down in _THIRDS[0] for across in _THIRDS[1]]
    for turn, (kinds, _) in enumerate(DEFECT_WORDS.values()):
        for kind in kinds:
            place = places[turn % len(places)] or "middle"
            texts += [f"{size} {kind} at the {place} in the middle" for size in ("tiny", "small", "large")]
    for turn, colour in enumerate(COLOURS):
        for materials in MATERIAL_WORDS.values():
            for material in materials:
                for shapes in SHAPE_WORDS.values():
                    shape = shapes[(turn + len(material)) % len(shapes)]
                    state = states[(turn + len(shape) + len(material)) % len(states)]
                    texts.append(f"{_article(state)} {state} {colour} {material} {shape}")
                    texts.append(f"{_article(colour)} {colour} {material} {shape} without defect")
    return texts
