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
GRACE = 10.0  # seconds to send answers at the end, besides the time that scoring may take
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
    patience = min(HEADER_SECONDS, options.timeout)

    class Protocol(PatientProtocol):
        header_seconds = patience

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
        limit_concurrency=CONNECTIONS,
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
    """HTTP/1.1 with a limit on the time that a request's headers may take, which uvicorn does not have."""

    header_seconds = HEADER_SECONDS
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Wait on while headers are incomplete, counted from their first byte."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)

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
