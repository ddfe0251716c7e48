"""A service on a free port for tests: a predictor that needs no network, and a plain HTTP client."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from blemish.deploy.serve import make_app
from blemish.deploy.serve_http import make_server
from blemish.deploy.serve_options import ServeOptions
from blemish.deploy.serve_run import bind
from blemish.predictor import Outputs, Predictor, Setup

SIZE = 16


class StubPredictor(Predictor):
    """The map is how bright an image is, the score its mean; it waits at `gate`, and counts what it was given."""

    def __init__(self, setup: Setup | None = None) -> None:
        setup = setup or Setup("clip", "tiny", SIZE, threshold=0.5, pixel_threshold=0.6)
        super().__init__(setup, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[int] = []

    @property
    def map_range(self) -> tuple[float, float]:
        return 0.0, 1.0

    @property
    def precision(self) -> str:
        return "fp32"

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def needs_class_name(self) -> bool:
        return False

    def machine(self) -> dict[str, Any]:
        return {}

    def _forward(self, inputs: np.ndarray, attention: bool = False) -> Outputs:
        self.batches.append(len(inputs))
        self.entered.set()
        self.gate.wait(60)
        maps = inputs.mean(axis=1, dtype=np.float32).reshape(len(inputs), SIZE, SIZE)
        # A black image is one that the network fails on.
        if (maps.max(axis=(1, 2)) == 0).any():
            raise ValueError("no light at all")
        return maps, maps.mean(axis=(1, 2)), [None] * len(inputs)


@dataclass
class Answer:
    """A response that was read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        found = self.json
        assert list(found) == ["error"] and "\n" not in found["error"], found
        return str(found["error"])


@dataclass
class Running:
    """A service that runs in a thread of the test."""

    port: int
    predictor: StubPredictor
    server: Any
    thread: threading.Thread
    token: str | None = None

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request on a connection of its own. headers: `_` in a name stands for `-`."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token is not None:
            given.setdefault("Authorization", f"Bearer {self.token}")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, given)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def predict(self, *images: tuple[str, bytes], **fields: str) -> Answer:
        """Images as a multipart form."""
        body, kind = form(images, fields)
        return self.ask("POST", "/v1/predict", body, Content_Type=kind)

    def predict_json(self, value: Any) -> Answer:
        return self.ask("POST", "/v1/predict", json.dumps(value), Content_Type="application/json")

    def put_verdict(self, number: object, verdict: str | None) -> Answer:
        return self.ask("PUT", f"/v1/history/{number}/verdict", json.dumps({"verdict": verdict}))

    def metrics(self) -> dict[str, float]:
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


@contextlib.contextmanager
def running(predictor: StubPredictor | None = None, **options: Any) -> Iterator[Running]:
    """A service with these options; ends in order at the end."""
    predictor = predictor or StubPredictor()
    given = ServeOptions(port=0, **options)
    listener = bind(given.host, given.port)
    ready = threading.Event()
    server = make_server(make_app(predictor, given), given, ready.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    port = listener.getsockname()[1]
    thread.start()
    try:
        assert ready.wait(60)
        yield Running(port, predictor, server, thread, given.token)
    finally:
        predictor.gate.set()
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def png(level: int | None = None, size: tuple[int, int] = (20, 12), seed: str = "a") -> bytes:
    """A grey picture of one level, or noise."""
    noise = np.random.default_rng(list(seed.encode())).integers(
        90, 200, (size[1], size[0], 3), dtype=np.uint8
    )
    file = io.BytesIO()
    Image.fromarray(noise if level is None else np.full_like(noise, level)).save(file, format="PNG")
    return file.getvalue()


def form(
    images: tuple[tuple[str, bytes], ...], fields: dict[str, str], boundary: str = "B"
) -> tuple[bytes, str]:
    """A multipart body and its Content-Type."""
    parts = []
    for name, data in images:
        head = f'Content-Disposition: form-data; name="images"; filename="{name}"\r\n'
        parts.append(f"--{boundary}\r\n{head}Content-Type: image/png\r\n\r\n".encode() + data)
    for name, value in fields.items():
        head = f'Content-Disposition: form-data; name="{name}"\r\n\r\n'
        parts.append(f"--{boundary}\r\n{head}{value}".encode())
    body = b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()])
    return body, f"multipart/form-data; boundary={boundary}"


def in_base64(name: str, data: bytes) -> dict[str, str]:
    """An image of a JSON request."""
    return {"name": name, "data": base64.b64encode(data).decode()}
