"""The service under strain: full queues, late clients, lost clients, batches, and its end."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from blemish.deploy.batching import Batcher, QueueFull
from blemish.deploy.serve_options import ServeOptions, check_exposure, is_loopback
from blemish.deploy.serve_run import bind
from blemish.errors import BadImage, BadOption
from serving import Answer, Running, StubPredictor, form, png, running, until

START = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"


@contextlib.contextmanager
def in_background(work: Callable[[], Answer], count: int = 1) -> Iterator[Callable[[], list[Answer]]]:
    """Run some requests beside the test; the function given waits for their answers."""
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work) for _ in range(count)]
        yield lambda: [future.result(60) for future in futures]


def test_a_full_queue_answers_429_and_recovers() -> None:
    with running(queue=4, max_images=4, batch_size=1) as service:
        service.predictor.gate.clear()
        with in_background(lambda: service.predict(("a.png", png())), 4) as answers:
            until(lambda: service.metrics()["blemish_queue_length"] == 4)
            flood = [service.predict(("b.png", png())) for _ in range(20)]
            assert all(answer.status == 429 and "queue is full" in answer.error for answer in flood)
            assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in flood)
            assert service.ask("GET", "/healthz").status == service.ask("GET", "/readyz").status == 200
            service.predictor.gate.set()
            assert [answer.status for answer in answers()] == [200] * 4
        assert service.predict(("c.png", png())).status == 200
        assert service.metrics()["blemish_queue_length"] == 0


def test_requests_are_scored_together_and_never_lost() -> None:
    images = {level: png(level) for level in range(40, 72)}
    with running(batch_size=8, batch_wait_ms=50, queue=64) as service, ThreadPoolExecutor(32) as pool:
        service.predictor.gate.clear()
        futures = {level: pool.submit(service.predict, (str(level), data)) for level, data in images.items()}
        until(lambda: service.metrics()["blemish_queue_length"] == 32)
        service.predictor.gate.set()
        for level, future in futures.items():
            (found,) = future.result(60).json["results"]
            assert found["name"] == str(level) and found["score"] == pytest.approx(level / 255)
        # The first is the grey one at the start.
        sizes = service.predictor.batches[1:]
        assert sum(sizes) == 32 and 1 < max(sizes) <= 8


def test_504_drops_the_image_from_the_queue() -> None:
    with running(timeout=0.5, batch_size=1) as service:
        service.predictor.gate.clear()
        with in_background(lambda: service.predict(("a.png", png())), 3) as answers:
            found = answers()
        assert all(answer.status == 504 and "within 0.5 seconds" in answer.error for answer in found)
        service.predictor.gate.set()
        until(lambda: service.metrics()["blemish_queue_length"] == 0)
        # One was in the network already; those behind it never came there.
        assert len(service.predictor.batches) == 2
        assert service.ask("GET", "/readyz").status == 200


def test_a_lost_client_is_dropped_from_the_queue() -> None:
    body, kind = form((("a.png", png()),), {})
    head = START + f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with running(batch_size=1) as service:
        service.predictor.gate.clear()
        clients = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(5)]
        for client in clients:
            client.sendall(head + body)
        until(lambda: service.metrics()["blemish_queue_length"] == 5)
        for client in clients:
            client.close()
        until(lambda: service.metrics()["blemish_queue_length"] <= 1)
        service.predictor.gate.set()
        until(lambda: service.metrics()["blemish_queue_length"] == 0)
        assert len(service.predictor.batches) == 2
        lost = 'blemish_requests_total{route="/v1/predict",status="499"}'
        until(lambda: service.metrics().get(lost) == 5)
        assert service.predict(("a.png", png())).status == 200


def talk(service: Running, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send parts with pauses, then read to the end."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(pause)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while block := client.recv(65536):
                found += block
    return found


def test_slow_clients_get_408() -> None:
    head = START + b"Content-Type: application/json\r\n"
    with running(timeout=0.4) as service:
        assert talk(service).startswith(b"HTTP/1.1 408")  # says nothing at all
        assert talk(service, b"GET / HT", pause=0.1).startswith(b"HTTP/1.1 408")
        late = talk(service, head + b"Content-Length: 100\r\n\r\n", b"{", pause=0.1)
        assert late.startswith(b"HTTP/1.1 408") and b"was not complete within 0.4 seconds" in late
        # A second request on a connection is watched like the first.
        again = talk(service, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /he", pause=0.1)
        assert again.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 408" in again
        assert service.ask("GET", "/readyz").status == 200
        assert service.metrics()["blemish_received_bytes_held"] == 0


def test_what_is_no_http_gets_400() -> None:
    with running() as service:
        for text in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"GET\r\n\r\n", b"X" * 200_000):
            assert talk(service, text)[:12] in (b"HTTP/1.1 400", b"")
        assert talk(service, START + b"Content-Length: -5\r\n\r\n").startswith(b"HTTP/1.1 400")
        assert service.ask("GET", "/healthz").status == 200


def test_bodies_in_memory_are_bounded() -> None:
    head = START + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    with running(max_bytes=1000) as service, contextlib.ExitStack() as stack:
        for _ in range(5):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=10))
            client.sendall(head + b"x" * 900)
        # Four times the largest body is held at most: the fifth gets its answer before its end.
        until(lambda: service.metrics()["blemish_received_bytes_held"] == 3600)
        assert client.recv(1000).startswith(b"HTTP/1.1 429")


def test_pixels_in_the_queue_are_bounded() -> None:
    large = png(100, size=(100, 100))
    with running(max_pixels=10_000, batch_size=1) as service:
        service.predictor.gate.clear()
        with in_background(lambda: service.predict(("a.png", large)), 2) as answers:
            until(lambda: service.metrics()["blemish_queue_length"] == 2)
            assert service.predict(("a.png", large)).status == 429
            service.predictor.gate.set()
            assert [answer.status for answer in answers()] == [200, 200]


def test_the_end_finishes_what_was_accepted() -> None:
    with running(batch_size=2) as service:
        service.predictor.gate.clear()
        idle = socket.create_connection(("127.0.0.1", service.port))
        with idle, in_background(lambda: service.predict(("a.png", png())), 6) as answers:
            until(lambda: service.metrics()["blemish_queue_length"] == 6)
            service.server.should_exit = True
            until(lambda: not _connects(service.port))
            service.predictor.gate.set()
            assert [answer.status for answer in answers()] == [200] * 6
            service.thread.join(60)
            assert not service.thread.is_alive()


def _connects(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _grey(level: int = 100) -> np.ndarray:
    return np.full((8, 8, 3), level, dtype=np.uint8)


def _bad() -> np.ndarray:
    raise BadImage("x.png: damaged")


def test_batcher() -> None:
    predictor = StubPredictor()
    batcher = Batcher(predictor, capacity=3, pixels=1000, batch_size=2, wait=0.5)
    assert not batcher.is_alive
    batcher.start()
    assert batcher.is_alive and batcher.has_room(3) and not batcher.has_room(4)
    tickets = batcher.admit([(_grey, 64), (_bad, 0), (_grey, 64)])
    with pytest.raises(QueueFull, match="full"):
        batcher.admit([(_grey, 64)])
    found = [ticket.future.result(60) for ticket in tickets]
    assert found[1] == "x.png: damaged" and predictor.batches == [2]
    batcher.release(tickets)
    assert batcher.length == 0
    with pytest.raises(QueueFull):
        batcher.admit([(_grey, 1)] * 4)
    alone = batcher.admit([(_grey, 5000)])  # more pixels than fit, but nothing else is there
    with pytest.raises(QueueFull):
        batcher.admit([(_grey, 1)])
    batcher.release(alone)
    until(lambda: batcher.length == 0)
    last = batcher.admit([(_grey, 64)] * 3)
    batcher.close()
    assert all(isinstance(ticket.future.result(0), tuple) for ticket in last) and not batcher.is_alive


def test_what_would_come_too_late_is_not_accepted() -> None:
    predictor = StubPredictor()
    batcher = Batcher(predictor, capacity=10, pixels=10_000, batch_size=1, patience=1.0)
    batcher.start()
    predictor.gate.clear()
    first = batcher.admit([(_grey, 64)] * 2)  # the rate is not known yet
    until(lambda: predictor.batches)
    time.sleep(0.5)
    predictor.gate.set()
    until(lambda: not batcher.has_room(1))
    assert batcher.retry_after >= 1
    batcher.release(first)
    until(lambda: batcher.length == 0)
    batcher.release(batcher.admit([(_grey, 64)] * 10))  # nothing is before it
    batcher.close()


def test_a_short_memory_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = StubPredictor()
    forward = StubPredictor._forward

    def one_at_a_time(self: StubPredictor, inputs: np.ndarray, attention: bool = False) -> object:
        if len(inputs) > 1:
            raise MemoryError
        return forward(self, inputs, attention)

    monkeypatch.setattr(StubPredictor, "_forward", one_at_a_time)
    with running(predictor, batch_size=4) as service:
        answer = service.predict(("a.png", png()), ("b.png", png()), ("c.png", png()))
        assert answer.status == 200 and all("score" in entry for entry in answer.json["results"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"port": 70000}, "port is 70000"),
        ({"queue": 8}, "queue is 8, less than the 32 images"),
        ({"max_bytes": 0}, "max_bytes is 0"),
        ({"timeout": 0.0}, "timeout is 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"batch_wait_ms": -1.0}, "batch_wait_ms"),
        ({"token": ""}, "empty"),
        ({"token": "a b"}, "space"),
        ({"token": "ä"}, "printable ASCII"),
        ({"token": "x", "no_auth": True}, "exclude"),
        ({"keep": "x"}, "--db"),
    ],
)
def test_impossible_options(given: dict[str, object], words: str) -> None:
    with pytest.raises(BadOption, match=words):
        ServeOptions(**given)  # type: ignore[arg-type]


def test_exposure() -> None:
    for host in ("127.0.0.1", "localhost", "127.3.2.1", "::1"):
        assert is_loopback(host)
        check_exposure(ServeOptions(host=host))
    for host in ("0.0.0.0", "", "::", "192.0.2.1", "no.such.host.invalid"):
        assert not is_loopback(host)
        with pytest.raises(BadOption, match="--token"):
            check_exposure(ServeOptions(host=host))
        check_exposure(ServeOptions(host=host, token="x"))
        check_exposure(ServeOptions(host=host, no_auth=True))


def test_addresses_that_cannot_be_had() -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(BadOption, match="cannot listen on 127"):
        bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(BadOption, match="cannot listen"):
        bind("192.0.2.1", 0)
    with pytest.raises(BadOption, match="no such address"):
        bind("no.such.host.invalid", 0)


def test_json_logs_name_errors_without_tracebacks() -> None:
    import logging
    import sys

    from blemish.deploy.serve_log import JsonLines

    try:
        raise RuntimeError("inside")
    except RuntimeError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "it failed\n", None, sys.exc_info())
    plain, long = (JsonLines(verbose).format(record) for verbose in (False, True))
    assert json.loads(plain)["error"] == "RuntimeError" and "inside" not in plain and "\n" not in plain
    assert "inside" in json.loads(long)["traceback"] and "\n" not in long


def test_many_connections_at_once() -> None:
    with running() as service:
        clients = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(200)]
        try:
            assert service.ask("GET", "/healthz").status == 200
            assert threading.active_count() < 50
        finally:
            for client in clients:
                client.close()
