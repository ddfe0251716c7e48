"""The keys of `blemish serve`, and what of them is refused before anything is loaded."""

from __future__ import annotations

import ipaddress
import math
import socket
from dataclasses import dataclass

from blemish.config import LoadOptions, check_counts, check_seed
from blemish.errors import BadOption

COUNTS = ("max_bytes", "max_pixels", "max_images", "queue", "batch_size", "threads")


@dataclass(frozen=True)
class ServeOptions(LoadOptions):
    """The keys of `blemish serve`, on the command line and in a --config file; None: not given.

    class_names: a file of words for class names. seed: draws the shots. host, port: where to listen; port 0 takes a
    free one. token: what clients must send; no_auth: listen beyond this machine without one. db: file or postgresql://
    URL of the history; keep: folder of images and maps. max_bytes, max_pixels, max_images: of one request. queue:
    images accepted and not yet answered, at most. batch_size: images that go through the network together;
    batch_wait_ms: how long an unfull batch waits for more. timeout: seconds in which a request's body must have come,
    and again in which it must have been scored.
    """

    class_names: str | None = None
    seed: int = 0
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    no_auth: bool = False
    db: str | None = None
    keep: str | None = None
    max_bytes: int = 64_000_000
    max_pixels: int = 100_000_000
    max_images: int = 32
    queue: int = 64
    batch_size: int = 8
    batch_wait_ms: float = 5.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        check_counts(self, *COUNTS)
        check_seed(self.seed)
        if not 0 <= self.port <= 65535:
            raise BadOption(f"port is {self.port}; expected 1 to 65535, or 0 for a free one")
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise BadOption(f"timeout is {self.timeout}; expected seconds above 0")
        if not 0 <= self.batch_wait_ms <= 10_000:
            raise BadOption(f"batch_wait_ms is {self.batch_wait_ms}; expected 0 to 10000 milliseconds")
        if self.queue < self.max_images:
            raise BadOption(
                f"queue is {self.queue}, less than the {self.max_images} images allowed in a request; raise --queue or "
                f"lower --max-images"
            )
        if self.keep is not None and self.db is None:
            raise BadOption("--keep files belong to inspections of a history; pass --db FILE too")
        if self.token is not None and not (self.token and self.token.isascii() and self.token.isprintable()):
            raise BadOption(
                "the token is empty or has characters that no header can hold; use printable ASCII"
            )
        if self.token is not None and " " in self.token:
            raise BadOption("the token has a space; use printable ASCII without spaces")
        if self.token is not None and self.no_auth:
            raise BadOption("--token and --no-auth exclude each other; choose one")

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether every address of a host, by name or number, is this machine's own; False when there is none."""
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(
        ipaddress.ip_address(str(place[0]).partition("%")[0]).is_loopback for *_, place in found
    )


def check_exposure(options: ServeOptions) -> None:
    """Raise BadOption when others could reach the service without a token and nobody said that they may."""
    if not options.is_local and options.token is None and not options.no_auth:
        raise BadOption(
            f"--host {options.host} lets other machines connect; pass --token TOKEN (or set BLEMISH_TOKEN), "
            f"or --no-auth when they all may"
        )
