"""Names of all materials, shapes and defect types, and which of them may be drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from blemish.errors import UnknownName
from blemish.synth.baked import BAKED
from blemish.synth.boards import BOARDS
from blemish.synth.breaks import BREAKS
from blemish.synth.defects import COMMON, Defect
from blemish.synth.fields import Rng
from blemish.synth.films import FILMS
from blemish.synth.lesions import LESIONS
from blemish.synth.objects import SHAPES as SIMPLE
from blemish.synth.objects import Form
from blemish.synth.patterns import PATTERNS
from blemish.synth.products import PRODUCTS
from blemish.synth.scans import SCANS
from blemish.synth.structural import LINE_ART, PARTS
from blemish.synth.textures import NATURAL, Material

SURFACE = "surface"
MATERIAL_FUNCTIONS: dict[str, Material] = {**NATURAL, **BAKED, **PATTERNS, **BOARDS, **SCANS}
OUTLINES: dict[str, Callable[[Rng, int], Form]] = {**SIMPLE, **PRODUCTS}
DEFECT_FUNCTIONS: dict[str, Defect] = {
    **COMMON, **FILMS, **PARTS, **BREAKS, **LINE_ART, **LESIONS,
}  # fmt: skip
MATERIALS: tuple[str, ...] = tuple(MATERIAL_FUNCTIONS)
SHAPES: tuple[str, ...] = (SURFACE, *OUTLINES)
DEFECTS: tuple[str, ...] = tuple(DEFECT_FUNCTIONS)


@dataclass(frozen=True)
class Families:
    """Which materials, shapes and defect types may be drawn; all by default.

    Raises UnknownName for a name that does not exist and ValueError for an empty choice.
    """

    materials: tuple[str, ...] = MATERIALS
    shapes: tuple[str, ...] = SHAPES
    defects: tuple[str, ...] = DEFECTS

    def __post_init__(self) -> None:
        for kind, names, known in (
            ("material", self.materials, MATERIALS),
            ("shape", self.shapes, SHAPES),
            ("defect", self.defects, DEFECTS),
        ):
            if not names:
                raise ValueError(f"no {kind} to draw: Families needs at least one of {', '.join(known)}")
            for name in names:
                if name not in known:
                    raise UnknownName(kind, name, known)

    def without(
        self, *, materials: tuple[str, ...] = (), shapes: tuple[str, ...] = (), defects: tuple[str, ...] = ()
    ) -> Families:
        """The same families less the named ones (unknown names raise UnknownName)."""
        Families(materials or MATERIALS, shapes or SHAPES, defects or DEFECTS)
        return Families(
            tuple(n for n in self.materials if n not in materials),
            tuple(n for n in self.shapes if n not in shapes),
            tuple(n for n in self.defects if n not in defects),
        )


@dataclass(frozen=True)
class Home:
    """Where a defect belongs: on some of these materials and shapes."""

    materials: tuple[str, ...] = MATERIALS
    shapes: tuple[str, ...] = SHAPES


OBJECTS = tuple(OUTLINES)
BODIES = (
    "plastic", "paint", "brushed", "steel", "cast", "wood", "rubber", "ceramic", "stone", "foam", "glass",
)  # fmt: skip
"""Materials that most objects are made of."""
GROWN = ("cookie", "kernel", "heap")
"""Things of which no two are alike, drawn somewhat more often: their own variety has to be told from defects."""
FOOD = ("dough", "peel", "foam", "wood", "plastic")
METAL = ("steel", "brushed", "cast", "paint")
USUAL_MATERIALS = {
    "cookie": ("dough", "dough", "dough", "foam", "stone"),
    "kernel": ("peel", "peel", "wood", "dough"),
    "heap": FOOD,
    "tube": ("plastic", "wood", "peel", "paint", "rubber"),
    "capsule": ("plastic", "paint", "ceramic", "stone"),
    "bottle": ("glass", "plastic", "ceramic", "paint"),
    "component": ("plastic", "rubber", "paint"),
    "cable": ("plastic", "rubber"),
    **dict.fromkeys(("nut", "bolt", "gear", "bracket", "washer", "shaft", "plate"), METAL),
}
"""What objects of a shape are mostly made of."""
WIRED = ("circuit", "leadframe", "mesh", "panel", "printed")
HOMES: dict[str, Home] = {
    **dict.fromkeys(LINE_ART, Home(WIRED, (SURFACE,))),
    "misprint": Home(("printed", "panel"), (SURFACE,)),
    "weave_error": Home(("fabric", "knit"), (SURFACE,)),
    **dict.fromkeys(("broken", "bent", "crumbs"), Home(shapes=OBJECTS)),
    "lesion": Home(("skin",), (SURFACE,)),
    "polyp": Home(("endoscopy", "tissue"), (SURFACE,)),
    "tumour": Home(("mri", "ct"), (SURFACE,)),
    "bleed": Home(("ct", "mri"), (SURFACE,)),
    "nodule": Home(("ultrasound",), (SURFACE,)),
    "opacity": Home(("xray",), (SURFACE,)),
}
"""Defects that are found in some places only. Elsewhere they are not drawn, save print on whatever has line art."""
LIVING = ("skin", "tissue", *SCANS)
"""Materials on which defects of made things are seldom seen."""

HELD_OUT = Families(
    materials=(
        "leather", "marble", "foam", "ceramic", "knit", "tiles", "panel", "steel",
        "peel", "leadframe", "honeycomb", "ct", "endoscopy",
    ),
    shapes=(SURFACE, "gear", "bracket", "capsule", "plate", "kernel", "cable"),
    defects=(
        "crack", "burn", "lump", "cut", "foreign", "chip", "open_circuit", "misplaced", "mouse_bite",
        "oil", "poke", "bent", "weave_error", "polyp", "bleed",
    ),
)  # fmt: skip
TRAINING = Families().without(
    materials=HELD_OUT.materials,
    shapes=tuple(name for name in HELD_OUT.shapes if name != SURFACE),
    defects=HELD_OUT.defects,
)
