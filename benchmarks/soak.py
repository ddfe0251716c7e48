"""Many good and bad images through `blemish predict` and through the service: counts must match, memory must be flat.

    python benchmarks/soak.py                         # 2,000 images, both ways, with the embedded model
    python benchmarks/soak.py -n 100 --json soak.json

The script draws small images of every format, depth and kind, about one in four of them bad: cut short, empty, text,
random bytes, a header that claims 40 gigapixels. It knows which are which. Then

- `blemish predict` gets a list of them as a program of its own. Each must have one line, in order; the failed ones must
  be exactly the bad ones; the exit status must be 1; `run.json` must count the same.
- `blemish serve` gets each in a request of its own from several clients. Good ones must be scored, bad ones refused
  with one line; `/metrics` must count the same.

Memory is the program's resident set (Linux), read after each image. The slope is that of a straight line through the
readings after the first third, in MB for 1,000 images. Exit status 1 when a count differs or, from 500 images on (fewer
are all warm-up), memory grew by more than --allowed MB over that line.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import io
import json
import os
import platform
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from serve_load import TIMEOUT, resident, service

WARM_UP = 1 / 3
JUDGED = 500  # images from which on growing memory is a fault
BAD_SHARE = 0.25
PICTURE = tuple[str, bytes]  # ending of its name, content


@dataclass(frozen=True)
class Item:
    """One file. kind: what it was drawn as. good: whether it is a picture that must be scored."""

    path: Path
    kind: str
    good: bool


@dataclass
class Stage:
    """What one way of scoring showed. memory: (images done, MB) in order. faults: what is not as expected."""

    name: str
    seconds: float = 0.0
    good: int = 0
    bad: int = 0
    memory: list[tuple[int, float]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def line(self) -> tuple[float, float, float]:
        """Memory by a straight line after the warm-up: MB at its begin and end, slope in MB for 1,000 images."""
        first = self.memory[-1][0] * WARM_UP if self.memory else 0
        late = np.array([reading for reading in self.memory if reading[0] >= first], dtype=float)
        if len(late) < 3 or not np.isfinite(late).all():
            return float("nan"), float("nan"), float("nan")
        slope, start = np.polyfit(late[:, 0], late[:, 1], 1)
        return float(start + slope * late[0, 0]), float(start + slope * late[-1, 0]), float(1000 * slope)

    def check(self, holds: bool, text: str) -> None:
        """Keep a fault, the first few of them."""
        if not holds and len(self.faults) < 20:
            self.faults.append(text)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def _tiff(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def _huge_png() -> bytes:
    """A correct header of 200,000 x 200,000 pixels, with the data of one row."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 600_001)) + chunk(b"IEND", b"")


