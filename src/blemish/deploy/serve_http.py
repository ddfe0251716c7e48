"""uvicorn as this service runs it: patience with slow clients has an end, and so has the service, in order."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from blemish.deploy.serve_options import ServeOptions

BACKLOG = 2048
CONNECTIONS = 1000  # at most; more are answered 503
KEEP_ALIVE = 15  # seconds between requests
HEADER_SECONDS = 15.0
TAKE_SECONDS = 30.0  # in which a client must take some of its answer
GRACE = 10.0  # seconds to send answers at the end, besides the time that scoring may take
TOO_MANY = b'{"error": "too many connections; try again later"}'
LATE_BODY = b'{"error": "the headers of the request came too slowly"}'
LATE = b"\r\n".join(
    (
        b"HTTP/1.1 408 Request Timeout",
        b"content-type: application/json",
        b"connection: close",
        b"content-length: %d" % len(LATE_BODY),
        b"",
        LATE_BODY,
    )
)


def make_server(app: Any, options: ServeOptions, on_ready: Callable[[], object]) -> Server:
    """A uvicorn server for `app`; `serve(sockets=[...])` runs it. on_ready: called once it answers."""

    class Protocol(PatientProtocol):
        header_seconds = min(HEADER_SECONDS, options.timeout)
        take_seconds = min(TAKE_SECONDS, options.timeout)

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        # A body and its scoring may take the time limit each.
        timeout_graceful_shutdown=math.ceil(2 * options.timeout + GRACE),
    )
    return Server(config, on_ready)


class Server(uvicorn.Server):
    """Ends with status 0 after SIGTERM or Ctrl-C, when what was accepted is done; a second Ctrl-C does not wait."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: Any = None) -> None:
        """As uvicorn's; then says that it is ready."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the signals are not raised again at the end: they have been obeyed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = signal.SIGINT, signal.SIGTERM
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class PatientProtocol(H11Protocol):
    """HTTP/1.1 with limits that uvicorn does not have: on the time that a request's headers take, and on the time
    for which a client takes nothing of its answer.
    """

    header_seconds, take_seconds = HEADER_SECONDS, TAKE_SECONDS
    _header_timer: asyncio.TimerHandle | None = None
    _take_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Wait on while headers are incomplete, counted from their first byte."""
        if len(self.connections) > CONNECTIONS:
            self.app = _too_many  # for good: the answer closes the connection
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        self._stop_taking()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """More than a little waits for the client: begin to watch that it becomes less."""
        super().pause_writing()
        self._watch_taking()

    def resume_writing(self) -> None:
        """Stop watching."""
        super().resume_writing()
        self._stop_taking()

    def _watch_taking(self) -> None:
        size = self.transport.get_write_buffer_size()
        self._take_timer = self.loop.call_later(self.take_seconds, self._check_taking, size)

    def _stop_taking(self) -> None:
        if self._take_timer is not None:
            self._take_timer.cancel()
            self._take_timer = None

    def _check_taking(self, before: int) -> None:
        if self.transport.get_write_buffer_size() < before:
            self._watch_taking()
        else:
            self.transport.abort()  # and with it what is held for this client

    def _watch(self) -> None:
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_seconds, self._too_late)

    def _stop(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_late(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self.transport.write(LATE)
            self.transport.close()


async def _too_many(scope: Any, receive: Any, send: Any) -> None:
    """The answer to requests on connections beyond the limit."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(TOO_MANY)).encode()),
        (b"retry-after", b"5"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": TOO_MANY})
