"""Text embeddings: files there and back, the projection against its definition, the picture by its pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.errors import BadDataset
from blemish.output.embeddings import (
    MARGIN,
    MOST_POINTS,
    PAPER,
    SIDE,
    ClassTexts,
    draw_projection,
    project,
    read_texts,
    write_projection,
    write_texts,
)


def texts(name: str = "nut", count: int = 5, layers: int = 0, seed: int = 0) -> ClassTexts:
    rows = np.random.default_rng(seed).normal(size=(count, *([layers] if layers else []), 2, 16))
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    images = tuple(f"{name}/ü {i}.png" for i in range(count))
    return ClassTexts(name, images, tuple(i % 2 for i in range(count)), rows.astype(np.float32))


@pytest.mark.parametrize(("count", "layers"), [(5, 0), (3, 4), (0, 0)])
def test_files_hold_everything(tmp_path: Path, count: int, layers: int) -> None:
    given, path = texts("Größe 2", count, layers), tmp_path / "a/b.npz"
    write_texts(path, given)
    found = read_texts(path)
    assert (found.class_name, found.images, found.labels) == (given.class_name, given.images, given.labels)
    assert np.array_equal(found.rows, given.rows) and found.rows.dtype == np.float32
    with np.load(path, allow_pickle=False) as file:
        assert sorted(file.files) == ["abnormal", "class_name", "image", "label", "normal"]
        assert np.array_equal(file["abnormal"], given.rows[..., 1, :])


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for content in (None, b"", b"PK\x03\x04 cut short", b"words"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BadDataset, match=r"a\.npz: cannot be read as text embeddings"):
            read_texts(path)
    np.savez(path, normal=np.zeros((2, 3)))
    with pytest.raises(BadDataset):
        read_texts(path)
    with pytest.raises(ValueError, match="for 4 images"):
        ClassTexts("a", ("x",) * 4, (0,) * 4, np.zeros((3, 2, 8)))


def test_projection_keeps_most_of_the_variance() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 8)) * [5, 3, 1, 1, 0.5, 0.5, 0.1, 0.1]
    places, shares = project(rows)
    values = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
    assert shares == pytest.approx(tuple(values[:2] / values.sum()))
    np.testing.assert_allclose(places.var(axis=0, ddof=1), values[:2])
    np.testing.assert_allclose(places.mean(axis=0), 0, atol=1e-12)
    again, _ = project(-rows[::-1])
    np.testing.assert_allclose(np.abs(again[::-1]), np.abs(places), atol=1e-9)
    np.testing.assert_array_equal(project(rows)[0], places)


def test_projection_of_little() -> None:
    for rows in (np.ones((1, 4)), np.ones((6, 4), dtype=np.float32) / 2):
        places, shares = project(rows)
        assert shares == (0.0, 0.0) and not places.any() and places.shape == (len(rows), 2)
    places, shares = project(np.array([[1.0, 0, 0], [0, 1.0, 0]]))
    assert shares == pytest.approx((1, 0)) and np.abs(places[:, 0]) == pytest.approx(np.sqrt(0.5))
    assert project(np.array([[1.0], [2.0]]))[0].shape == (2, 2)


def colors(picture: np.ndarray) -> set[tuple[int, ...]]:
    """Strong colours inside the frame."""
    inside = picture[MARGIN + 2 : SIDE - MARGIN - 2, MARGIN + 2 : SIDE - MARGIN - 2].reshape(-1, 3)
    strong = inside[np.ptp(inside, axis=1) > 60]
    found, counts = np.unique(strong, axis=0, return_counts=True)
    return {tuple(map(int, c)) for c, n in zip(found, counts, strict=True) if n > 8}


def test_every_class_has_a_colour_of_its_own(tmp_path: Path) -> None:
    classes = [texts(f"class {i}", 12, seed=i) for i in range(5)]
    picture = draw_projection(classes, "Texts")
    assert picture.dtype == np.uint8 and tuple(picture[0, 0]) == PAPER
    assert len(colors(picture)) >= 5 > len(colors(draw_projection(classes[:1], "Texts")))
    np.testing.assert_array_equal(draw_projection(classes, "Texts"), picture)
    write_projection(tmp_path / "x/a.png", classes, "Texts")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x/a.png")), picture)


def test_two_points_lie_at_both_ends() -> None:
    """Texts that depend on no image: a ring and a cross, on the line through the middle."""
    rows = np.zeros((9, 2, 4), dtype=np.float32)
    rows[:, 0, 0] = rows[:, 1, 1] = 1
    picture = draw_projection([ClassTexts("all", ("a",) * 9, (0,) * 9, rows)], "Texts").astype(int)
    inside = np.ptp(picture, axis=2)[:, : SIDE - MARGIN] > 60
    y, x = np.nonzero(inside)
    assert abs(y.mean() - SIDE / 2) < 2 and y.max() - y.min() < 14
    assert {bool(v > SIDE / 2) for v in x} == {True, False} and x.max() - x.min() > 650
    middle = np.abs(np.subtract.outer(x, [x.min() + 5, x.max() - 5])).argmin(axis=1)
    assert set(middle) == {0, 1}


def test_many_classes_many_images_and_layers() -> None:
    many = [texts(f"a class with a rather long name, number {i}", 2, layers=3, seed=i) for i in range(60)]
    assert draw_projection([*many, texts("empty", 0)], "Texts").shape[0] > SIDE
    with pytest.raises(ValueError, match="no text embeddings"):
        draw_projection([texts("empty", 0)], "Texts")
    rows = np.zeros((MOST_POINTS, 2, 2), dtype=np.float32)
    rows[:, 0, 0] = rows[:, 1, 1] = 1
    large = ClassTexts("large", ("a",) * MOST_POINTS, (0,) * MOST_POINTS, rows)
    assert draw_projection([large], "Texts").shape[0] == SIDE
