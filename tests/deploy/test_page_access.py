"""The inspection page for everyone: token, camera, the keyboard alone, a phone's width, contrast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the service's packages are not installed")

from inspecting import (
    DarkSpots,
    give,
    recording_service,
    url,
    wait_for,
)
from serving import Running, running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with recording_service(tmp_path_factory) as found:
        yield found


def test_token_is_asked_for_once(visit: Callable[..., Any], pictures: Path) -> None:
    with running(DarkSpots(), token="right-one") as service:
        page = visit(url(service))
        for token in ("wrong", "right-one"):
            page.wait_for_selector("#token[open]")
            page.fill("#token-value", token)
            page.press("#token-value", "Enter")
        page.wait_for_selector("text=dark_spots")
        page.reload()
        page.wait_for_selector("text=dark_spots")
        give(page, pictures / "a_spots.png")
        page.click("#tab-history")
        assert page.is_visible("#history-off")


def test_camera(visit: Callable[..., Any], service: Running) -> None:
    page = visit(url(service))
    page.click("#pick-camera")
    page.wait_for_selector("text=The browser may not use the camera")
    page.context.grant_permissions(["camera"])
    page.click("#camera-again")
    page.wait_for_selector("#camera-shoot:enabled")
    page.click("#camera-shoot")
    wait_for(page, "document.querySelectorAll('#thumbs li').length === 1")
    page.click("#camera-close")
    assert page.text_content("#thumbs .name").startswith("camera-")


def test_keyboard_alone(visit: Callable[..., Any], service: Running, pictures: Path) -> None:
    page = visit(url(service))
    give(page, pictures / "a_spots.png", pictures / "b_clean.png", pictures / "c_spot.png")
    page.select_option("#sort", "name")
    page.focus("a.skip")  # the first of all; where Tab goes on after a mere blur is the browser's affair
    describe = """() => {
      const e = document.activeElement, style = getComputedStyle(e);
      const seen = style.outlineStyle !== 'none' || e.matches('input[type=range]');
      return [e.id || e.dataset.view || e.dataset.verdict || e.role || e.tagName, seen];
    }"""
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name, seen = page.evaluate(describe)
        if name == "BODY":
            break
        assert seen, f"the focus on {name} is not visible"
        reached.append(name)
    wanted = ["tab-inspect", "pick-files", "find", "previous", "both", "zoom-in", "stage", "confirmed"]
    wanted += ["threshold", "pixel-threshold", "opacity"]
    places = [reached.index(name) for name in wanted if name in reached]
    assert len(places) == len(wanted), f"reached only {reached}"
    assert places == sorted(places), f"the order is {reached}"
    page.locator("#thumbs li").first.click()
    page.focus("#stage")
    for key, place in (("j", "2 / 3"), ("ArrowRight", "3 / 3"), ("j", "3 / 3"), ("k", "2 / 3")):
        page.keyboard.press(key)
        assert page.inner_text("#place") == place
    page.keyboard.press("2")
    assert page.get_attribute("#stage", "data-view") == "both"
    fitted = page.inner_text("#zoom")
    page.keyboard.press("+")
    assert page.inner_text("#zoom") != fitted
    page.keyboard.press("0")
    assert page.inner_text("#zoom") == fitted
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    page.locator("#thumbs li").nth(1).focus()
    for key, place in (("Home", "1 / 3"), ("ArrowDown", "2 / 3"), ("End", "3 / 3")):
        page.keyboard.press(key)
        assert page.inner_text("#place") == place
        assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    page.fill("#find", "c")  # letters in a field are letters
    assert page.locator("#thumbs .verdict:not(:empty)").count() == 0
    page.focus("#tab-inspect")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#history-rows tr")


CONTRAST = """() => {
  const luminance = ([r, g, b]) => [r, g, b].reduce((sum, v, i) => {
    v /= 255;
    return sum + [0.2126, 0.7152, 0.0722][i] * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  }, 0);
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = parse(getComputedStyle(e).backgroundColor);
      if ((color[3] ?? 1) === 1) return color.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll('body *')) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!text || !element.checkVisibility({ checkVisibilityCSS: true }) || element.closest('canvas')) continue;
    if (element.closest('[aria-disabled=true], :disabled')) continue;
    const style = getComputedStyle(element);
    const color = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [luminance(parse(color)), luminance(ground(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push(`${element.tagName}.${element.className}#${element.id} ${ratio.toFixed(2)}`);
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_width_and_contrast(
    visit: Callable[..., Any], service: Running, pictures: Path, scheme: str
) -> None:
    page = visit(url(service), width=360, height=740, color_scheme=scheme, has_touch=True)
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert page.evaluate(overflow) == 0
    assert page.evaluate(CONTRAST) == []
    give(page, pictures / "a_spots.png", pictures / "b_clean.png")
    page.click("#thumbs li >> nth=0")
    for view in ("1", "2"):
        page.keyboard.press(view)
        assert page.evaluate(overflow) == 0
    assert page.evaluate(CONTRAST) == []
    page.click("#tab-history")
    page.wait_for_selector("svg.rates")
    assert page.evaluate(overflow) == 0
    assert page.evaluate(CONTRAST) == []
    other = "light" if scheme == "dark" else "dark"
    page.select_option("#theme", other)
    assert page.evaluate("document.documentElement.dataset.theme") == other
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == other