def pixels(rng: np.random.Generator) -> np.ndarray:
    """A small picture, uint8 (H, W, 3), soft noise of random size."""
    height, width = (int(rng.integers(24, 161)) for _ in range(2))
    coarse = rng.normal(128, 40, (height // 8 + 1, width // 8 + 1, 3)).clip(0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


Draw = Callable[[np.ndarray, np.random.Generator], PICTURE]
GOOD: dict[str, Draw] = {
    "png": lambda a, _: (".png", _saved(Image.fromarray(a), "PNG")),
    "jpeg": lambda a, _: (".jpg", _saved(Image.fromarray(a), "JPEG", quality=85)),
    "bmp": lambda a, _: (".bmp", _saved(Image.fromarray(a), "BMP")),
    "webp": lambda a, _: (".webp", _saved(Image.fromarray(a), "WEBP")),
    "gif": lambda a, _: (".gif", _saved(Image.fromarray(a), "GIF")),
    "tiff": lambda a, _: (".tif", _saved(Image.fromarray(a), "TIFF", compression="tiff_lzw")),
    "grey": lambda a, _: (".png", _saved(Image.fromarray(a).convert("L"), "PNG")),
    "palette": lambda a, _: (".png", _saved(Image.fromarray(a).quantize(32), "PNG")),
    "alpha": lambda a, _: (".png", _saved(Image.fromarray(np.dstack([a, a[:, :, 0]])), "PNG")),
    "cmyk": lambda a, _: (".jpg", _saved(Image.fromarray(a).convert("CMYK"), "JPEG")),
    "16 bit png": lambda a, _: (".png", _saved(Image.fromarray(a[:, :, 0].astype(np.uint16) * 257), "PNG")),
    "16 bit tiff": lambda a, _: (".tiff", _tiff(a.astype(np.uint16) * 257, photometric="rgb")),
    "turned": lambda a, rng: (
        ".jpg",
        _saved(Image.fromarray(a), "JPEG", exif=_turned(int(rng.integers(1, 9)))),
    ),
    "wrong ending": lambda a, _: (".png", _saved(Image.fromarray(a), "JPEG")),
    "unknown ending": lambda a, _: (".dat", _saved(Image.fromarray(a), "PNG")),
}
BAD: dict[str, Draw] = {
    "half a png": lambda a, rng: (".png", _cut(_saved(Image.fromarray(_noise(a, rng)), "PNG"))),
    "half a jpeg": lambda a, rng: (".jpg", _cut(_saved(Image.fromarray(_noise(a, rng)), "JPEG", quality=95))),
    "half a tiff": lambda a, _: (".tif", _cut(_tiff(a.astype(np.uint16), photometric="rgb"))),
    "empty": lambda _, __: (".png", b""),
    "text": lambda _, __: (".jpg", b"this is a shopping list: bread, milk\n"),
    "random": lambda _, rng: (".bmp", bytes(rng.integers(128, 256, 500, dtype=np.uint8))),
    "huge claim": lambda _, __: (".png", _huge_png()),
    "floats": lambda a, _: (".tif", _tiff(a[:, :, 0].astype(np.float32) + 300)),
}


def _noise(like: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, like.shape, dtype=np.uint8)


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def draw(folder: Path, count: int, seed: int) -> list[Item]:
    """`count` files of all kinds in random order, the same for the same seed."""
    rng = np.random.default_rng(seed)
    items = []
    for number in range(count):
        good = bool(rng.random() >= BAD_SHARE)
        kinds = GOOD if good else BAD
        kind = list(kinds)[int(rng.integers(len(kinds)))]
        ending, data = kinds[kind](pixels(rng), rng)
        path = folder / f"{number:05d} {kind}{ending}"
        path.write_bytes(data)
        items.append(Item(path, kind, good))
    return items


def through_predict(items: Sequence[Item], place: Path, options: Sequence[str]) -> Stage:
    """All files through `blemish predict`, whose lines on standard output tell how far it is."""
    stage, out, paths = Stage("predict"), place / "out", place / "paths.txt"
    paths.write_text("".join(f"{item.path}\n" for item in items), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "blemish",
        "predict",
        str(paths),
        "-o",
        str(out),
        "--json",
        "--quiet",
        *options,
    ]
    started, records = time.perf_counter(), []
    with (place / "predict.log").open("w") as messages:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            records.append(json.loads(line))
            stage.memory.append((len(records), resident(process.pid)))
        status = process.wait(TIMEOUT)
    stage.seconds = time.perf_counter() - started
    stage.bad = sum("error" in record for record in records)
    stage.good = len(records) - stage.bad
    stage.check(status == 1, f"exit status {status}, expected 1; see {messages.name}")
    compare(stage, items, records, "standard output")
    written = out / "predictions.jsonl"
    if written.is_file():
        lines = written.read_text(encoding="utf-8").splitlines()
        compare(stage, items, [json.loads(line) for line in lines], written.name)
        counts = json.loads((out / "run.json").read_text(encoding="utf-8"))["counts"]
        expected = {"total": len(items), "failed": sum(not item.good for item in items)}
        found = {key: counts.get(key) for key in expected}
        stage.check(found == expected, f"run.json counts {found}, expected {expected}")
    return stage


def compare(stage: Stage, items: Sequence[Item], records: Sequence[dict[str, Any]], where: str) -> None:
    """Each file has its own record, in order, an error or a finite score as it should."""
    stage.check(len(records) == len(items), f"{where}: {len(records)} lines for {len(items)} images")
    for item, record in zip(items, records, strict=False):
        stage.check(
            record["path"] == str(item.path), f"{where}: {record['path']} where {item.path} should be"
        )
        if item.good:
            stage.check(
                np.isfinite(record.get("score", np.nan)), f"{where}: {item.path.name}: {record.get('error')}"
            )
        else:
            text = record.get("error", "")
            stage.check(bool(text) and "\n" not in text, f"{where}: {item.path.name} is bad and has no error")


def ask(connection: http.client.HTTPConnection, item: Item) -> tuple[bool, str]:
    """Whether a file was scored by the service, and what it said otherwise."""
    head = f'--B--X\r\nContent-Disposition: form-data; name="images"; filename="{item.path.name}"\r\n\r\n'
    body = head.encode() + item.path.read_bytes() + b"\r\n--B--X--\r\n"
    while True:
        connection.request(
            "POST", "/v1/predict", body, {"Content-Type": "multipart/form-data; boundary=B--X"}
        )
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status == 429:
            time.sleep(float(response.headers["Retry-After"]))
            continue
        if response.status == 200:
            return bool(np.isfinite(answer["results"][0]["score"])), ""
        return False, answer["results"][0]["error"] if "results" in answer else answer["error"]


def client(place: str, process: int, queue: Iterator[Item], lock: threading.Lock, stage: Stage) -> None:
    """Send files until there are none left."""
    connection = http.client.HTTPConnection(place, timeout=TIMEOUT)
    while True:
        with lock:
            item = next(queue, None)
        if item is None:
            return
        try:
            scored, said = ask(connection, item)
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            connection.close()
            scored, said = False, f"lost: {error!r}"
        with lock:
            stage.good += scored
            stage.bad += not scored
            stage.memory.append((stage.good + stage.bad, resident(process)))
            stage.check(scored == item.good, f"service: {item.path.name}: {said or 'scored'}")
            stage.check(
                scored or (bool(said) and "\n" not in said), f"service: {item.path.name}: said {said!r}"
            )
            stage.check(not said.startswith("lost"), f"service: {item.path.name}: {said}")


def through_service(items: Sequence[Item], place: Path, clients: int, options: Sequence[str]) -> Stage:
    """Each file in a request of its own to `blemish serve`."""
    stage, lock, queue = Stage("serve"), threading.Lock(), iter(items)
    with service(["--quiet", *options], place / "serve.log") as (address, process):
        started = time.perf_counter()
        threads = [
            threading.Thread(target=client, args=(address, process, queue, lock, stage))
            for _ in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stage.seconds = time.perf_counter() - started
        connection = http.client.HTTPConnection(address, timeout=TIMEOUT)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    counted = re.search(r"^blemish_images_total (\d+)$", text, re.M)
    expected = sum(item.good for item in items)
    stage.check(
        counted is not None and int(counted[1]) == expected,
        f"/metrics counts {counted and counted[1]} images, expected {expected}",
    )
    return stage


def report(stage: Stage, allowed: float) -> dict[str, Any]:
    """Print a stage, and give it as plain values; too much growth becomes a fault."""
    start, end, slope = stage.line()
    peak = max((reading[1] for reading in stage.memory), default=float("nan"))
    short = stage.good + stage.bad < JUDGED
    stage.check(
        short or not end - start > allowed, f"memory grew by {end - start:.0f} MB, more than {allowed:.0f}"
    )
    print(
        f"{stage.name:<8} {stage.good + stage.bad:>6} images  {stage.good:>6} scored  {stage.bad:>6} refused  "
        f"{stage.seconds:>8.1f} s  memory {start:.0f} to {end:.0f} MB (peak {peak:.0f}), "
        f"slope {slope:+.2f} MB for 1,000 images",
        flush=True,
    )
    for fault in stage.faults:
        print(f"  FAULT {fault}", flush=True)
    return {
        **{
            "stage": stage.name,
            "scored": stage.good,
            "refused": stage.bad,
            "seconds": round(stage.seconds, 1),
        },
        **{
            "memory_start_mb": start,
            "memory_end_mb": end,
            "memory_peak_mb": peak,
            "slope_mb_per_1000": slope,
        },
        "faults": stage.faults,
    }


def main() -> None:
    """Print one line a stage; exit status 1 when anything differs from what was expected."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", "--images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=4, help="of the service, at once")
    parser.add_argument(
        "--allowed", type=float, default=50.0, help="MB by which memory may grow after the warm-up"
    )
    parser.add_argument("--only", choices=("predict", "serve"), help="one of the two ways")
    parser.add_argument("--save", default="overlay,mask,map", help="what blemish predict writes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures, as JSON")
    parser.add_argument("--model", nargs=argparse.REMAINDER, default=[], help="more options of both commands")
    given = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "images").mkdir()
        items = draw(place / "images", given.images, given.seed)
        kinds = collections.Counter(item.kind for item in items)
        good = sum(item.good for item in items)
        print(
            f"{machine}\n{len(items)} images of {len(kinds)} kinds: {good} good, {len(items) - good} bad",
            flush=True,
        )
        stages: list[dict[str, Any]] = []
        if given.only != "serve":
            stage = through_predict(items, place, ["--save", given.save, *given.model])
            stages.append(report(stage, given.allowed))
        if given.only != "predict":
            stage = through_service(items, place, given.clients, given.model)
            stages.append(report(stage, given.allowed))
    if given.json:
        figures = {
            "machine": machine,
            "images": len(items),
            "good": good,
            "kinds": dict(kinds),
            "stages": stages,
        }
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    faults = sum(len(found["faults"]) for found in stages)
    print(f"faults: {faults}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
