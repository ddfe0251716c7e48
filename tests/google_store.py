"""A small object store that speaks as much of Google Cloud Storage's JSON protocol as gcsfs asks for, on loopback."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from object_store import PAGE, WHEN, Store, running


class GoogleStore(Store):
    """The same store, spoken to in another way; requests need no account."""

    @property
    def environment(self) -> dict[str, str]:
        """What makes gcsfs, here and in other processes, talk to this store: what users of an emulator would set."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "FSSPEC_GS_TOKEN": "anon",
            # Buckets with folders of their own are asked about in another protocol.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


def google_store() -> contextlib.AbstractContextManager[GoogleStore]:
    """A running store with one empty bucket, called line."""
    return running(GoogleStore(), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    held: GoogleStore

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""

    @property
    def place(self) -> tuple[str, str]:
        """Bucket and key that the request is about; "" for none."""
        _, _, rest = urlsplit(self.path).path.partition("/storage/v1/b/")
        bucket, _, key = rest.partition("/o")
        return unquote(bucket), unquote(key.removeprefix("/"))

    @property
    def query(self) -> dict[str, str]:
        found = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        return {key: values[0] for key, values in found.items()}

    def do_GET(self) -> None:
        bucket, key = self.place
        name = f"{bucket}/{key}"
        if bucket not in self.held.buckets:
            self.deny(404, "The specified bucket does not exist.")
        elif not key:
            asked = urlsplit(self.path).path.endswith("/o")
            self.answer(200, self.listing(bucket) if asked else {"kind": "storage#bucket", "name": bucket})
        elif name not in self.held.objects:
            self.deny(404, f"No such object: {name}")
        elif self.query.get("alt") == "media":
            if self.held.busy[name] > 0:
                self.held.busy[name] -= 1
                self.deny(503, "please come back later")
                return
            self.held.reads.append(name)
            self.send_object(self.held.objects[name])
        else:
            self.answer(200, self.about(bucket, key))

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        bucket, _ = self.place
        if self.query.get("uploadType") != "multipart":
            self.deny(501, "only uploads in one request")
            return
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        about, body = BytesParser(policy=HTTP).parsebytes(head + content).iter_parts()
        key = json.loads(about.get_content())["name"]
        name = f"{bucket}/{key}"
        if name.startswith(self.held.sealed):
            self.deny(403, "this place is read only")
            return
        self.held.objects[name] = body.get_payload(decode=True)
        self.held.writes.append(name)
        self.answer(200, self.about(bucket, key))

    def do_DELETE(self) -> None:
        name = "/".join(self.place)
        if self.held.objects.pop(name, None) is None:
            self.deny(404, f"No such object: {name}")
            return
        self.held.deletes.append(name)
        self.send(204, b"")

    def about(self, bucket: str, key: str) -> dict[str, str]:
        """An object as listings show it."""
        content = self.held.objects[f"{bucket}/{key}"]
        digest = hashlib.md5(content, usedforsecurity=False).digest()
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": key,
            "size": str(len(content)),
            "updated": WHEN,
            "timeCreated": WHEN,
            "md5Hash": base64.b64encode(digest).decode(),
        }

    def listing(self, bucket: str) -> dict[str, object]:
        """A page of the objects of a bucket."""
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        rows: dict[str, dict[str, str] | None] = {}
        for name in self.held.below(f"{bucket}/{prefix}"):
            key = name.removeprefix(f"{bucket}/")
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                rows[prefix + rest.partition(delimiter)[0] + delimiter] = None
            else:
                rows[key] = self.about(bucket, key)
        left = [key for key in rows if key > self.query.get("pageToken", "")]
        page = left[: min(PAGE, int(self.query.get("maxResults", PAGE)))]
        found: dict[str, object] = {"items": [row for key in page if (row := rows[key]) is not None]}
        found["kind"] = "storage#objects"
        found["prefixes"] = [key for key in page if rows[key] is None]
        if len(page) < len(left):
            found["nextPageToken"] = page[-1]
        return found

    def send_object(self, content: bytes) -> None:
        """An object, or the range of it that was asked for."""
        span = self.headers.get("Range")
        if span is None:
            self.send(200, content)
            return
        first, _, last = span.removeprefix("bytes=").partition("-")
        stop = min(int(last) + 1, len(content)) if last else len(content)
        where = {"Content-Range": f"bytes {first}-{stop - 1}/{len(content)}"}
        self.send(206, content[int(first) : stop], **where)

    def deny(self, status: int, message: str) -> None:
        """An error, as Google's service says it."""
        self.answer(status, {"error": {"code": status, "message": message}})

    def answer(self, status: int, values: object) -> None:
        self.send(status, json.dumps(values).encode(), **{"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)
