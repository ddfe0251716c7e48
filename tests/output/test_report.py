"""The gallery page and its spool of pictures."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from blemish.errors import OutputError
from blemish.output.report import GallerySpool, write_gallery
from blemish.output.tables import error_record

RUN: dict[str, Any] = {
    "versions": {"blemish": "9.8.7"},
    "method": "vcp_clip",
    "backbone": "tiny",
    "checkpoint": {"name": "best.safetensors", "sha256": "abc"},
    "options": {"image_size": 224, "tile": None, "pixel_threshold": 0.4},
    "map_range": [0.0, 2.0],
    "seconds": 1.5,
}


def row(path: str, score: float, threshold: float | None = 0.5, **more: Any) -> dict[str, Any]:
    decision = None if threshold is None else score >= threshold
    values = {"path": path, "score": score, "threshold": threshold, "is_anomalous": decision}
    size = {"width": 64, "height": 48, "map_max": score, "seconds": 0.1}
    return {**values, **size, "regions": [{}, {}] if decision else [], "files": {}, **more}


class Page(HTMLParser):
    """Collects tags, texts and every address; fails on tags that do not nest."""

    VOID = frozenset(("meta", "img", "input", "br", "link", "rect", "circle"))

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def having(self, **wanted: str) -> list[dict[str, str | None]]:
        return [
            attrs
            for _, attrs in self.tags
            if all(attrs.get(k.strip("_").replace("_", "-")) == v for k, v in wanted.items())
        ]


def gallery(out: Path, records: list[dict[str, Any]], limit: int = 300, run: dict[str, Any] = RUN) -> Page:
    with GallerySpool(out) as spool:
        for values in records:
            if "score" in values:
                spool.add(values["path"], values["score"], b"photo " + values["path"].encode(), b"heat")
        return Page(write_gallery(out, run, records, spool, limit))


def test_most_anomalous_first_with_state_score_and_links(tmp_path: Path) -> None:
    files = {"overlay": "overlays/x y/#1.png", "map": "maps/b.tiff"}
    page = gallery(tmp_path, [row("a.png", 0.2), row("x/b.png", 0.9, files=files), row("c.png", 0.5)])
    cards = page.having(class_="card")
    assert [(c["data-name"], c["data-state"]) for c in cards] == [
        ("x/b.png", "anomalous"),
        ("c.png", "anomalous"),
        ("a.png", "normal"),
    ]
    assert "<title>2 of 3 images anomalous" in page.source
    assert [attrs["href"] for tag, attrs in page.tags if tag == "a"] == [
        "overlays/x%20y/%231.png",
        "maps/b.tiff",
    ]
    for text in ("0.9000", "64×48 · 2 regions", "▲", "✓", "vcp_clip", "best.safetensors", "224", "9.8.7"):
        assert text in page.text
    assert "contour 0.4" in page.text and "threshold 0.5" in page.text


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    page = gallery(tmp_path, [row("a.png", 0.7)])
    assert "default-src 'none'" in page.source
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "object") and (tag != "script" or "src" not in attrs)
        assert (attrs.get("src") or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?://", page.source)
    shown = [
        attrs
        for tag, attrs in page.tags
        if tag == "img" and (attrs.get("src") or "").startswith("data:image/jpeg")
    ]
    assert len(shown) == 2 and all(attrs["alt"] for attrs in shown)


def test_names_causes_and_settings_are_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>&amp;{{cards}}.png'
    records = [row(evil, 0.7), row(evil + "2", 0.6), error_record("<img src=x>", "</ul><b>{{table}}")]
    page = gallery(tmp_path, records, limit=1, run={**RUN, "method": "<u>m</u>", "note": {"k": "<i>"}})
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert evil in page.text and "<img src=x>" in page.text and "</ul><b>{{table}}" in page.text
    assert "<u>m</u>" in page.text and not [a for tag, a in page.tags if a.get("src") == "x"]


def test_beyond_the_limit_rows_of_a_table_and_failed_images(tmp_path: Path) -> None:
    records = [row(f"{i}.png", i / 10) for i in range(10)] + [error_record("bad.png", "the file is empty")]
    page = gallery(tmp_path, records, limit=4)
    assert [c["data-name"] for c in page.having(class_="card")] == ["9.png", "8.png", "7.png", "6.png"]
    rows = [attrs["data-name"] for tag, attrs in page.tags if tag == "tr" and "data-name" in attrs]
    assert rows == ["5.png", "4.png", "3.png", "2.png", "1.png", "0.png"]
    assert [attrs["data-name"] for attrs in page.having(data_state="failed")] == ["bad.png"]
    assert "the file is empty" in page.text and "6 more, by score" in page.text
    for label in ("All 11", "Anomalous 5", "Normal 5", "Failed 1"):
        assert label in page.text


def test_without_threshold_nothing_is_called_normal(tmp_path: Path) -> None:
    run = {k: v for k, v in RUN.items() if k != "options"}
    page = gallery(tmp_path, [row("a.png", 0.7, None), row("b.png", 0.2, None)], run=run)
    assert "2 images scored" in page.source
    assert not page.having(data_state="normal") and not page.having(data_show="normal")
    assert "threshold 0" not in page.text


def test_a_page_of_failures_calls_nothing_normal(tmp_path: Path) -> None:
    page = gallery(tmp_path, [error_record("bad.png", "the file is empty")])
    assert "No image could be scored" in page.text and "none anomalous" not in page.text


def test_labels_of_the_threshold_stay_inside_their_panels(tmp_path: Path) -> None:
    page = gallery(tmp_path, [row("a.png", 0.01, 0.99)], run=RUN | {"pixel_threshold": 2.0})
    marks = [attrs["style"] or "" for attrs in page.having(class_="mark")]
    # a label at 98 % of the axis is shifted left by 98 % of its own width, so it never reaches over the end
    assert len(marks) == 2 and all(re.fullmatch(r"--at:[\d.]+%", style) for style in marks)
    assert "left: var(--at); transform: translateX(calc(-1 * var(--at)))" in page.source


@pytest.mark.parametrize("scores", [[], [0.0], [1.0, 1.0], [-3.5, 7.0], [1e-9, 2e-9]])
def test_any_scores_make_a_page(tmp_path: Path, scores: list[float]) -> None:
    page = gallery(tmp_path, [row(f"{i}.png", s) for i, s in enumerate(scores)], run={})
    bars = [attrs for tag, attrs in page.tags if tag == "rect"]
    assert bool(bars) == bool(scores)
    for attrs in bars:
        assert 0 <= float(attrs["x"] or -1) <= 100 and 0 <= float(attrs["y"] or -1) <= 40


def test_no_bar_of_the_histogram_mixes_decisions(tmp_path: Path) -> None:
    page = gallery(tmp_path, [row(f"{i}.png", i / 100) for i in range(100)])
    counts = {"anomalous": 0, "normal": 0}
    for text in re.findall(r'<rect class="(\w+)".*?<title>(\d+) ', page.source):
        counts[text[0]] += int(text[1])
    assert counts == {"anomalous": 50, "normal": 50}


def test_spool_resumes_after_a_torn_end(tmp_path: Path) -> None:
    with GallerySpool(tmp_path) as spool:
        spool.add("a.png", 0.1, b"photo\n{}", b"heat")
        spool.add("b.png", 0.2, b"x" * 100, b"y" * 100)
    whole = spool.path.read_bytes()
    for cut in (50, 199, 240):
        spool.path.write_bytes(whole[:-cut])
        with GallerySpool(tmp_path, resume=True) as again:
            assert again.pictures("a.png") == (b"photo\n{}", b"heat") and again.pictures("b.png") is None
            again.add("b.png", 0.2, b"new", b"pair")
            assert again.pictures("b.png") == (b"new", b"pair")
    with GallerySpool(tmp_path, resume=False) as fresh:
        assert len(fresh) == 0


def test_spool_stays_bounded_and_keeps_the_highest(tmp_path: Path) -> None:
    order = [(i * 37) % 200 for i in range(200)]
    sizes = []
    with GallerySpool(tmp_path, limit=10) as spool:
        for i in order:
            spool.add(f"{i}.png", i / 200, bytes(500), f"{i}".encode())
            sizes.append(spool.path.stat().st_size)
            assert len(spool) <= 20
        assert max(sizes) < 22 * 700
        assert not spool.wants(0.1) and spool.wants(2.0)
        for i in range(190, 200):
            assert spool.pictures(f"{i}.png") == (bytes(500), f"{i}".encode())
    with GallerySpool(tmp_path, resume=True) as spool:
        assert spool.pictures("199.png") is not None


def test_a_full_disk_is_one_clear_error_and_keeps_whole_pairs(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # a limit on the size of files stands for the full disk
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OutputError, match="file too large"), GallerySpool(tmp_path) as spool:
        spool.add("1.png", 0.5, bytes(900), b"heat")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
        try:
            with spool:
                spool.add("2.png", 0.5, bytes(900), b"heat")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with GallerySpool(tmp_path, resume=True) as spool:
        assert len(spool) == 1 and spool.pictures("1.png") == (bytes(900), b"heat")


def test_spool_takes_pairs_from_threads(tmp_path: Path) -> None:
    with GallerySpool(tmp_path) as spool:

        def work(k: int) -> None:
            for i in range(20):
                spool.add(f"{k}-{i}", 0.5, f"{k}".encode() * 50, f"{i}".encode())

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(spool) == 80 and spool.pictures("3-7") == (b"3" * 50, b"7")


def test_ten_thousand_images_stay_small_on_the_page(tmp_path: Path) -> None:
    records = [row(f"folder/{i:05}.png", (i % 997) / 997) for i in range(12_000)]
    with GallerySpool(tmp_path) as spool:
        path = write_gallery(tmp_path, RUN, iter(records), spool)
    assert path.stat().st_size < 6_000_000
    assert "The first 10,000 of them" in path.read_text()


def test_these_rooms_need_no_torch() -> None:
    code = (
        "import sys, blemish.output.report, blemish.output.tables, blemish.data.images, blemish.data.transforms\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
