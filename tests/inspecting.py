"""The inspection page in a browser: a model that sees dark spots, pictures with some, and what a visitor does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from blemish.predictor import Outputs, Setup
from serving import Running, StubPredictor, running

WAIT = 60_000  # milliseconds
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


@contextlib.contextmanager
def recording_service(places: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with a history and kept files, in a folder of its own."""
    folder = places.mktemp("service")
    with running(DarkSpots(), db=str(folder / "history.db"), keep=str(folder / "kept")) as service:
        yield service


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
