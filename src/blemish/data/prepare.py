"""Any dataset that can be opened -> a folder in MVTec layout with a `meta.json`; the originals stay as they are."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from blemish.data.layouts import Dataset
from blemish.data.reading import is_normal_name
from blemish.data.samples import load_mask, load_pixels
from blemish.errors import BadDataset, BadImage, OutputError
from blemish.files import printable_name, write_whole
from blemish.types import Sample

RECORD = "prepare.json"
COMPRESSION = 3  # of PNG: half the time of the default level for a few per cent more bytes
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Target:
    """Where one sample goes: paths relative to the output folder; mask is "" where there is none."""

    sample: Sample
    image: str
    mask: str
    class_name: str
    defect: str


def prepare(
    dataset: Dataset, out: Path, *, on_progress: Callable[[int, int, str | None], None] | None = None
) -> Path:
    """Write a dataset as `<class>/{train,test}/<defect>/*.png`, `<class>/ground_truth/<defect>/*_mask.png`.

    Pictures become 8-bit RGB PNG, cut to their box (KolektorSDD's parts); masks 0 and 255 by the dataset's own
    rule. `meta.json` lists them with relative paths; `prepare.json` says from what they were made. Every file is
    written whole, and an interrupted run goes on when called again. A picture that cannot be read is left out,
    logged, and reported to `on_progress(done, total, error)`.

    out: a new or empty folder, or one of an interrupted run of the same dataset; never one of the originals.
    Returns `out`. Raises BadDataset for pictures without labels, OutputError for a folder that cannot serve.
    """
    unlabelled = [s for s in dataset.samples if s.label is None]
    if unlabelled:
        raise BadDataset(
            f"{len(unlabelled)} of {len(dataset.samples)} pictures in {printable_name(dataset.root)} have no "
            "label; only labelled datasets can be prepared"
        )
    targets = _plan(dataset.samples)
    _claim(dataset, out, targets)
    failed: set[str] = set()
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        for done, (target, error) in enumerate(
            zip(targets, pool.map(lambda t: _write(t, out), targets), strict=True), start=1
        ):
            if error is not None:
                failed.add(target.image)
                _log.warning("left out: %s", error)
            if on_progress is not None:
                on_progress(done, len(targets), error)
    finally:
        pool.shutdown(cancel_futures=True)
    meta = _meta([t for t in targets if t.image not in failed])
    write_whole(out / "meta.json", json.dumps(meta, indent=1).encode())
    return out


def _write(target: _Target, out: Path) -> str | None:
    """Write one sample's files unless they are there; the cause when it cannot be read."""
    image, mask = out / target.image, out / target.mask
    if image.exists() and (not target.mask or mask.exists()):
        return None
    try:
        pixels = load_pixels(target.sample)
        outline = load_mask(target.sample, (pixels.shape[0], pixels.shape[1])) if target.mask else None
    except BadImage as error:
        return str(error)
    if outline is not None:
        write_whole(mask, _png(outline))
    write_whole(image, _png(pixels))
    return None


def _png(pixels: np.ndarray) -> Callable[[BinaryIO], object]:
    return lambda file: Image.fromarray(pixels).save(file, "PNG", compress_level=COMPRESSION)


def _claim(dataset: Dataset, out: Path, targets: Sequence[_Target]) -> None:
    """Make sure that the folder may be written to, and say in it what it will hold."""
    place, source = out.resolve(), dataset.root.resolve()
    homes = {
        source if source.is_dir() else source.parent,
        *(s.image.parent.resolve() for s in dataset.samples),
    }
    for home in homes:
        if place == home or home in place.parents:
            raise OutputError(
                f"{printable_name(out)} lies in the dataset itself; choose a folder outside of it"
            )
    record = _record(dataset, targets)
    path = out / RECORD
    if path.is_file():
        if _read(path).get("fingerprint") != record["fingerprint"]:
            raise OutputError(
                f"{printable_name(out)} holds another prepared dataset ({RECORD}); choose another folder"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{printable_name(out)} is not an empty folder; choose another one")
    write_whole(path, json.dumps(record, indent=1).encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _record(dataset: Dataset, targets: Sequence[_Target]) -> dict[str, Any]:
    base = dataset.root if dataset.root.is_dir() else dataset.root.parent
    plan = [[_relative(t.sample, base), t.sample.box, t.sample.mask_rule, t.image, t.mask] for t in targets]
    return {
        "dataset": dataset.name,
        "layout": dataset.layout,
        "root": printable_name(dataset.root.resolve()),
        "samples": len(targets),
        "notes": list(dataset.notes),
        "licence": dataset.entry.licence if dataset.entry else "",
        "source": dataset.entry.source if dataset.entry else "",
        "fingerprint": hashlib.sha256(json.dumps(plan).encode("utf-8", "backslashreplace")).hexdigest(),
    }


def _relative(sample: Sample, base: Path) -> str:
    """The picture's path below the dataset's folder, so that naming that folder otherwise changes nothing."""
    image = sample.image
    return printable_name(image.relative_to(base) if image.is_relative_to(base) else image)


def _plan(samples: Sequence[Sample]) -> list[_Target]:
    """A name of its own for every sample: its stem, with the folder's name where stems repeat."""
    folders = [_folders(s) for s in samples]
    stems = [_safe(s.image.stem) for s in samples]
    parts = [f"_{_part(s.box)}" if s.box else "" for s in samples]
    plain = Counter((*folder, stem + part) for folder, stem, part in zip(folders, stems, parts, strict=True))
    # where names repeat in one class (KolektorSDD's Part0), all of that class carry their folder's name
    repeating = {folder[0] for *folder, _ in (key for key, count in plain.items() if count > 1)}
    taken: set[tuple[str, ...]] = set()
    targets = []
    for sample, (name, split, defect), stem, part in zip(samples, folders, stems, parts, strict=True):
        # KolektorSDD's parts are called so by everybody: kos01_Part5_0
        prefix = f"{_safe(sample.image.parent.name)}_" if part or name in repeating else ""
        outlined = sample.label == 1 and sample.mask is not None
        # masks of training and test pictures share a folder
        homes = [(name, split, defect), *([(name, "ground_truth", defect)] if outlined else [])]
        choice, number = f"{prefix}{stem}{part}", 2
        while any((*home, choice.casefold()) in taken for home in homes):
            choice, number = f"{prefix}{stem}{part}-{number}", number + 1
        taken.update((*home, choice.casefold()) for home in homes)
        mask = f"{name}/ground_truth/{defect}/{choice}_mask.png" if outlined else ""
        targets.append(_Target(sample, f"{name}/{split}/{defect}/{choice}.png", mask, name, defect))
    return targets


def _folders(sample: Sample) -> tuple[str, str, str]:
    """(class, split, defect) as folder names."""
    defect = _safe(sample.defect or "defect")
    if sample.label == 0:
        defect = "good"
    elif is_normal_name(defect):
        defect = "defect"
    return _safe(sample.class_name), sample.split, defect


def _safe(name: str) -> str:
    """A name that is one folder or file, whatever a list called it."""
    return re.sub(r"[/\\\0]", "_", printable_name(name)).lstrip(".") or "object"


def _part(box: tuple[int, int, int, int]) -> int:
    """Number of a part from the top, of parts that are about equally high."""
    return round(box[1] / (box[3] - box[1]))


def _meta(targets: Sequence[_Target]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    names = dict.fromkeys(t.class_name for t in targets)
    meta: dict[str, dict[str, list[dict[str, Any]]]] = {
        split: {name: [] for name in names} for split in ("train", "test")
    }
    for target in targets:
        entry = {
            "img_path": target.image,
            "mask_path": target.mask,
            "cls_name": target.class_name,
            "specie_name": target.defect,
            "anomaly": target.sample.label,
        }
        meta[target.sample.split][target.class_name].append(entry)
    return meta
