"""What every request passes before and after its route: token, origin, headers of the answer, log, counts."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import Response

from blemish.deploy.limits import Receive, Refused, Send, UnreadAnswers
from blemish.deploy.serve_metrics import Metrics
from blemish.deploy.serve_options import ServeOptions

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
CLIENT_GONE = 499  # in logs and counts alone: nobody is there to be sent it
LINGER_SECONDS = 2.0
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
ROUTES = (
    *("/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/v1/methods", "/v1/predict"),
    *("/v1/history", "/v1/history.csv", "/v1/rates"),
)
_NUMBERED = re.compile(r"/v1/history/[^/]+(/image|/map|/verdict)")
log = logging.getLogger("blemish.serve")


def route_of(path: str, files: frozenset[str]) -> str:
    """The pattern that a path belongs to: few different ones, whatever clients ask for."""
    if path in ROUTES:
        return path
    if found := _NUMBERED.fullmatch(path):
        return f"/v1/history/{{id}}{found[1]}"
    return "page" if path in files else "other"


class Guard:
    """An ASGI application around the service's."""

    def __init__(
        self,
        app: App,
        options: ServeOptions,
        metrics: Metrics,
        unread: UnreadAnswers,
        files: frozenset[str],
    ) -> None:
        """unread: counts what is on its way to clients. files: paths of the page's files, which need no token."""
        self.app, self.options, self.metrics, self.unread, self.files = app, options, metrics, unread, files
        self.open = files | {"/healthz"}
        self._token = None if options.token is None else options.token.encode()
        self._is_local = options.is_local and not options.no_auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        notes: dict[str, Any] = {}
        scope["blemish"] = notes
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    *HEADERS,
                    _caching(scope["path"], self.files),
                ]
            if message["type"] == "http.response.body":
                await self.unread.send(message, send)
            else:
                await send(message)

        # What can be asked for can be asked for by HEAD; the server leaves the body out.
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        body = inner["blemish_body"] = _Body(scope, receive)
        try:
            self._check(scope)
            await self.app(inner, body.receive, observed)
        except Refused as error:
            await refuse(error, observed, body)
        except Exception:  # it has been answered, where that was still possible
            log.exception("a request failed")
        finally:
            self._record(scope, status or CLIENT_GONE, time.perf_counter() - started, notes)

    def _check(self, scope: Scope) -> None:
        """Raise Refused for requests without the token, or which another site's page may have caused."""
        headers = dict(scope["headers"])
        if self._token is not None:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            right = hmac.compare_digest(given.strip(), self._token)
            if scope["path"] not in self.open and not (right and kind.lower() == b"bearer"):
                raise Refused(401, "a token is needed: send the header Authorization: Bearer TOKEN")
            return
        host = headers.get(b"host", b"").decode("latin-1")
        if self._is_local and _name(host) not in LOCAL_NAMES and _name(host) != self.options.host:
            # A web page whose name leads to this machine would else read the history (DNS rebinding).
            raise Refused(403, f"the service of this machine is called localhost, not {_name(host)!r}")
        origin = headers.get(b"origin")
        if origin is not None and _origin(origin.decode("latin-1")) != host.lower():
            raise Refused(403, "requests from pages of other sites are not answered")

    def _record(self, scope: Scope, status: int, seconds: float, notes: dict[str, Any]) -> None:
        route = route_of(scope["path"], self.files)
        self.metrics.request(route, status, seconds)
        fields = {"route": route, "method": scope["method"], "status": status, "ms": round(1000 * seconds, 3)}
        level = logging.INFO if status < 500 else logging.WARNING
        log.log(level, "request", extra={"fields": fields | notes})


class _Body:
    """A request's body on its way in: knows whether more of it is to come."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        names = {key for key, _ in scope["headers"]}
        self._receive = receive
        self.expected = bool(names & {b"content-length", b"transfer-encoding"})

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.expected = False
        return message

    async def drain(self) -> None:
        """Pass over the rest, for a while: a connection closed on a sender would take our answer with it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self.expected:
                    await self.receive()


class Refusal(Response):
    """The answer to a request that is refused inside the application."""

    def __init__(self, error: Refused) -> None:
        super().__init__(status_code=error.status)
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        await refuse(self._error, send, scope["blemish_body"])


async def refuse(error: Refused, send: Send, body: _Body) -> None:
    """Answer {"error": ...}; a body that nobody read is passed over once the answer is on its way."""
    data = json.dumps({"error": error.text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    unread = body.expected
    if unread:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    if unread:
        await send({"type": "http.response.body", "body": data, "more_body": True})
        await body.drain()
        data = b""
    await send({"type": "http.response.body", "body": data})


def _caching(path: str, files: frozenset[str]) -> tuple[bytes, bytes]:
    return b"cache-control", b"no-cache" if path in files else b"no-store"


def _name(host: str) -> str:
    """The name in a Host header, without port or brackets, in lower case."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _origin(origin: str) -> str:
    """Host and port of an Origin header; empty for "null"."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
