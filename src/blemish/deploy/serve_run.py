"""`blemish serve` from the socket to the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blemish.deploy.serve_options import ServeOptions, check_exposure
from blemish.errors import BadOption

if TYPE_CHECKING:
    from blemish.predictor import Predictor

BACKLOG = 2048


def run_service(
    options: ServeOptions,
    load: Callable[[], tuple[Predictor, Path | None]],
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Load a predictor and answer requests until SIGTERM or Ctrl-C; what was accepted is finished.

    load: makes the predictor, and names the file it is made from where that is at hand; called once the address is
    known to be free. on_ready: told the service's URL once requests are answered. Raises BlemishError when the
    service cannot start.
    """
    check_exposure(options)
    listener = bind(options.host, options.port)
    with contextlib.closing(listener):
        make_app, server_of = _need_fastapi()
        predictor, checkpoint = load()
        app = make_app(predictor, options, checkpoint)
        server = server_of(app, options, lambda: on_ready(url_of(listener)) if on_ready else None)
        asyncio.run(server.serve(sockets=[listener]))


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to a host's first address. Raises BadOption when that is impossible."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, place = found[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise BadOption(f"--host {host}: no such address; try 127.0.0.1") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        # From here on the address is ours: another service that would take it hears of it at once.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        cause = (error.strerror or str(error)).lower()
        raise BadOption(f"cannot listen on {host} port {port}: {cause}; choose another --port") from error
    return listener


def url_of(listener: socket.socket) -> str:
    """http://HOST:PORT of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _need_fastapi() -> tuple[Callable[..., Any], Callable[..., Any]]:
    try:
        import python_multipart  # noqa: F401 - only asked whether it is there

        from blemish.deploy.serve import make_app
        from blemish.deploy.serve_http import make_server
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("blemish"):
            raise
        raise BadOption(f'the service needs {error.name}: pip install "blemish[serve]"') from error
    return make_app, make_server
