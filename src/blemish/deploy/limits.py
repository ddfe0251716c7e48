"""What a request may take: bytes counted while they arrive, time, and memory over all requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
MEGA = 1_000_000
SMALL_ANSWER = 65_536  # bytes that the server's own buffer takes, whether or not the client reads


class Refused(Exception):
    """A request that is answered with an error. status: of HTTP; retry_after: seconds, for 429 and 503."""

    def __init__(self, status: int, text: str, retry_after: int | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.retry_after = status, text, retry_after


class Disconnected(Exception):
    """The client has gone; nobody reads an answer."""


class ByteBudget:
    """Bytes of request bodies held in memory at one time, over all requests. Used from the event loop alone."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0

    def take(self, count: int) -> None:
        """Raises Refused (429) when that would be more than the limit."""
        if self.held + count > self.limit:
            raise Refused(429, "too many requests are being received at once; try again later", 1)
        self.held += count

    def give(self, count: int) -> None:
        """Return bytes that were taken."""
        self.held -= count


class UnreadAnswers:
    """Bytes of answers that clients have not taken yet, over all connections. Used from the event loop alone."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0

    def check(self) -> None:
        """Raises Refused (429) while more than the limit waits for clients."""
        if self.held > self.limit:
            raise Refused(429, "other clients have not taken their answers yet; try again later", 1)

    async def send(self, message: MutableMapping[str, Any], send: Send) -> None:
        """Send a part of an answer's body; of a large one, wait until the client has taken most of it."""
        size = len(message.get("body", b""))
        if size <= SMALL_ANSWER:
            await send(message)
            return
        self.held += size
        try:
            await send({**message, "more_body": True})
            # The server takes another part when little of the one before is left in its buffer.
            await send({**message, "body": b"", "more_body": message.get("more_body", False)})
        finally:
            self.held -= size


async def read_body(
    receive: Receive, declared: str | None, *, max_bytes: int, timeout: float, budget: ByteBudget
) -> bytes:
    """The body of a request; its bytes stay taken from `budget` until the caller returns them.

    receive: of ASGI. declared: the Content-Length header. timeout: seconds for the whole body. Raises Refused: 413
    as soon as the limit is passed, 408 for a body that is late, 429 without memory for it; Disconnected.
    """
    # The HTTP parser has checked that it is a number.
    if declared is not None and int(declared) > max_bytes:
        raise too_many_bytes(max_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                part = message.get("body", b"")
                if size + len(part) > max_bytes:
                    raise too_many_bytes(max_bytes)
                budget.take(len(part))
                size += len(part)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except BaseException as error:
        budget.give(size)
        if isinstance(error, TimeoutError):
            raise Refused(408, f"the request's body was not complete within {timeout:g} seconds") from error
        raise


def too_many_bytes(max_bytes: int) -> Refused:
    """The 413 for a body above the limit."""
    return Refused(
        413, f"the request is larger than the {max_bytes / MEGA:.4g} MB allowed; send fewer or smaller images"
    )


def too_many_pixels(name: str, pixels: int, max_pixels: int) -> Refused:
    """The 413 for images that are too large together. name: the one that passed the limit."""
    return Refused(
        413,
        f"{name}: with it the request has {pixels / MEGA:.4g} megapixels, more than the "
        f"{max_pixels / MEGA:.4g} allowed; send fewer or smaller images",
    )
