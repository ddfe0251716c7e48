"""Generated pictures as a dataset in MVTec's folder layout."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import blemish
from blemish.errors import BadOption, OutputError, UnknownName
from blemish.files import make_folder, printable_name, write_whole
from blemish.synth.draw import MIN_SIZE, draw
from blemish.synth.families import HELD_OUT, SURFACE, TRAINING, Families

GENERATOR = 2
"""Counts the changes of what a seed draws."""
MAX_SIZE, MAX_COUNT = 4096, 10_000_000
ABOUT_FILE, README_FILE = "synth.json", "README.md"
NAMED = {"training": TRAINING, "held_out": HELD_OUT, "all": Families()}
CHUNK = 8
README = """# Generated pictures

Drawn by `blemish synth` ({version}); no photograph was used. Layout as in MVTec AD: `<class>/test/good`,
`<class>/test/<defect>` and `<class>/ground_truth/<defect>/<stem>_mask.png` (0 and 255). A mask is exact: it covers what
differs visibly from the same picture without the defect. `{about}` holds the settings; the same settings and the same
version of the generator draw the same pictures.

The pictures are in the public domain (CC0 1.0): use, change and share them for any purpose. They only resemble
products, scans and tissue; nothing here is suited for medical conclusions.
"""
Progress = Callable[[int, int, str | None], None]


@dataclass(frozen=True)
class SynthOptions:
    """The keys of `blemish synth`, on the command line and in a --config file.

    count: pictures in all. out: the folder of the dataset. size: side in pixels, 64 to 4096. seed: of every random
    number. families: "training", "held_out" or "all" materials, shapes and defects. workers: processes that draw;
    None for one per core. Raises BadOption or UnknownName for values outside these.
    """

    count: int = 1000
    out: str = "blemish-synth"
    size: int = 320
    seed: int = 0
    families: str = "all"
    workers: int | None = None

    def __post_init__(self) -> None:
        check_numbers(self.count, self.size, self.seed, self.workers)
        if self.families not in NAMED:
            raise UnknownName("choice of families", self.families, NAMED)


@dataclass(frozen=True)
class DatasetSummary:
    """What a dataset folder holds after a run: pictures in all, those drawn now, and how they divide."""

    out: Path
    pictures: int
    drawn: int
    normal: int
    anomalous: int
    classes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {**asdict(self), "out": printable_name(self.out), "seconds": round(self.seconds, 2)}


def check_numbers(count: int, size: int, seed: int, workers: int | None) -> None:
    """Raises BadOption for a number outside its range."""
    if count < 1:
        raise BadOption(f"count is {count}; ask for at least one picture")
    if count > MAX_COUNT:
        raise BadOption(f"count is {count}; expected at most {MAX_COUNT}")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise BadOption(f"size is {size}; expected {MIN_SIZE} to {MAX_SIZE} pixels")
    if not 0 <= seed < 2**63:
        raise BadOption(f"seed is {seed}; expected 0 to {2**63 - 1}")
    if workers is not None and workers < 1:
        raise BadOption(f"workers is {workers}; expected at least 1")


def write_dataset(
    out: Path,
    count: int,
    seed: int,
    size: int = 224,
    *,
    families: Families | None = None,
    workers: int = 1,
    on_progress: Progress | None = None,
) -> Path:
    """Write `count` pictures as `<class>/test/good`, `<class>/test/<defect>` and `<class>/ground_truth/<defect>`.

    Classes are the shapes of objects and, for full-frame surfaces, the materials. Masks are 8-bit PNG, 0 and 255,
    named `<stem>_mask.png`. Picture i depends on seed, size, families and i only, so the result is the same with any
    number of workers (processes), and a run can be repeated, resumed or extended: pictures present are kept.
    on_progress: called with (done, count, None). Returns `out`. Raises BadOption (a ValueError) for a count below 1
    or a size outside 64 to 4096, OutputError for a folder that holds something else or other settings.
    """
    write_pictures(out, count, seed, size, families=families, workers=workers, on_progress=on_progress)
    return Path(out)


def write_pictures(
    out: Path,
    count: int,
    seed: int,
    size: int = 224,
    *,
    families: Families | None = None,
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> DatasetSummary:
    """As `write_dataset`; workers None takes one process per core. Returns what the folder holds then."""
    check_numbers(count, size, seed, workers)
    started = time.monotonic()
    out, families = Path(out), families or Families()
    _claim(out, count, seed, size, families)
    present = {path.stem for path in _pictures(out)}
    todo = [index for index in range(count) if _stem(index) not in present]
    done = count - len(todo)
    show = on_progress or (lambda done, total, error: None)
    show(done, count, None)
    job = (out, seed, size, families)
    for written in _in_processes(job, todo, _workers(workers, len(todo))):
        done += written
        show(done, count, None)
    found = _pictures(out)
    normal = sum(path.parent.name == "good" for path in found)
    return DatasetSummary(
        out=out,
        pictures=len(found),
        drawn=len(todo),
        normal=normal,
        anomalous=len(found) - normal,
        classes=len({path.parents[2].name for path in found}),
        seconds=time.monotonic() - started,
    )


def _pictures(out: Path) -> list[Path]:
    return [path for path in out.glob("*/test/*/*.png") if not path.name.startswith(".")]


def _stem(index: int) -> str:
    return f"{index:06d}"


def _claim(out: Path, count: int, seed: int, size: int, families: Families) -> None:
    """Make the folder ours, or make sure that it holds pictures of the same settings."""
    about = out / ABOUT_FILE
    wanted = {"generator": GENERATOR, "seed": seed, "size": size, "families": _lists(families)}
    if about.is_file():
        found = _read_about(about)
        differing = [key for key, value in wanted.items() if found.get(key) != value]
        if differing:
            raise OutputError(
                f"{printable_name(out)} holds pictures of other settings ({', '.join(differing)}); "
                "give the settings of its synth.json, or choose another folder"
            )
        known = found.get("count")
        count = max(count, known) if isinstance(known, int) else count
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(
            f"{printable_name(out)} holds something else than generated pictures; choose a new or an empty folder"
        )
    make_folder(out)
    content = {
        "made_by": "blemish synth",
        "version": blemish.__version__,
        "licence": "CC0-1.0",
        "count": count,
    }
    text = json.dumps({**content, **wanted}, indent=1) + "\n"
    write_whole(about, text.encode())
    readme = README.format(version=f"blemish {blemish.__version__}", about=ABOUT_FILE)
    write_whole(out / README_FILE, readme.encode())


def _lists(families: Families) -> dict[str, list[str]]:
    return {kind: list(names) for kind, names in asdict(families).items()}


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read {printable_name(path)}: {error}; choose another folder") from error
    if not isinstance(about, dict) or about.get("made_by") != "blemish synth":
        raise OutputError(f"{printable_name(path)} is not of `blemish synth`; choose another folder")
    return about


def _workers(wanted: int | None, todo: int) -> int:
    if wanted is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # a process takes about as long to start as to draw this many pictures
        wanted = min(cores, todo // 50)
    return max(1, min(wanted, -(-todo // CHUNK)))


Job = tuple[Path, int, int, Families]


def _in_processes(job: Job, todo: Sequence[int], workers: int) -> Iterator[int]:
    """Write the pictures of the given numbers; yields how many were written, chunk by chunk."""
    chunks = [todo[i : i + CHUNK] for i in range(0, len(todo), CHUNK)]
    if workers == 1:
        for chunk in chunks:
            yield _write(job, chunk)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet)
    try:
        for future in as_completed([pool.submit(_write, job, chunk) for chunk in chunks]):
            yield future.result()
    except BrokenProcessPool as error:
        raise OutputError(
            "a process that draws was killed, perhaps for want of memory; what is done is kept, "
            "run it again with fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _quiet() -> None:
    """Leave Ctrl-C to the parent, which stops handing out work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write(job: Job, indices: Sequence[int]) -> int:
    out, seed, size, families = job
    for index in indices:
        picture = draw(np.random.default_rng([seed, index]), size, families=families)
        group = picture.material if picture.shape == SURFACE else picture.shape
        kind = picture.defect_type or "good"
        # the mask goes first: a picture that is there is complete
        if picture.defect_type is not None:
            mask = picture.mask.astype(np.uint8) * 255
            _save(mask, out / group / "ground_truth" / kind / f"{_stem(index)}_mask.png")
        _save(picture.image, out / group / "test" / kind / f"{_stem(index)}.png")
    return len(indices)


def _save(pixels: np.ndarray, path: Path) -> None:
    write_whole(path, lambda file: Image.fromarray(pixels).save(file, "PNG"))
