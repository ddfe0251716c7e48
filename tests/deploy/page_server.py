"""The real service around a predictor without a network, and pictures for it: what the page's tests drive."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from blemish.deploy.serve_options import ServeOptions
from blemish.predictor import Outputs, Predictor, Setup

SECONDS = 30


class DarkSpots(Predictor):
    """Dark pixels are anomalous: map = 1 - brightness at 64 x 64, score = its largest value."""

    map_range = (0.0, 1.0)
    precision = "fp32"
    device_name = "cpu"
    needs_class_name = False

    def __init__(self) -> None:
        setup = Setup("dark_spots", "none", 64, threshold=0.5, pixel_threshold=0.4)
        super().__init__(setup, mean=(0, 0, 0), std=(1, 1, 1))

    def machine(self) -> dict[str, Any]:
        return {}

    def _forward(self, inputs: np.ndarray, attention: bool = False) -> Outputs:
        maps = np.clip(1 - inputs.mean(axis=1), 0, 1).astype(np.float32)
        return maps, maps.max(axis=(1, 2)), [None] * len(maps)


class RunningService:
    """The service on a free port, in a thread."""

    def __init__(self, **options: Any) -> None:
        from blemish.deploy.serve import make_app
        from blemish.deploy.serve_http import make_server
        from blemish.deploy.serve_run import bind, url_of

        given = ServeOptions(port=0, **options)
        listener = bind(given.host, 0)
        ready = threading.Event()
        self.url = url_of(listener)
        self._server = make_server(make_app(DarkSpots(), given), given, ready.set)
        run = self._server.serve
        self._thread = threading.Thread(target=lambda: asyncio.run(run(sockets=[listener])), daemon=True)
        self._thread.start()
        assert ready.wait(SECONDS), "the service does not start"

    def get(self, path: str) -> Any:
        """JSON of a GET request."""
        with urllib.request.urlopen(self.url + path, timeout=SECONDS) as answer:
            return json.load(answer)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), "the service does not stop"


def spotted(path: Path, *spots: tuple[int, int, int, int], size: tuple[int, int] = (200, 120)) -> Path:
    """A light picture, width x height, with dark boxes; a grey gradient keeps its map from being flat."""
    width, height = size
    grey = np.linspace(200, 235, width, dtype=np.uint8)
    picture = Image.fromarray(np.repeat(np.tile(grey, (height, 1))[:, :, None], 3, axis=2))
    for number, box in enumerate(spots):
        ImageDraw.Draw(picture).rectangle(box, fill=(20 + 40 * number,) * 3)
    picture.save(path)
    return path
