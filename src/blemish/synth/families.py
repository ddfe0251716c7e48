"""Names of all materials, shapes and defect types, and which of them may be drawn."""

from __future__ import annotations

from dataclasses import dataclass

from blemish.errors import UnknownName
from blemish.synth.defects import COMMON, Defect
from blemish.synth.objects import SHAPES as OUTLINES
from blemish.synth.patterns import PATTERNS
from blemish.synth.structural import LINE_ART, PARTS
from blemish.synth.textures import NATURAL, Material

SURFACE = "surface"
MATERIAL_FUNCTIONS: dict[str, Material] = {**NATURAL, **PATTERNS}
DEFECT_FUNCTIONS: dict[str, Defect] = {**COMMON, **PARTS, **LINE_ART}
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


HELD_OUT = Families(
    materials=("leather", "marble", "foam", "ceramic", "knit", "tiles", "panel", "steel"),
    shapes=(SURFACE, "gear", "bracket", "capsule", "plate"),
    defects=("crack", "burn", "lump", "cut", "foreign", "chip", "open_circuit", "misplaced"),
)
TRAINING = Families().without(
    materials=HELD_OUT.materials,
    shapes=tuple(name for name in HELD_OUT.shapes if name != SURFACE),
    defects=HELD_OUT.defects,
)
