"""The SVG charts."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from blemish.output.curves import bars, curves, histogram, legend


def rects(text: str, kind: str) -> list[dict[str, str]]:
    return [e.attrib for e in ET.fromstring(text).iter("rect") if e.get("class") == kind]


def test_bars_are_as_long_as_their_values_and_names_are_escaped() -> None:
    text = bars({"<a&b>": [0.5, None], "c": [1.0, 0.25]}, ["m<1>", "m2"], 'about "it"')
    half, full = (float(r["width"]) for r in rects(text, "s0"))
    (quarter,) = (float(r["width"]) for r in rects(text, "s1"))
    assert abs(full - 2 * half) < 0.2 and abs(full - 4 * quarter) < 0.3
    assert "no value" in text and "&lt;a&amp;b&gt;" in text and "50.0" in text
    assert ET.fromstring(text).get("aria-label") == 'about "it"'
    height = float(ET.fromstring(text).attrib["viewBox"].split()[3])
    assert all(float(r["y"]) + float(r["height"]) < height for r in rects(text, "s0") + rects(text, "s1"))


def test_a_curve_runs_from_corner_to_corner_and_is_thinned() -> None:
    xs = tuple(i / 100_000 for i in range(100_001))
    text = curves({"m": (xs, xs)}, "roc", "x", "y", limit=0.3)
    (line,) = list(ET.fromstring(text).iter("polyline"))
    points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    assert points[0] == (38.0, 308.0) and points[-1] == (338.0, 8.0) and 100 < len(points) < 500
    (beyond,) = rects(text, "beyond")
    assert abs(float(beyond["width"]) - 210) < 0.1
    assert not rects(curves({"m": (xs[:2], xs[:2])}, "roc", "x", "y"), "beyond")


def test_histogram_has_a_bar_for_every_filled_bin_and_a_threshold_inside() -> None:
    text = histogram((0.0, 0.5, 1.0), (4, 0), (1, 2), 0.5, "scores")
    (normal,), anomalous = rects(text, "normal"), rects(text, "anomalous")
    assert len(anomalous) == 2 and float(normal["height"]) == 4 * float(anomalous[0]["height"])
    assert float(normal["y"]) + float(normal["height"]) == float(anomalous[0]["y"])
    assert "t* 0.5" in text and "t*" not in histogram((0.0, 1.0), (1,), (1,), None, "scores")
    assert "t*" not in histogram((0.0, 1.0), (1,), (1,), 7.0, "scores")
    assert rects(histogram((3.0, 3.0), (2,), (0,), 3.0, "one score"), "normal")


def test_legend_repeats_no_markup_of_labels() -> None:
    text = legend(["a<b", *[str(i) for i in range(9)]])
    assert "a&lt;b" in text and len(re.findall("<li>", text)) == 10 and text.count('class="s0"') == 2
