"""The inspection page in a real browser, on the real service."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from blemish.predictor import Outputs, Setup
from browser import chromium

pytest.importorskip("fastapi", reason="the service's packages are not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from serving import Running, StubPredictor, running  # noqa: E402

WAIT = 60_000  # milliseconds
EXPECTED_LOGS = "Failed to load resource"  # what Chromium says of each answer that is an error
TWO_SPOTS = (30, 20, 79, 59), (130, 60, 169, 99)


class DarkSpots(StubPredictor):
    """Dark pixels are anomalous: map = 1 - brightness at 64 x 64, score = its largest value."""

    def __init__(self) -> None:
        super().__init__(Setup("dark_spots", "none", 64, threshold=0.5, pixel_threshold=0.4))

    def _forward(self, inputs: np.ndarray, attention: bool = False) -> Outputs:
        maps = np.clip(1 - inputs.mean(axis=1), 0, 1).astype(np.float32)
        return maps, maps.max(axis=(1, 2)), [None] * len(maps)


def spotted(path: Path, *spots: tuple[int, int, int, int], size: tuple[int, int] = (200, 120)) -> Path:
    """A light picture, width x height, with dark boxes; a grey gradient keeps its map from being flat."""
    width, height = size
    grey = np.linspace(200, 235, width, dtype=np.uint8)
    picture = Image.fromarray(np.repeat(np.tile(grey, (height, 1))[:, :, None], 3, axis=2))
    for number, box in enumerate(spots):
        ImageDraw.Draw(picture).rectangle(box, fill=(20 + 40 * number,) * 3)
    picture.save(path)
    return path


def url(service: Running) -> str:
    return f"http://127.0.0.1:{service.port}"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures with dark spots and one without, and files that are none."""
    folder = tmp_path_factory.mktemp("line")
    spotted(folder / "a_spots.png", *TWO_SPOTS)
    spotted(folder / "b_clean.png")
    spotted(folder / "c_spot.png", (90, 40, 109, 59))
    (folder / "d_broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("service")
    with running(DarkSpots(), db=str(folder / "history.db"), keep=str(folder / "kept")) as service:
        yield service


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    program = chromium()
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--use-fake-device-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def visit(chrome: Any) -> Iterator[Callable[..., Any]]:
    """visit(address, **context) -> a new page; afterwards it must have logged no error and asked nobody else."""
    opened: list[tuple[Any, str, list[str], list[str]]] = []

    def visit(address: str, width: int = 1280, height: int = 800, **context: Any) -> Any:
        room = chrome.new_context(viewport={"width": width, "height": height}, **context)
        page = room.new_page()
        page.set_default_timeout(WAIT)
        logs: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: logs.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: logs.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        opened.append((room, address, logs, requests))
        page.goto(address)
        return page

    yield visit
    for room, address, logs, requests in opened:
        room.close()
        assert not [line for line in logs if EXPECTED_LOGS not in line]
        assert not [asked for asked in requests if not asked.startswith((f"{address}/", "blob:"))]


def give(page: Any, *files: Path, shown: int | None = None) -> None:
    """Choose files and wait until the visit's list has them."""
    page.set_input_files("#files", [str(file) for file in files])
    wait_for(page, f"document.querySelectorAll('#thumbs li').length === {shown or len(files)}")
    wait_for(page, "document.getElementById('mask').dataset.pixels !== undefined")


def wait_for(page: Any, condition: str) -> None:
    """Playwright's own waiting for a condition needs eval, which the service's policy forbids the page."""
    until = time.monotonic() + WAIT / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < until, f"never true: {condition}"
        page.wait_for_timeout(20)


def settle(page: Any) -> None:
    """The page redraws with the next frame, however long a busy machine takes for it."""
    for _ in range(3):
        page.evaluate("() => new Promise(requestAnimationFrame)")


def mask_pixels(page: Any) -> int:
    return int(page.get_attribute("#mask", "data-pixels"))


def set_number(page: Any, field: str, value: float) -> None:
    page.fill(field, str(value))
    page.press(field, "Enter")
    settle(page)


def posts(page: Any) -> Callable[[], int]:
    """How many requests for predictions the page has made from now on."""
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url) if r.url.endswith("/v1/predict") else None)
    return lambda: len(asked)


def stage_colors(page: Any) -> int:
    """How many different colours the picture on the stage has."""
    script = """() => {
      const { width, height } = document.querySelector('canvas.overlay');
      const context = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
      context.drawImage(document.querySelector('canvas.overlay'), 0, 0);
      const data = new Uint32Array(context.getImageData(0, 0, width, height).data.buffer);
      return new Set(data).size;
    }"""
    return int(page.evaluate(script))


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
    page.evaluate("document.activeElement.blur()")
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
