"""Text embeddings of an evaluation: as .npz files of each class, and all of them as a picture in two dimensions.

The picture shows what the prompts make of images: whether the texts follow the class, the single image, or
nothing, and how far normal and abnormal lie apart.
"""

from __future__ import annotations

import colorsys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from blemish.errors import BadDataset
from blemish.files import printable_name, write_whole
from blemish.output.pictures import png_bytes

STATES = ("normal", "abnormal")
SIDE, MARGIN, LEGEND, LINE = 860, 56, 250, 20
MOST_POINTS = 20_000
# Drawn larger and made smaller, as PIL draws without smooth edges.
FINE = 2
PAPER, INK, FAINT, GRID = (255, 255, 255), (24, 20, 32), (110, 104, 120), (226, 222, 230)


@dataclass(frozen=True)
class ClassTexts:
    """The text embeddings of one class's images.

    images: their paths. labels: 1 anomalous. rows: float32 (N, 2, D), or (N, layers, 2, D) where layers have
    texts of their own; unit rows, normal before abnormal.
    """

    class_name: str
    images: tuple[str, ...]
    labels: tuple[int, ...]
    rows: np.ndarray

    def __post_init__(self) -> None:
        shape, count = self.rows.shape, len(self.images)
        if len(shape) not in (3, 4) or shape[-2] != len(STATES) or not count == len(self.labels) == shape[0]:
            raise ValueError(
                f"embeddings are {shape} for {count} images; expected (N, 2, D) or (N, layers, 2, D)"
            )


def write_texts(path: Path, texts: ClassTexts) -> None:
    """One class as a packed .npz file. Raises OutputError.

    Arrays: "image" and "label" (N,), "class_name" (), and "normal" and "abnormal", float32 (N, D) or
    (N, layers, D).
    """
    normal, abnormal = (texts.rows[..., i, :].astype(np.float32) for i in range(len(STATES)))
    write_whole(
        path,
        lambda file: np.savez_compressed(
            file,
            image=np.array(texts.images, dtype=np.str_),
            label=np.array(texts.labels, dtype=np.int8),
            class_name=np.array(texts.class_name),
            normal=normal,
            abnormal=abnormal,
        ),
    )


def read_texts(path: Path) -> ClassTexts:
    """The reverse of `write_texts`. Raises BadDataset for a file that is missing, damaged or another."""
    try:
        with np.load(path, allow_pickle=False) as file:
            rows = np.stack([file[state] for state in STATES], axis=-2)
            images, labels = tuple(map(str, file["image"])), tuple(map(int, file["label"]))
            return ClassTexts(str(file["class_name"]), images, labels, rows)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BadDataset(f"{printable_name(path)}: cannot be read as text embeddings ({error})") from error


