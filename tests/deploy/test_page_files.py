"""The page's files as text, and its arithmetic in the browser against the library's."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

import blemish
from blemish.output.pictures import color_table
from browser import chromium

PAGE = Path(blemish.__file__).parent / "deploy" / "page"
SCRIPTS = sorted(PAGE.glob("*.js"))


class Elements(HTMLParser):
    """Every start tag of the page with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def elements() -> list[tuple[str, dict[str, str | None]]]:
    parser = Elements()
    parser.feed((PAGE / "index.html").read_text())
    return parser.found


def test_nothing_is_inline_or_from_elsewhere(elements: list[tuple[str, dict[str, str | None]]]) -> None:
    for tag, attributes in elements:
        assert tag != "style"
        assert not [name for name in attributes if name == "style" or name.startswith("on")], attributes
        if tag == "script":
            assert (PAGE / str(attributes["src"])).is_file()
        if tag == "link":
            assert (PAGE / str(attributes["href"])).is_file()
    for path in PAGE.iterdir():
        found = re.findall(r"https?://[\w.-]+", path.read_text())
        assert set(found) <= {"http://www.w3.org"}, f"{path.name}: {found}"


def test_scripts_are_small_and_import_what_is_there() -> None:
    for path in SCRIPTS:
        text = path.read_text()
        assert text.count("\n") < 400, path.name
        for name in re.findall(r'from "\./(.+?)"', text):
            assert (PAGE / name).is_file(), f"{path.name} imports {name}"


def test_ids_are_single_and_all_there(elements: list[tuple[str, dict[str, str | None]]]) -> None:
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {name for path in SCRIPTS for name in re.findall(r'byId\("([\w-]+)"\)', path.read_text())}
    assert wanted <= set(ids)
    for _, attributes in elements:
        for name in ("aria-labelledby", "aria-controls", "aria-describedby", "for"):
            assert set((attributes.get(name) or "").split()) <= set(ids)


def test_every_control_has_a_name(elements: list[tuple[str, dict[str, str | None]]]) -> None:
    text = (PAGE / "index.html").read_text()
    for tag, attributes in elements:
        if tag in ("input", "select") and "hidden" not in attributes:
            inside = re.search(rf'<label[^>]*>(?:(?!</label>).)*id="{attributes["id"]}"', text, re.DOTALL)
            named = attributes.get("aria-label") or f'for="{attributes["id"]}"' in text or inside
            assert named, attributes


def contrast(one: str, other: str) -> float:
    """Of two colours #rgb or #rrggbb, 1 to 21, as WCAG has it."""

    def luminance(color: str) -> float:
        digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
        levels = np.array(list(bytes.fromhex(digits))) / 255
        linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


GROUNDS = ("page", "card", "well")
TEXTS = [(text, ground) for text in ("ink", "soft", "accent", "bad", "good") for ground in GROUNDS]
TEXTS += [(text, ground) for text in ("ink", "soft", "bad") for ground in ("bad-soft",)]
TEXTS += [("ink", "good-soft"), ("soft", "good-soft"), ("good", "good-soft")]
TEXTS += [("on-accent", "accent"), ("card", "ink")]


@pytest.mark.parametrize("theme", [r":root", r':root\[data-theme="dark"\]'])
def test_contrast_of_the_colors(theme: str) -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    css = (PAGE / "page.css").read_text()
    (block,) = re.findall(rf"^{theme} {{(.*?)^}}", css, re.MULTILINE | re.DOTALL)
    colors = dict(re.findall(r"--([\w-]+): (#\w+)", block))
    found = {pair: contrast(colors[pair[0]], colors[pair[1]]) for pair in TEXTS}
    assert min(found.values()) >= 4.5, found
    # Outlines of controls, and what shows the focus.
    lines = {
        (line, ground): contrast(colors[line], colors[ground])
        for line in ("edge", "accent")
        for ground in GROUNDS
    }
    assert min(lines.values()) >= 3, lines


def test_colors_are_those_of_saved_overlays() -> None:
    table = "".join(re.findall(r'^  "([0-9a-f]+)"', (PAGE / "colors.js").read_text(), re.MULTILINE))
    assert bytes.fromhex(table) == color_table().tobytes()


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser page that has imported maps.js; evaluate(expression, argument)."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = chromium()
    source = (PAGE / "maps.js").read_text()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.evaluate(
            "async (source) => { window.maps = await import(URL.createObjectURL("
            "new Blob([source], { type: 'text/javascript' }))); }",
            source,
        )
        yield page
        browser.close()


def tiff(values: np.ndarray, **options: Any) -> str:
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric="minisblack", **options)
    return base64.b64encode(buffer.getvalue()).decode()


READ = (
    "(text) => { const m = maps.readTiff(maps.fromBase64(text)); return [m.width, m.height, [...m.values]]; }"
)


@pytest.mark.parametrize("options", [{"metadata": None}, {"byteorder": ">"}, {"rowsperstrip": 2}])
def test_tiff_is_read_exactly(maps: Any, options: dict[str, Any]) -> None:
    values = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    width, height, found = maps.evaluate(READ, tiff(values, **options))
    assert (width, height) == (5, 7)
    assert np.array_equal(np.array(found, dtype=np.float32), values.ravel())


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "no TIFF"),
        (b"\x89PNG\r\n\x1a\n", "no TIFF"),
        (base64.b64decode(tiff(np.zeros((4, 4), np.uint8))), "float32"),
        (base64.b64decode(tiff(np.zeros((40, 40), np.float32), metadata=None))[:-50], "cut off"),
    ],
)
def test_damaged_map_is_one_line(maps: Any, data: bytes, cause: str) -> None:
    script = (
        "(text) => { try { maps.readTiff(maps.fromBase64(text)); } catch (error) { return error.message; } }"
    )
    assert cause in maps.evaluate(script, base64.b64encode(data).decode())


MASK = """([text, threshold, limit]) => {
  const map = maps.reduced(maps.readTiff(maps.fromBase64(text)), limit);
  const { count, share, regions } = maps.maskOf(map, threshold);
  return { count, share, regions, width: map.width, height: map.height, factor: map.factor };
}"""


def test_mask_and_regions_equal_the_library(maps: Any) -> None:
    noise = np.random.default_rng(1).normal(size=(60, 90))
    values = ndimage.gaussian_filter(noise, 2).astype(np.float32)
    result = blemish.types.Result(score=1.0, map=values, pixel_threshold=0.1)
    found = maps.evaluate(MASK, [tiff(values), 0.1, 1 << 20])
    assert result.mask is not None
    assert found["count"] == np.count_nonzero(result.mask)
    assert found["share"] == pytest.approx(result.mask.mean())
    assert [(tuple(r["box"]), r["area"]) for r in found["regions"]] == [
        (r.box, r.area) for r in result.regions
    ]
    assert len(result.regions) > 3


def test_value_equal_to_the_threshold_is_outside(maps: Any) -> None:
    values = np.full((2, 2), 0.1, np.float32)
    values[0, 0] = np.nextafter(np.float32(0.1), np.float32(1))
    assert maps.evaluate(MASK, [tiff(values), 0.1, 100])["count"] == 1


def test_smaller_map_keeps_every_hot_pixel(maps: Any) -> None:
    values = np.zeros((101, 53), np.float32)
    values[100, 52] = 1
    found = maps.evaluate(MASK, [tiff(values), 0.5, 400])
    assert (found["factor"], found["count"]) == (4, 1)
    assert (found["width"], found["height"]) == (14, 26)
