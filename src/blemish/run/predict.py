"""A whole run of `blemish predict`: many pictures in, tables, pictures and a gallery out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np

from blemish.config import SAVED_KINDS
from blemish.data.images import ImageRef, decode_image, pixel_count
from blemish.errors import BadImage, BadOption, OutputError, UnknownName
from blemish.files import make_folder, public_backbone, write_whole
from blemish.machine import package_versions
from blemish.output.attention import attention_sheet
from blemish.output.pictures import gallery_pair, overlay, png_bytes
from blemish.output.report import GallerySpool, write_gallery
from blemish.output.tables import (
    PredictionWriter,
    error_record,
    read_records,
    record,
    write_attention,
    write_map,
    write_mask,
)
from blemish.pipeline import PIXELS_IN_FLIGHT, decoded_batches, ordered_map
from blemish.predictor import Predictor, Prepared, Raw
from blemish.types import Attends, Result

FOLDERS = {
    "overlay": ("overlays", ".png"),
    "mask": ("masks", ".png"),
    "map": ("maps", ".tiff"),
    "attention": ("attention", ".png"),
}
RUN_FILE, LINES_FILE, GALLERY_FILE = "run.json", "predictions.jsonl", "index.html"
WRITERS = 2
Progress = Callable[[int, int, str | None], None]


@dataclass(frozen=True)
class RunSummary:
    """How a run ended.

    done: good images, `skipped` of them before a resume. anomalous: None without a threshold.
    """

    out: Path
    total: int
    done: int
    failed: int
    skipped: int
    anomalous: int | None
    seconds: float

    @property
    def gallery(self) -> Path:
        """The page to open."""
        return self.out / GALLERY_FILE

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some failed, 2 nothing done."""
        return 0 if not self.failed else 1 if self.done else 2


@dataclass(frozen=True)
class Job:
    """One picture between the stages: decoded, seen by the network, or failed on the way."""

    ref: ImageRef
    prepared: Prepared | None = None
    raw: Raw | None = None
    error: str | None = None


