"""Latency and throughput of `blemish serve` on this machine, and its memory after many requests.

    python benchmarks/serve_load.py                    # 1, 8 and 64 clients; then 10,000 requests for the memory
    python benchmarks/serve_load.py --requests 300 --each 100 --json load.json

Starts the service as a program of its own, by default with the embedded model, and talks to it over loopback with one
connection per client, one drawn 320 x 320 PNG a request. A request that is told to come again (429) does so and counts
once, with all its waiting; one that gets no answer, or another picture's, is lost. Memory is the service's resident
set (Linux), at the start and before and after the last stage. The clients take their share of the processors.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import io
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

import blemish

CLIENTS = (1, 8, 64)
PICTURES = 16
TIMEOUT = 300.0


@dataclass
class Tally:
    """What the clients of one stage saw. seconds: of each answered request, in the order of its end."""

    seconds: list[float] = field(default_factory=list)
    lost: int = 0
    again: int = 0
    refused: Counter[int] = field(default_factory=Counter)  # by status, of those lost
    lock: threading.Lock = field(default_factory=threading.Lock)


def draw(number: int, side: int) -> bytes:
    """A picture of its own for each number, as PNG."""
    values = np.random.default_rng(number).normal(128, 12, (side // 8, side // 8, 3)).clip(0, 255)
    image = Image.fromarray(values.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


@contextlib.contextmanager
def service(arguments: Sequence[str], log: Path) -> Iterator[tuple[str, int]]:
    """The service's host:port and process number; it is asked to end afterwards and must do so with status 0."""
    command = [sys.executable, "-m", "blemish", "serve", "--port", "0", *arguments]
    with log.open("w") as messages:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, text=True)
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line:
            sys.exit(f"the service did not start; see {log}")
        try:
            yield urlsplit(line).netloc, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(TIMEOUT)
            print(f"the service ended with status {status}", flush=True)


def resident(process: int) -> float:
    """Megabytes of memory that a process holds; NaN where /proc does not tell."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return float("nan")


def client(place: str, pictures: Sequence[bytes], numbers: Iterator[int], tally: Tally) -> None:
    """Send requests one after the other until there are no more numbers."""
    connection = http.client.HTTPConnection(place, timeout=TIMEOUT)
    while True:
        with tally.lock:
            number = next(numbers, None)
        if number is None:
            return
        data = pictures[number % len(pictures)]
        started = time.perf_counter()
        good = ask(connection, f"{number}.png", data, tally)
        with tally.lock:
            tally.lost += not good
            tally.seconds.append(time.perf_counter() - started)


def ask(connection: http.client.HTTPConnection, name: str, data: bytes, tally: Tally) -> bool:
    """Whether this very picture was scored."""
    head = f'--B\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'
    body = head.encode() + data + b"\r\n--B--\r\n"
    while True:
        try:
            connection.request(
                "POST", "/v1/predict", body, {"Content-Type": "multipart/form-data; boundary=B"}
            )
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            connection.close()
            return False
        if response.status == 429:
            with tally.lock:
                tally.again += 1
            time.sleep(float(response.headers["Retry-After"]))
            continue
        if response.status != 200:
            with tally.lock:
                tally.refused[response.status] += 1
            return False
        found = answer["results"][0]
        return bool(found["name"] == name and found["sha256"] == hashlib.sha256(data).hexdigest())


def stage(place: str, pictures: Sequence[bytes], clients: int, requests: int) -> dict[str, Any]:
    """Send `requests` from `clients` at once; print how that went, and return it."""
    tally, numbers = Tally(), iter(range(requests))
    threads = [
        threading.Thread(target=client, args=(place, pictures, numbers, tally)) for _ in range(clients)
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - started
    p50, p95, p99 = (1000 * float(np.percentile(tally.seconds, share)) for share in (50, 95, 99))
    # A thread that died would have taken its request with it.
    lost = tally.lost + requests - len(tally.seconds)
    found = {
        "clients": clients,
        "requests": requests,
        "per_second": requests / spent,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "max_ms": 1000 * max(tally.seconds),
        "again": tally.again,
        "lost": lost,
        "refused": dict(tally.refused),
    }
    figures = "  ".join(
        f"{found[key]:>8.1f}" for key in ("per_second", "p50_ms", "p95_ms", "p99_ms", "max_ms")
    )
    print(f"{clients:>7}  {requests:>8}  {figures}  {tally.again:>5}  {lost:>4}", flush=True)
    if tally.refused:
        print(
            f"         lost by status: {dict(tally.refused)} (504: not scored within the service's --timeout)"
        )
    return found


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """All stages on one service, and its memory between them."""
    pictures = [draw(number, given.side) for number in range(PICTURES)]
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "blemish": blemish.__version__,
        "side": given.side,
        "serve": given.serve,
        "stages": [],
    }
    print(f"{found['machine']}, {found['processors']} processors, Python {found['python']}")
    with service(["--quiet", *given.serve], given.log) as (place, process):
        found["memory_start_mb"] = resident(process)
        print(f"memory at the start: {found['memory_start_mb']:.0f} MB")
        columns = ("clients", "requests", "a second", "p50 ms", "p95 ms", "p99 ms", "max ms", "again", "lost")
        print(f"{columns[0]:>7}  " + "  ".join(f"{name:>8}" for name in columns[1:7]) + "  again  lost")
        for clients in given.clients:
            found["stages"].append(stage(place, pictures, clients, given.each))
        found["memory_before_mb"] = resident(process)
        if given.requests:
            found["stages"].append(stage(place, pictures, max(given.clients), given.requests))
        found["memory_after_mb"] = resident(process)
        print(
            f"memory before the last stage: {found['memory_before_mb']:.0f} MB, "
            f"after it: {found['memory_after_mb']:.0f} MB"
        )
    found["lost"] = sum(one["lost"] for one in found["stages"])
    return found


def main() -> None:
    """Print one line a stage; exit status 1 when a request was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000, help="of the last stage, for the memory")
    parser.add_argument("--each", type=int, default=500, help="requests of each stage before")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--side", type=int, default=320, help="of the pictures, in pixels")
    parser.add_argument("--log", type=Path, default=Path("serve_load.log"), help="the service's messages")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="more options of blemish serve")
    given = parser.parse_args()
    found = measure(given)
    print(f"requests lost: {found['lost']}")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if found["lost"] else 0)


if __name__ == "__main__":
    main()
