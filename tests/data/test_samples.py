"""Pixels and masks of samples: boxes, mask files of every kind, and masks that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from blemish.data.images import read_image
from blemish.data.samples import apply_rule, load_mask, load_pixels, read_mask_values
from blemish.errors import BadImage
from blemish.types import Sample
from dataset_trees import put, put_boxes, put_crack, put_labelme, put_mask, put_text

SIZE = (12, 16)


def drawn() -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[:6, :8] = True
    return mask


def test_pixels_are_cut_to_the_box(tmp_path: Path) -> None:
    path = put(tmp_path / "a.png")
    whole = load_pixels(Sample(path, 0))
    assert np.array_equal(whole, read_image(path)) and whole.shape == (12, 16, 3)
    part = load_pixels(Sample(path, 0, box=(2, 3, 10, 12)))
    assert np.array_equal(part, whole[3:12, 2:10]) and part.flags.c_contiguous
    with pytest.raises(BadImage, match=r"a\.png: is 16×12.*outside"):
        load_pixels(Sample(path, 0, box=(0, 0, 16, 13)))
    with pytest.raises(BadImage, match="no such file"):
        load_pixels(Sample(tmp_path / "gone.png", 0))


def test_who_has_a_mask(tmp_path: Path) -> None:
    path = put_mask(tmp_path / "m.png")
    image = tmp_path / "a.png"
    normal = load_mask(Sample(image, 0, path), SIZE)
    assert normal is not None and not normal.any() and normal.shape == SIZE
    assert load_mask(Sample(image, 1), SIZE) is None
    assert load_mask(Sample(image, None), SIZE) is None
    anomalous = load_mask(Sample(image, 1, path), SIZE)
    assert anomalous is not None and anomalous.dtype == np.uint8
    assert np.array_equal(anomalous, drawn().astype(np.uint8) * 255)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "LA", "I;16", "I", "F"])
@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
def test_masks_of_every_mode(mode: str, ending: str, tmp_path: Path) -> None:
    values = drawn().astype(np.uint8) * 255
    image = Image.fromarray(values)
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray(drawn().astype(kind))  # ids of 1, which scaling to 8 bits would lose
    else:
        image = image.convert(mode)
    path = tmp_path / f"m.{ending}"
    try:
        image.save(path)
    except OSError:
        pytest.skip("the format has no such mode")
    mask = load_mask(Sample(tmp_path / "a.png", 1, path), SIZE)
    assert mask is not None and np.array_equal(mask > 0, drawn())


def test_colours_of_a_palette_count_and_not_its_numbers(tmp_path: Path) -> None:
    image = Image.fromarray(drawn().astype(np.uint8)).convert("P")
    image.putdata([0 if on else 1 for on in drawn().ravel()])
    image.putpalette([0, 0, 40, 0, 0, 0])  # number 0 is dark blue, number 1 black
    image.save(tmp_path / "m.png")
    mask = load_mask(Sample(tmp_path / "a.png", 1, tmp_path / "m.png"), SIZE)
    assert mask is not None and np.array_equal(mask > 0, drawn())


def test_class_ids_count(tmp_path: Path) -> None:
    path = put_mask(tmp_path / "m.png", value=3)
    mask = load_mask(Sample(tmp_path / "a.png", 1, path), SIZE)
    assert mask is not None and np.array_equal(mask > 0, drawn())


def test_jpeg_noise_is_cut_by_the_rule(tmp_path: Path) -> None:
    path = put_mask(tmp_path / "m.jpg", (67, 45))
    truth = np.zeros((45, 67), dtype=bool)
    truth[:22, :33] = True
    cut = load_mask(Sample(tmp_path / "a.png", 1, path, mask_rule=">127"), (45, 67))
    loose = load_mask(Sample(tmp_path / "a.png", 1, path), (45, 67))
    assert cut is not None and loose is not None
    assert ((cut > 0) != truth).sum() < 10 < (loose > 0).sum() - truth.sum()


def test_crack_forest_label_map(tmp_path: Path) -> None:
    crack = put_crack(tmp_path / "001.mat")
    sample = Sample(tmp_path / "001.jpg", 1, tmp_path / "001.mat", mask_rule="==2")
    mask = load_mask(sample, SIZE)
    assert mask is not None and np.array_equal(mask > 0, crack)
    assert set(np.unique(read_mask_values(tmp_path / "001.mat"))) == {1, 2, 3}


def test_labelme_polygons_rectangles_circles(tmp_path: Path) -> None:
    path = put_labelme(tmp_path / "a.json")
    mask = load_mask(Sample(tmp_path / "a.jpg", 1, path), SIZE)
    assert mask is not None and mask[3:6, 3:7].all() and not mask[9:].any() and not mask[:, 10:].any()
    contents = json.loads(path.read_text())
    contents["shapes"] = [
        {"points": [[8, 7], [2, 4]], "shape_type": "rectangle"},
        {"points": [[12, 5], [12, 7]], "shape_type": "circle"},
    ]
    both = read_mask_values(put_text(path, json.dumps(contents)))
    assert both[4:8, 2:9].all() and both[5, 12] == 255 and both[5, 9] == 0
    contents["shapes"] = [{"points": [[8, 7], [2, 4]], "shape_type": "line"}]
    with pytest.raises(BadImage, match=r"a\.json: a line of 2 points encloses no area"):
        read_mask_values(put_text(path, json.dumps(contents)))


def test_boxes_of_pascal_voc(tmp_path: Path) -> None:
    values = read_mask_values(put_boxes(tmp_path / "a.xml", (3, 2, 6, 40)))
    assert values.shape == SIZE and values[1:, 2:6].all() and (values > 0).sum() == 44
    with pytest.raises(BadImage, match="lacks <size/width>"):
        read_mask_values(put_text(tmp_path / "b.xml", "<annotation></annotation>"))


@pytest.mark.parametrize("ending", ["mat", "json", "xml", "png", "bmp"])
@pytest.mark.parametrize("content", [b"", b"{}", b"not what the name says", b"\x89PNG\r\n\x1a\n"])
def test_damaged_masks_are_named_in_one_line(ending: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"m.{ending}"
    path.write_bytes(content)
    with pytest.raises(BadImage, match=rf"m\.{ending}") as caught:
        load_mask(Sample(tmp_path / "a.png", 1, path), SIZE)
    assert len(str(caught.value).splitlines()) == 1
    path.unlink()
    with pytest.raises(BadImage, match=rf"m\.{ending}"):
        load_mask(Sample(tmp_path / "a.png", 1, path), SIZE)


def test_sizes_must_agree_unless_the_shape_does(tmp_path: Path) -> None:
    path = put_mask(tmp_path / "m.png", (32, 24))
    mask = load_mask(Sample(tmp_path / "a.png", 1, path), SIZE)
    assert mask is not None and np.array_equal(mask > 0, drawn())
    with pytest.raises(BadImage, match=r"m\.png: the mask is 32×24, its picture a\.png 24×32"):
        load_mask(Sample(tmp_path / "a.png", 1, path), (32, 24))


def test_masks_are_cut_with_the_picture(tmp_path: Path) -> None:
    path = put_mask(tmp_path / "m.png")
    sample = Sample(tmp_path / "a.png", 1, path, box=(4, 2, 12, 10))
    mask = load_mask(sample, (8, 8))
    assert mask is not None and np.array_equal(mask > 0, drawn()[2:10, 4:12])
    with pytest.raises(BadImage, match="outside"):
        load_mask(Sample(tmp_path / "a.png", 1, path, box=(0, 0, 17, 8)), (8, 17))


@given(arrays(st.sampled_from([np.uint8, np.uint16]), (3, 4)), st.integers(0, 255))
def test_rules(values: np.ndarray, level: int) -> None:
    equal = apply_rule(values, f"=={level}")
    assert np.array_equal(equal == 255, values == level) and set(np.unique(equal)) <= {0, 255}
    assert np.array_equal(apply_rule(values, ">0") > 0, values > 0)
    wide = values.dtype == np.uint16 and values.max() > 255
    assert np.array_equal(apply_rule(values, f">{level}") > 0, values > level * (257 if wide else 1))


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="'<3'"):
        apply_rule(np.zeros((2, 2), dtype=np.uint8), "<3")
