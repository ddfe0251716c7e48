"""The inspection page in a real browser, on the real service."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the service's packages are not installed")

from inspecting import (
    DarkSpots,
    give,
    mask_pixels,
    posts,
    recording_service,
    set_number,
    settle,
    stage_colors,
    url,
    wait_for,
)
from serving import Running, running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with recording_service(tmp_path_factory) as found:
        yield found


def test_map_appears_and_slider_changes_mask(
    visit: Callable[..., Any], service: Running, pictures: Path
) -> None:
    page = visit(url(service))
    give(page, pictures / "a_spots.png")
    expected = DarkSpots().predict(pictures / "a_spots.png")
    assert expected.mask is not None
    assert page.inner_text("#decision-word") == "Anomalous"
    assert mask_pixels(page) == np.count_nonzero(expected.mask) > 0
    assert page.locator("#regions li").count() == len(expected.regions) == 2
    assert stage_colors(page) > 100
    asked = posts(page)
    for threshold in (0.1, 0.6, 0.85):
        set_number(page, "#pixel-threshold-number", threshold)
        assert mask_pixels(page) == np.count_nonzero(expected.map > np.float32(threshold))
    before = mask_pixels(page)
    page.focus("#pixel-threshold")
    page.keyboard.press("PageDown")
    settle(page)
    assert mask_pixels(page) > before
    page.click("#reset")
    settle(page)
    assert mask_pixels(page) == np.count_nonzero(expected.mask)
    colorful = stage_colors(page)
    page.keyboard.press("Escape")
    page.focus("#stage")
    page.keyboard.press("o")
    settle(page)
    assert stage_colors(page) < colorful
    assert asked() == 0


def test_threshold_moves_every_decision_and_is_recorded(
    visit: Callable[..., Any], service: Running, pictures: Path
) -> None:
    page = visit(url(service))
    give(page, pictures / "a_spots.png", pictures / "b_clean.png")
    asked = posts(page)
    assert page.locator("#thumbs [data-state=anomalous]").count() == 1
    set_number(page, "#threshold-number", 0.99)
    assert page.locator("#thumbs [data-state=anomalous]").count() == 0
    assert page.inner_text("#decision-word") == "Normal"
    assert page.is_visible("#changed")
    assert asked() == 0
    give(page, pictures / "c_spot.png", shown=3)
    last = service.ask("GET", "/v1/history?limit=1").json["items"][0]
    assert (last["name"], last["threshold"], last["is_anomalous"]) == ("c_spot.png", 0.99, False)


def test_gallery_sorts_and_filters(visit: Callable[..., Any], service: Running, pictures: Path) -> None:
    page = visit(url(service))
    give(page, *(pictures / name for name in ("c_spot.png", "b_clean.png", "a_spots.png")))

    def names() -> list[str]:
        settle(page)
        return [str(name) for name in page.locator("#thumbs .name").all_text_contents()]

    page.select_option("#sort", "highest")
    assert names()[-1] == "b_clean.png"
    page.select_option("#sort", "lowest")
    assert names()[0] == "b_clean.png"
    page.select_option("#sort", "name")
    assert names() == ["a_spots.png", "b_clean.png", "c_spot.png"]
    page.select_option("#show", "normal")
    assert names() == ["b_clean.png"]
    page.select_option("#show", "all")
    page.fill("#find", "spot")
    assert names() == ["a_spots.png", "c_spot.png"]
    page.fill("#find", "none of them")
    assert names() == []
    assert page.is_visible("#none-shown")
    page.fill("#find", "")
    page.select_option("#show", "unjudged")
    page.locator("#thumbs li", has_text="a_spots").click()
    page.keyboard.press("c")  # which hides it; the next one is still the one after it
    assert names() == ["b_clean.png", "c_spot.png"]
    page.keyboard.press("j")
    assert (page.text_content("#name"), page.inner_text("#place")) == ("b_clean.png", "1 / 2")
    with page.expect_download() as download:
        page.click("#visit-csv")
    assert Path(download.value.path()).read_text().count("spot.png") == 1


def test_verdict_survives_restart(visit: Callable[..., Any], tmp_path: Path, pictures: Path) -> None:
    options = {"db": str(tmp_path / "history.db"), "keep": str(tmp_path / "kept")}
    with running(DarkSpots(), **options) as first:
        page = visit(url(first))
        give(page, pictures / "a_spots.png", pictures / "b_clean.png")
        page.locator("#thumbs li", has_text="a_spots").click()
        page.keyboard.press("m")  # does not fit what was called anomalous
        assert "called anomalous" in page.inner_text("#verdict-note")
        page.keyboard.press("c")
        wait_for(page, "document.getElementById('verdict-note').textContent === 'Stored.'")
        page.keyboard.press("j" if page.inner_text("#place") == "1 / 2" else "k")
        page.keyboard.press("g")
        wait_for(page, "document.getElementById('verdict-note').textContent === 'Stored.'")
        page.context.close()
    with running(DarkSpots(), **options) as second:
        found = {item["name"]: item["verdict"] for item in second.ask("GET", "/v1/history").json["items"]}
        assert found == {"a_spots.png": "confirmed", "b_clean.png": "correct"}
        page = visit(url(second))
        page.click("#tab-history")
        page.wait_for_selector("#history-rows tr")
        row = page.locator("#history-rows tr", has_text="a_spots.png")
        assert row.locator("select").input_value() == "confirmed"
        assert page.locator("svg.rates rect:not(.mark)").count() == 2
        page.select_option("#history-verdict", "correct")
        wait_for(page, "document.querySelectorAll('#history-rows tr').length === 1")
        with page.expect_download() as download:
            page.click("#history-csv")
        assert "b_clean.png" in Path(download.value.path()).read_text()
        page.click("text=Clear filters")
        wait_for(page, "document.querySelectorAll('#history-rows tr').length === 2")
        row.locator("select").select_option("false_alarm")
        wait_for(page, "document.getElementById('announcer').textContent.includes('False alarm')")
        row.locator("button").click()  # kept: onto the stage, from the server's files
        wait_for(page, "document.getElementById('mask').dataset.pixels !== undefined")
        expected = DarkSpots().predict(pictures / "a_spots.png")
        assert expected.mask is not None
        assert mask_pixels(page) == np.count_nonzero(expected.mask)
        assert page.get_attribute("[data-verdict=false_alarm]", "aria-pressed") == "true"


def test_folder_paste_and_errors_of_single_pictures(
    visit: Callable[..., Any], service: Running, pictures: Path
) -> None:
    page = visit(url(service))
    page.set_input_files("#folder", str(pictures))
    wait_for(page, "document.querySelectorAll('#thumbs li').length === 3")
    page.wait_for_selector("#failures:not([hidden])")
    assert re.match(r"\S*d_broken\.png \S", page.inner_text("#failure-list"))
    assert page.locator("#failure-list li").count() == 1
    assert page.locator("#thumbs li").first.get_attribute("title").startswith(f"{pictures.name}/")
    script = """async () => {
      const canvas = new OffscreenCanvas(40, 30);
      canvas.getContext('2d').fillRect(0, 0, 20, 20);
      const file = new File([await canvas.convertToBlob()], 'image.png', { type: 'image/png' });
      for (const kind of ['paste', 'drop']) {
        const data = new DataTransfer();
        data.items.add(file);
        document.body.dispatchEvent(kind === 'paste'
          ? new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true })
          : new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }));
      }
    }"""
    page.evaluate(script)
    wait_for(page, "document.querySelectorAll('#thumbs li').length === 5")
    names = page.locator("#thumbs .name").all_text_contents()
    assert [name for name in names if name.startswith("pasted-")]


def test_busy_server_is_waited_for_and_batches_are_cancelled(
    visit: Callable[..., Any], service: Running, pictures: Path
) -> None:
    page = visit(url(service))
    answers: list[int] = []

    def busy(route: Any) -> None:
        answers.append(429 if not answers else 200)
        if answers[-1] == 200:
            route.continue_()
        else:
            route.fulfill(status=429, headers={"Retry-After": "1"}, json={"error": "the queue is full"})

    page.route("**/v1/predict", busy)
    page.set_input_files("#files", str(pictures / "a_spots.png"))
    page.wait_for_selector("text=the server is busy")
    wait_for(page, "document.querySelectorAll('#thumbs li').length === 1")
    assert answers == [429, 200]
    page.unroute("**/v1/predict")
    page.route("**/v1/predict", lambda route: None)  # never answered
    page.set_input_files("#files", [str(pictures / "a_spots.png"), str(pictures / "b_clean.png")])
    page.wait_for_selector("#batch:not([hidden])")
    page.click("#batch-cancel")
    page.wait_for_selector("#batch", state="hidden")
    assert page.locator("#thumbs li").count() == 1
    assert page.is_hidden("#failures")
    page.unroute("**/v1/predict")
    give(page, pictures / "c_spot.png", shown=2)
    page.unroute_all(behavior="ignoreErrors")
