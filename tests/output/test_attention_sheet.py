"""The table of attention maps, by its pixels."""

from __future__ import annotations

import numpy as np
import pytest

from blemish.output.attention import GAP, LABELS, LINE, PANEL, attention_sheet


def drawn(layers: int = 2, heads: int = 3, grid: tuple[int, int] = (4, 6)) -> np.ndarray:
    """Even attention everywhere."""
    return np.full((layers, heads, 2, *grid), 1 / (grid[0] * grid[1]), dtype=np.float32)


def panel(sheet: np.ndarray, row: int, column: int, height: int) -> np.ndarray:
    top, left = LINE + row * (height + LINE + GAP) + LINE, LABELS + column * (PANEL + GAP)
    return sheet[top : top + height, left : left + PANEL].astype(int)


def test_rows_are_layers_and_texts_and_columns_are_heads() -> None:
    image = np.full((400, 600, 3), 90, dtype=np.uint8)
    height = 96
    even = attention_sheet(image, drawn(), (6, 12))
    assert even.dtype == np.uint8 and even.shape[1] == LABELS + 4 * (PANEL + GAP)
    assert even.shape[0] == LINE + 4 * (height + LINE + GAP) + 3 * LINE
    attention = drawn()
    attention[1, 2, 0] = 0
    attention[1, 2, 0, 3, 5] = 1
    sheet = attention_sheet(image, attention, (6, 12))
    changed = {
        (row, column)
        for row in range(4)
        for column in range(4)
        if not np.array_equal(panel(sheet, row, column, height), panel(even, row, column, height))
    }
    # Layer 2, normal text: its third head, and the mean of the heads before them.
    assert changed == {(2, 3), (2, 0)}
    found = panel(sheet, 2, 3, height)
    # The patch at the bottom right takes all attention and has an edge; the rest is the photo.
    assert (found[72:, 120:] == found[-1, -1]).all() and (found[-1, -1] != 90).any()
    assert (found[:72] == 90).all() and (found[:, :120] == 90).all()


def test_colours_mean_the_same_in_every_picture() -> None:
    image = np.full((60, 60, 3), 90, dtype=np.uint8)
    one = attention_sheet(image, drawn(1, 1, (2, 2)), (24,))
    fine = attention_sheet(image, drawn(1, 1, (32, 32)), (24,))
    np.testing.assert_array_equal(panel(one, 0, 1, PANEL), panel(fine, 0, 1, PANEL))
    twice = drawn(1, 1, (2, 2))
    twice[..., 0, :], twice[..., 1, :] = 0.5, 0
    found = panel(attention_sheet(image, twice, (24,)), 0, 1, PANEL)
    assert np.abs(found[0, 0] - 90).sum() > np.abs(panel(one, 0, 1, PANEL)[0, 0] - 90).sum()


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 2), (1500, 1100)])
def test_pictures_of_any_size(size: tuple[int, int]) -> None:
    sheet = attention_sheet(np.zeros((*size, 3), dtype=np.uint8), drawn(1, 2), (3,))
    assert sheet.shape[2] == 3 and max(sheet.shape) < 700


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="for 3 blocks"):
        attention_sheet(np.zeros((9, 9, 3), dtype=np.uint8), drawn(), (1, 2, 3))