def check_output(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse an output folder that holds an earlier run, unless it is to be resumed or overwritten.

    Raises OutputError, or BadOption when both are asked for.
    """
    if resume and overwrite:
        raise BadOption("--resume and --overwrite exclude each other; choose one")
    if not (resume or overwrite) and any((out / name).exists() for name in (RUN_FILE, LINES_FILE)):
        raise OutputError(
            f"{out} holds an earlier run; go on with it with --resume, replace it with --overwrite, "
            f"or choose another folder with --out"
        )


def predict_folder(
    detector: Predictor,
    refs: Sequence[ImageRef],
    out: Path,
    *,
    save: Sequence[str] = ("overlay",),
    batch_size: int = 8,
    resume: bool = False,
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
    on_record: Callable[[Mapping[str, Any]], None] | None = None,
    on_progress: Progress | None = None,
) -> RunSummary:
    """Score `refs` and write tables, pictures and the gallery into `out`.

    Decoding and writing run in threads beside the network, with a bounded number of pictures and pixels in
    flight. A picture that cannot be used is recorded with its cause and the rest go on. resume: skip what an
    earlier run with the same settings has done; overwrite: start anew (its tables and page are replaced, no
    file is deleted). about: more settings for run.json. on_record receives each new record in input order;
    on_progress (done, total, error). Raises OutputError when `out` cannot be written or holds another run,
    BadOption for impossible options.
    """
    started = time.perf_counter()
    check_output(out, resume=resume, overwrite=overwrite)
    check_save(detector, save)
    refs = [ref for ref in refs if not is_own_output(ref.path, out)]
    if not refs:
        raise BadOption(
            "no images given; name files, folders, globs, a .txt of paths, or - for standard input"
        )
    settings = run_settings(detector, save)
    if resume:
        _check_same(out, settings)
    make_folder(out)
    detector.warn_about_class_name()
    run = run_info(detector, settings, batch_size) | dict(about or {})
    write_json(out / RUN_FILE, run | {"status": "running"})
    with PredictionWriter(out, resume=resume) as writer, GallerySpool(out, resume=resume) as spool:
        tally = _Tally(len(refs), writer.done, refs, on_progress)
        todo = [ref for ref in refs if key_of(ref) not in writer.done]
        stages = Stages(detector, out, tuple(save), spool)
        for values in stages.records(todo, batch_size):
            writer.write(values)
            tally.add(values)
            if on_record is not None:
                on_record(values)
        writer.finish([ref.path for ref in refs])
        seconds = time.perf_counter() - started
        run |= {"status": "done", "counts": tally.counts(), "seconds": round(seconds, 3)}
        write_gallery(out, run, read_records(out / LINES_FILE), spool)
        write_json(out / RUN_FILE, run)
    return tally.summary(out, seconds)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Indented JSON, whole or not at all. Raises OutputError."""
    write_whole(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def key_of(ref: ImageRef) -> str:
    return str(error_record(ref.path, "")["path"])


class _Tally:
    """Counts of a run, over earlier and new records."""

    def __init__(
        self,
        total: int,
        earlier: Mapping[str, Mapping[str, Any]],
        refs: Sequence[ImageRef],
        show: Progress | None,
    ) -> None:
        kept = [earlier[key] for key in map(key_of, refs) if key in earlier]
        self.total, self.skipped, self.show = total, len(kept), show
        self.done = self.failed = 0
        self.judged: list[bool] = []
        for values in kept:
            self._count(values)
        if show is not None:
            show(self.done, total, None)

    def add(self, values: Mapping[str, Any]) -> None:
        self._count(values)
        if self.show is not None:
            error = f"{values['path']}: {values['error']}" if "error" in values else None
            self.show(self.done + self.failed, self.total, error)

    def _count(self, values: Mapping[str, Any]) -> None:
        if "error" in values:
            self.failed += 1
            return
        self.done += 1
        if values["is_anomalous"] is not None:
            self.judged.append(values["is_anomalous"])

    @property
    def anomalous(self) -> int | None:
        return sum(self.judged) if self.judged else None

    def counts(self) -> dict[str, int | None]:
        names = ("total", "done", "failed", "skipped", "anomalous")
        return {name: getattr(self, name) for name in names}

    def summary(self, out: Path, seconds: float) -> RunSummary:
        return RunSummary(out, self.total, self.done, self.failed, self.skipped, self.anomalous, seconds)


@dataclass(frozen=True)
class Stages:
    """Decode, infer, write: three stages, the outer two in threads.

    spool: receives the gallery's pictures; None for no gallery. content: the file or the bytes of a picture.
    """

    detector: Predictor
    out: Path
    save: tuple[str, ...]
    spool: GallerySpool | None = None
    content: Callable[[ImageRef], Path | bytes] = lambda ref: ref.path

    def records(self, refs: Iterable[ImageRef], batch_size: int) -> Iterator[dict[str, Any]]:
        """One record per picture, in order."""
        decoded = decoded_batches(
            self._decode,
            refs,
            batch_size,
            cost=lambda ref: 0 if ref.error else pixel_count(self.content(ref)),
            is_full=lambda jobs: self.detector.is_full([job.prepared for job in jobs], batch_size),
        )
        inferred = self._infer(decoded)
        written = ordered_map(
            self._write,
            inferred,
            workers=WRITERS,
            ahead=2 * batch_size,
            eager=True,
            cost=lambda job: 0 if job.prepared is None else job.prepared.size[0] * job.prepared.size[1],
            budget=PIXELS_IN_FLIGHT,
        )
        with closing(decoded), closing(inferred), closing(written):
            for _, future in written:
                yield future.result()

    def _decode(self, ref: ImageRef) -> Job:
        if ref.error is not None:
            return Job(ref, error=ref.error)
        try:
            found = self.content(ref)
            picture = decode_image(found, str(ref.path)) if isinstance(found, bytes) else found
            return Job(ref, self.detector.prepare(picture))
        except BadImage as error:
            return Job(ref, error=str(error))
        except MemoryError:
            return Job(ref, error="not enough memory to decode it")

    def _infer(self, batches: Iterable[list[Job]]) -> Generator[Job, None, None]:
        for batch in batches:
            yield from self._through_network(batch)
            del batch  # its pictures would live on while the next are decoded

    def _through_network(self, jobs: list[Job]) -> Iterator[Job]:
        good = [job.prepared for job in jobs if job.prepared is not None]
        raws = self.detector.infer_each(good, attention="attention" in self.save)
        for job in jobs:
            if job.prepared is None:
                yield job
            elif isinstance(raw := next(raws), str):
                yield replace(job, prepared=None, error=raw)
            else:
                yield replace(job, raw=raw)

    def _write(self, job: Job) -> dict[str, Any]:
        if job.prepared is None or job.raw is None:
            return error_record(job.ref.path, job.error or "")
        try:
            result = self.detector.finish(job.prepared, job.raw)
            files = self._save(job.ref.relative, job.prepared, result, job.raw.attention)
            values = record(result, job.ref.path, files)
            if self.spool is not None and self.spool.wants(result.score):
                pair = gallery_pair(job.prepared.image, result.map, result.map_range, result.mask)
                self.spool.add(job.ref.path, result.score, *pair)
        except BadImage as error:
            return error_record(job.ref.path, error)
        except MemoryError:
            return error_record(job.ref.path, "not enough memory to write its results")
        return values

    def _save(
        self, relative: Path, prepared: Prepared, result: Result, attention: np.ndarray | None
    ) -> dict[str, Path]:
        files: dict[str, Path] = {}
        for kind in self.save:
            folder, ending = FOLDERS[kind]
            files[kind] = Path(folder) / relative.with_suffix(ending)
            path = self.out / files[kind]
            if kind == "overlay":
                picture = overlay(prepared.image, result.map, result.map_range, result.mask)
                write_whole(path, png_bytes(picture))
            elif kind == "map":
                write_map(path, result.map)
            elif kind == "attention" and attention is not None:
                blocks = cast("Attends", self.detector.method).blocks
                write_whole(path, png_bytes(attention_sheet(prepared.image, attention, blocks)))
                files["attention_data"] = files[kind].with_suffix(".npy")
                write_attention(path.with_suffix(".npy"), attention)
            elif result.mask is not None:
                write_mask(path, result.mask)
        return files


def check_save(detector: Predictor, save: Sequence[str]) -> None:
    for kind in save:
        if kind not in FOLDERS:
            raise UnknownName("kind of picture to save", kind, SAVED_KINDS)
    if "mask" in save and detector.setup.pixel_threshold is None:
        raise BadOption(
            "--save mask needs a pixel threshold and the checkpoint carries none; pass --pixel-threshold"
        )
    if "attention" in save:
        _check_attention(detector)


def _check_attention(detector: Predictor) -> None:
    """Raise BadOption unless the method's texts attend to the patches of whole pictures."""
    method, setup = detector.method, detector.setup
    if method is None:
        raise BadOption("--save attention: an exported file gives no attention maps; leave out --runtime")
    if not isinstance(method, Attends):
        raise BadOption(
            f"--save attention needs a method whose texts attend to patches: vcp_clip, vcp_clip_plus or "
            f"vip2_clip; the texts of {setup.method} do not"
        )
    if not method.attention_heads:
        raise BadOption(
            f"--save attention: this {setup.method} was made without attention (post_vcp or use_fgp is off); "
            f"take a checkpoint with it"
        )
    if setup.tile is not None:
        raise BadOption("--save attention shows where texts look in a whole picture; leave out --tile")


def is_own_output(path: Path, out: Path) -> bool:
    """Whether a picture lies where this run writes its own, as when OUT is inside the input folder."""
    place, root = path.absolute(), out.absolute()
    return any(place.is_relative_to(root / folder) for folder, _ in FOLDERS.values())


def run_settings(detector: Predictor, save: Sequence[str]) -> dict[str, Any]:
    """Everything that a resumed run must have in common with its beginning."""
    settings = asdict(detector.setup) | {"precision": detector.precision, "save": sorted(save)}
    settings["backbone"] = public_backbone(detector.setup.backbone)
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def _check_same(out: Path, settings: Mapping[str, Any]) -> None:
    """Raise OutputError when the earlier run in `out` had other settings."""
    path = out / RUN_FILE
    if path.exists() or (out / LINES_FILE).exists():
        compare_settings(path.read_bytes() if path.is_file() else b"", settings, out)


def compare_settings(content: bytes, settings: Mapping[str, Any], out: Path | str) -> None:
    """Raise OutputError when `content`, of the run.json in `out`, is damaged or has other settings than these."""
    try:
        earlier = json.loads(content)
        changed = [key for key in settings if earlier.get(key) != settings[key]]
    except (ValueError, AttributeError) as error:
        raise OutputError(
            f"cannot resume: {out}/{RUN_FILE} is missing or damaged; start anew with --overwrite"
        ) from error
    if changed:
        key = changed[0]
        raise OutputError(
            f"cannot resume {out}: {key} was {earlier.get(key)!r} and is now {settings[key]!r}; "
            f"use the same settings, or start anew with --overwrite"
        )


def run_info(detector: Predictor, settings: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    return {
        "versions": package_versions(),
        **settings,
        "map_range": list(detector.map_range),
        "batch_size": batch_size,
        "device": detector.device_name,
        "machine": detector.machine(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "counts": {},
        "seconds": 0.0,
    }