def project(rows: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """The two directions in which embeddings (N, D) differ most (principal components).

    Returns coordinates (N, 2), centred, and the share of all variance on each axis (0 where nothing differs).
    The sign of an axis is that which makes its largest entry positive, so equal data give equal pictures.
    """
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    total = float((sizes**2).sum())
    # What is left of equal rows is rounding, which has directions too.
    if total <= 1e-10 * len(rows):
        return np.zeros((len(rows), 2)), (0.0, 0.0)
    axes = axes[:2] * np.sign(axes[np.arange(len(axes[:2])), np.abs(axes[:2]).argmax(axis=1)])[:, None]
    places = np.zeros((len(rows), 2))
    places[:, : len(axes)] = centred @ axes.T
    shares = [*(float(s**2) / total for s in sizes[:2]), 0.0][:2]
    return places, (shares[0], shares[1])


def draw_projection(classes: Sequence[ClassTexts], title: str) -> np.ndarray:
    """All texts of a method in two dimensions: a colour for each class, a ring for normal, a cross for abnormal.

    Layers with texts of their own are averaged. Both axes have one scale. Returns uint8 (h, w, 3). Raises
    ValueError when there is nothing to draw.
    """
    kept = [texts for texts in classes if len(texts.images)]
    if not kept:
        raise ValueError("no text embeddings to draw")
    means = [t.rows if t.rows.ndim == 3 else t.rows.mean(axis=1) for t in kept]
    step = -(-sum(map(len, means)) * len(STATES) // MOST_POINTS)
    if step > 1:
        means, title = [rows[::step] for rows in means], f"{title} (one image of {step})"
    places, shares = project(np.concatenate([rows.reshape(-1, rows.shape[-1]) for rows in means]))
    colors = [_color(i, len(kept)) for i in range(len(kept))]
    height = max(SIDE, 2 * MARGIN + LINE * (len(kept) + 6))
    sheet = Image.new("RGB", ((SIDE + LEGEND) * FINE, height * FINE), PAPER)
    pen = _Pen(sheet)
    reach = float(np.abs(places).max()) or 1.0
    points = (places * [1, -1] / reach * 0.94 + 1) / 2 * (SIDE - 2 * MARGIN) + MARGIN
    _frame(pen, title, shares)
    # Class by class, alternating: otherwise the last class would hide the others.
    owner = np.repeat(np.arange(len(kept)), [2 * len(rows) for rows in means])
    state = np.arange(len(owner)) % len(STATES)
    for i in np.random.default_rng(0).permutation(len(owner)):
        pen.mark(points[i], int(state[i]), colors[owner[i]])
    _legend(pen, [t.class_name for t in kept], colors)
    small = sheet.resize((SIDE + LEGEND, height), Image.Resampling.BOX)
    return np.asarray(small)


def write_projection(path: Path, classes: Sequence[ClassTexts], title: str) -> None:
    """`draw_projection` as PNG. Raises OutputError."""
    write_whole(path, png_bytes(draw_projection(classes, title)))


class _Pen:
    """Draws in pixels of the finished picture."""

    def __init__(self, sheet: Image.Image) -> None:
        self.draw = ImageDraw.Draw(sheet)
        self.font = ImageFont.load_default(13 * FINE)

    def write(self, x: float, y: float, text: str, color: tuple[int, int, int] = INK) -> None:
        self.draw.text((x * FINE, y * FINE), text, fill=color, font=self.font)

    def line(self, *ends: float, color: tuple[int, int, int] = GRID, width: float = 1) -> None:
        self.draw.line([FINE * end for end in ends], fill=color, width=round(width * FINE))

    def mark(self, place: Sequence[float] | np.ndarray, state: int, color: tuple[int, int, int]) -> None:
        """A ring for state 0, a cross for state 1."""
        x, y = (float(value) for value in place)
        if state:
            self.line(x - 4, y - 4, x + 4, y + 4, color=color, width=1.5)
            self.line(x - 4, y + 4, x + 4, y - 4, color=color, width=1.5)
        else:
            box = [FINE * value for value in (x - 4.5, y - 4.5, x + 4.5, y + 4.5)]
            self.draw.ellipse(box, outline=color, width=round(1.5 * FINE))


def _frame(pen: _Pen, title: str, shares: tuple[float, float]) -> None:
    low, high, middle = MARGIN, SIDE - MARGIN, SIDE / 2
    for ends in (
        (low, low, high, low),
        (low, high, high, high),
        (low, low, low, high),
        (high, low, high, high),
    ):
        pen.line(*ends)
    pen.line(low, middle, high, middle)
    pen.line(middle, low, middle, high)
    pen.write(low, low - 2 * LINE, title)
    words = f"across: {shares[0]:.1%} of the variance, up: {shares[1]:.1%}; principal components, one scale"
    pen.write(low, high + 8, words, FAINT)


def _legend(pen: _Pen, names: Sequence[str], colors: Sequence[tuple[int, int, int]]) -> None:
    left = SIDE
    for i, state in enumerate(STATES):
        pen.mark((left, MARGIN + i * LINE), i, INK)
        pen.write(left + 14, MARGIN + i * LINE - 8, state)
    for i, (name, color) in enumerate(zip(names, colors, strict=True)):
        y = MARGIN + (i + 3) * LINE
        pen.draw.rectangle([FINE * v for v in (left - 5, y - 5, left + 5, y + 5)], fill=color)
        pen.write(left + 14, y - 8, name if len(name) < 32 else f"{name[:30]}...")


def _color(number: int, count: int) -> tuple[int, int, int]:
    """One of `count` hues, neighbours in the list apart in lightness too."""
    lightness = (0.42, 0.58, 0.34)[number % 3]
    red, green, blue = colorsys.hls_to_rgb(number / count, lightness, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)
