"""A small object store that speaks as much of S3's protocol as s3fs asks for: objects in memory, on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

WHEN = "2026-01-02T03:04:05.000Z"
KEY = "a-key"
PAGE = 3  # keys of a listing: so small that every listing worth the name goes on


@dataclass
class Store:
    """buckets: those that there are. objects: content by "bucket/key". sealed: keys that begin so cannot be written.

    url: of the server. reads, writes, deletes: keys in the order of the requests that were answered. busy: how many
    more requests for an object by its key are told to come back later.
    """

    url: str = ""
    buckets: set[str] = field(default_factory=lambda: {"line"})
    objects: dict[str, bytes] = field(default_factory=dict)
    sealed: str = "\0"
    reads: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    deletes: list[str] = field(default_factory=list)
    busy: Counter[str] = field(default_factory=Counter)

    @property
    def environment(self) -> dict[str, str]:
        """What makes s3fs, here and in other processes, talk to this store: what users would set."""
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": "secret"}
        here = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "AWS_DEFAULT_REGION": "us-east-1"}
        return {"AWS_ENDPOINT_URL": self.url, "AWS_EC2_METADATA_DISABLED": "true", **keys, **here}

    def below(self, prefix: str) -> list[str]:
        """The keys that begin so, sorted."""
        return sorted(key for key in self.objects if key.startswith(prefix))

    def forget(self) -> None:
        """Begin the lists of requests anew."""
        for requests in (self.reads, self.writes, self.deletes):
            requests.clear()


S = TypeVar("S", bound=Store)


def object_store() -> contextlib.AbstractContextManager[Store]:
    """A running store with one empty bucket, called line."""
    return running(Store(), _Handler)


@contextlib.contextmanager
def running(store: S, kind: type[BaseHTTPRequestHandler]) -> Iterator[S]:
    """`store` behind a server on loopback whose requests `kind` answers; it has the store as `held`."""
    handler = type("Handler", (kind,), {"held": store})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    held: Store

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""

    @property
    def name(self) -> str:
        """Bucket and key that the request is about."""
        return unquote(urlsplit(self.path).path).strip("/")

    def refused(self) -> bool:
        """Whether the request was answered already: nobody's, about no bucket, or at a busy time."""
        signed = self.headers.get("Authorization", "")
        if not signed.startswith(f"AWS4-HMAC-SHA256 Credential={KEY}/"):
            self.deny(403, "InvalidAccessKeyId", "the access key is not known")
        elif self.name.partition("/")[0] not in self.held.buckets:
            self.deny(404, "NoSuchBucket", "the bucket does not exist")
        elif self.held.busy[self.name] > 0:
            self.held.busy[self.name] -= 1
            self.deny(503, "SlowDown", "please come back later")
        else:
            return False
        return True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.refused():
            return
        if "/" not in self.name:
            query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
            self.answer(200, self.listing({key: values[0] for key, values in query.items()}))
        elif (content := self.held.objects.get(self.name)) is None:
            self.deny(404, "NoSuchKey", "the key does not exist")
        else:
            if self.command == "GET":
                self.held.reads.append(self.name)
            self.send_object(content)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.refused():
            return
        if self.name.startswith(self.held.sealed):
            self.deny(403, "AccessDenied", "this place is read only")
            return
        self.held.objects[self.name] = content
        self.held.writes.append(self.name)
        self.answer(200, b"", ETag=_tag(content))

    def do_DELETE(self) -> None:
        if not self.refused():
            self.held.objects.pop(self.name, None)
            self.held.deletes.append(self.name)
            self.answer(204, b"")

    def send_object(self, content: bytes) -> None:
        """An object, or the range of it that was asked for."""
        more = {"ETag": _tag(content), "Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT"}
        span = self.headers.get("Range")
        if span is None:
            self.answer(200, content, **more)
            return
        first, _, last = span.removeprefix("bytes=").partition("-")
        stop = min(int(last) + 1, len(content)) if last else len(content)
        where = {"Content-Range": f"bytes {first}-{stop - 1}/{len(content)}"}
        self.answer(206, content[int(first) : stop], **more, **where)

    def listing(self, query: dict[str, str]) -> bytes:
        """ListObjectsV2, a page of it."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token", "")
        rows: dict[str, str] = {}
        for name in self.held.below(f"{self.name}/{prefix}"):
            key = name.removeprefix(f"{self.name}/")
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folder = prefix + rest.partition(delimiter)[0] + delimiter
                rows[folder] = f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
            else:
                content = self.held.objects[name]
                rows[key] = (
                    f"<Contents><Key>{escape(key)}</Key><LastModified>{WHEN}</LastModified>"
                    f"<ETag>{_tag(content)}</ETag><Size>{len(content)}</Size></Contents>"
                )
        left = [key for key in rows if key > after]
        page, more = left[:PAGE], len(left) > PAGE
        going_on = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        head = f"<Name>{self.name}</Name><KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
        body = head + going_on + "".join(rows[key] for key in page)
        space = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
        return f"<ListBucketResult {space}>{body}</ListBucketResult>".encode()

    def deny(self, status: int, code: str, message: str) -> None:
        """An error, as S3 says it."""
        self.answer(status, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode())

    def answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _tag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
