"""The benchmark's page, read as a file."""

from __future__ import annotations

import re
from pathlib import Path

from boards import LABELS, board, shot

from blemish.output.benchmark_report import write_benchmark_report
from blemish.output.scoreboard import Scoreboard


def written(tmp_path: Path, made: Scoreboard | None = None, **options: int) -> str:
    write_benchmark_report(tmp_path / "report.html", made or board(), **options)  # type: ignore[arg-type]
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_figures_published_ones_and_failures_are_there(tmp_path: Path) -> None:
    text = written(tmp_path)
    assert "<b>95.1</b>" in text and "<u>93.4 ± 0.4</u>" in text and "<small>92.1, +0.2</small>" in text
    assert '<td class="failed">failed</td>' in text and "checkpoint b_1.pth: no such file" in text
    assert "1 run failed" not in text and "<span>runs failed</span>" in text
    assert "9.8.7" in text and "x &lt;y&gt;" in text and "About &lt;this&gt;" in text
    assert "ours &lt;&amp;&gt;" in text and "ours <&>" not in text and "{{" not in text
    assert "1,234" in text and "<td>40.0</td>" in text


def test_every_place_of_the_contents_exists(tmp_path: Path) -> None:
    text = written(tmp_path)
    places = re.findall(r'href="#([\w-]+)"', text)
    assert len(places) == 8 and all(text.count(f'id="{place}"') == 1 for place in places)


def test_every_class_has_its_charts_and_pictures(tmp_path: Path) -> None:
    text = written(tmp_path)
    assert text.count('class="chart bars"') == 4 and text.count('class="chart histogram"') == 6
    assert text.count('class="chart curve"') == 6
    pictures = re.findall(r'<img [^>]*alt="([^"]+)" src="data:image/(jpeg|png);base64,[\w+/=]+"', text)
    assert len(pictures) == 4 * (1 + len(LABELS)) + 3
    assert ("test/tp/a&lt;tp&gt;.png, mask", "png") in pictures and text.count(">no mask<") == 1
    assert len(re.findall(r"<img", text)) == len(pictures)
    for kind in ("True positive", "False positive", "False negative", "True negative"):
        assert kind in text


def test_pictures_stay_within_their_bytes_and_each_kind_goes_first(tmp_path: Path) -> None:
    made = board()
    shots = tuple(shot(kind, f"{kind}{i}.png") for kind in ("tp", "fn") for i in range(5))
    made.datasets[0].shots["bottle"] = shots
    whole = written(tmp_path, made)
    size = len(whole) - len(written(tmp_path, made, picture_bytes=0))
    text = written(tmp_path, made, picture_bytes=size * 2 // 5)
    assert "tp0.png" in text and "fn0.png" in text and "tp4.png" not in text and "left out" in text
    assert len(text) < len(whole) - size // 2


def test_a_benchmark_where_nothing_worked_is_a_page_too(tmp_path: Path) -> None:
    made = Scoreboard("Nothing", "", board().datasets[2:], run={})
    text = written(tmp_path, made)
    assert "lost failed: no folder" in text and 'id="overview"' not in text
