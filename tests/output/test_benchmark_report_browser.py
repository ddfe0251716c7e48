"""The benchmark's page in headless Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest
from boards import LABELS, board

from blemish.output.benchmark_report import write_benchmark_report
from browser import browser_page

BROKEN = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
# Elements beyond the right edge that no scrolling frame holds.
OUTSIDE = """[...document.querySelectorAll('body *')]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, svg'))
    .map(e => e.outerHTML.slice(0, 80))"""


@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_benchmark_report(path, board())
    with browser_page(tmp_path / "profile") as page:
        for width, dark in ((1280, False), (390, True)):
            page.open(path, width, dark=dark)
            page.value("document.querySelectorAll('details').forEach(d => d.open = true)")
            page.value("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
            page.value("Promise.all([...document.images].map(i => i.decode()))")
            assert page.value("document.querySelectorAll('table').length") == 12
            assert page.value("document.images.length") == 4 * (1 + len(LABELS)) + 3
            assert page.value(BROKEN) == 0
            assert page.value("document.querySelectorAll('svg.chart').length") == 16
            assert (
                page.value("document.querySelectorAll('img:not([alt]), svg.chart:not([aria-label])').length")
                == 0
            )
            assert page.value("document.documentElement.scrollWidth") <= width
            assert page.value(OUTSIDE) == []
            dark_page = page.value("getComputedStyle(document.body).backgroundColor")
            assert (dark_page == "rgb(18, 16, 23)") == dark
        assert page.logs == []
        asked = [url for url in page.requests if not url.startswith("data:")]
        assert set(asked) == {path.as_uri()}
