"""A whole run of `blemish calibrate`: pictures of the user's own in, a checkpoint with their thresholds out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blemish.calibrate import ThresholdFinder, Thresholds
from blemish.checkpoint import is_checkpoint, read_meta, rewrite_checkpoint
from blemish.config import check_counts, check_seed
from blemish.data.images import pixel_count
from blemish.data.layouts import Dataset, open_dataset
from blemish.data.samples import load_mask, load_pixels
from blemish.data.transforms import SQUARES
from blemish.detector import Detector, Prepared, Setup
from blemish.errors import BadDataset, BadImage, BadOption, OutputError
from blemish.files import make_folder, printable_name
from blemish.loading import EMBEDDED, default_method, load
from blemish.pipeline import decoded_batches
from blemish.types import Result, Sample

DEFAULT_RATE = 0.01
MANY = 0.5
NOTE = "thresholds: "
ENDING = ".safetensors"
Progress = Callable[[int, int, str | None], None]


@dataclass(frozen=True)
class CalibrateOptions:
    """The keys of `blemish calibrate`, on the command line and in a --config file; None: not given.

    method, backbone, checkpoint, device, precision, image_size, threads, tile, overlap, score_rule and class_name are
    those of `blemish.load`; thresholds hold for pictures that are scored the same way. data: folder (or list file) of
    the pictures; from_db: in its place the history of `blemish serve`, with operators' verdicts; dataset: its name or
    layout where it does not tell itself; split: "test", "train" or "all".
    false_alarm_rate: share of normal images that may be called anomalous; thresholds then come from the normal
    images alone. Without it they are those of best F1, or at 0.01 when all images are normal. pixel_false_alarm_rate:
    share of normal pixels above the pixel threshold, in place of the share of normal images with any such pixel.
    out: the checkpoint to write; by default `checkpoint`, when it is one of our own files. batch_size: images that
    go through the network together. seed: as everywhere; nothing here is random.
    """

    method: str | None = None
    backbone: str | None = None
    checkpoint: str | None = None
    device: str = "auto"
    precision: str = "auto"
    image_size: int | None = None
    threads: int | None = None
    tile: int | str | None = None
    overlap: float | None = None
    score_rule: str | None = None
    class_name: str | None = None
    data: str = ""
    from_db: str | None = None
    dataset: str | None = None
    split: str = "test"
    false_alarm_rate: float | None = None
    pixel_false_alarm_rate: float | None = None
    out: str | None = None
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "batch_size", "threads")
        check_seed(self.seed)
        if not self.data and self.from_db is None:
            raise BadOption("no pictures to calibrate on; name their folder with --data")
        if self.data and self.from_db is not None:
            raise BadOption("--data and --from-db exclude each other; choose one")
        if self.from_db is not None and self.pixel_false_alarm_rate is not None:
            raise BadOption(
                "--pixel-false-alarm-rate: verdicts are on images; use --data with masks for pixels"
            )
        for name in ("false_alarm_rate", "pixel_false_alarm_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise BadOption(f"{name} is {value}; expected a share above 0 and below 1, such as 0.01")


LOAD_KEYS = tuple(f.name for f in dataclasses.fields(CalibrateOptions))[:11]


@dataclass(frozen=True)
class Calibration:
    """Thresholds and what they rest on.

    dataset: its name and split. total: pictures listed. failed: path and cause of those that could not be scored.
    notes: remarks for the user. checkpoint: what the thresholds were written to; None when nothing was.
    """

    thresholds: Thresholds
    dataset: str
    total: int
    failed: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    checkpoint: Path | None = None

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some pictures failed."""
        return 1 if self.failed else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        failed = [{"path": printable_name(path), "error": error} for path, error in self.failed]
        return {
            "checkpoint": None if self.checkpoint is None else printable_name(self.checkpoint),
            "dataset": self.dataset,
            "total": self.total,
            **dataclasses.asdict(self.thresholds),
            "notes": [*self.notes, *self.thresholds.notes],
            "failed": failed,
        }


def calibrate_checkpoint(
    options: CalibrateOptions,
    own: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> Calibration:
    """Find thresholds and write them into a checkpoint.

    own: the method's own options, or preset=. overwrite: replace a file at `options.out` that is not the checkpoint
    itself. Our own checkpoint keeps its tensors bit for bit; the embedded ones and the authors' files are never
    changed, so they need `options.out`. Raises a BlemishError; nothing is written then.
    """
    target = calibration_target(options, overwrite)
    torch.manual_seed(options.seed)
    dataset = open_dataset(Path(options.data).expanduser(), options.dataset, options.split)
    detector = load(**{key: getattr(options, key) for key in LOAD_KEYS}, **(own or {}))
    found = calibrate(
        detector,
        dataset,
        false_alarm_rate=options.false_alarm_rate,
        pixel_false_alarm_rate=options.pixel_false_alarm_rate,
        batch_size=options.batch_size,
        on_progress=on_progress,
    )
    return keep_thresholds(detector, options, own, target, found)


def calibrate(
    detector: Detector,
    dataset: Dataset,
    *,
    false_alarm_rate: float | None = None,
    pixel_false_alarm_rate: float | None = None,
    batch_size: int = 8,
    on_progress: Progress | None = None,
) -> Calibration:
    """Score a dataset as `detector.predict` does, and set thresholds from what comes out.

    false_alarm_rate, pixel_false_alarm_rate: as in CalibrateOptions; pictures without labels count as normal when
    a rate is given and there are no labels at all, and are left out otherwise. on_progress (done, total, error).
    Pictures that cannot be scored are recorded and the rest go on. Raises BadDataset when the pictures determine no
    threshold, BadOption for impossible rates.
    """
    samples, notes = _labelled(dataset, false_alarm_rate)
    rate = false_alarm_rate
    if rate is None and not any(sample.label for sample in samples):
        rate = DEFAULT_RATE
        notes.append(f"all images are normal, so the false-alarm rate is set, by default to {rate:g}")
    if rate is None and pixel_false_alarm_rate is not None:
        raise BadOption("a pixel false-alarm rate goes with a false-alarm rate; pass both")
    if rate is not None and all(sample.label for sample in samples):
        raise BadDataset(f"{dataset.name} holds no normal images; a false-alarm rate needs them")
    finder, failed = ThresholdFinder(detector.map_range), []
    for done, (sample, mask, found) in enumerate(_scored(detector, samples, batch_size), start=1):
        if isinstance(found, Result):
            finder.update(found.score, int(sample.label or 0), found.map, mask)
        else:
            failed.append((str(sample.image), found))
        if on_progress is not None:
            on_progress(done, len(samples), None if isinstance(found, Result) else found)
    if len(failed) == len(samples):
        raise BadDataset(f"none of the {len(samples)} images could be scored; the first: {failed[0][1]}")
    thresholds = finder.best_f1() if rate is None else _at_rate(finder, rate, pixel_false_alarm_rate)
    if thresholds.image is None and thresholds.pixel is None:
        raise BadDataset(f"{dataset.name} determines no threshold: {'; '.join(thresholds.notes)}")
    notes += _remarks(thresholds, detector.setup, of_best_f1=rate is None)
    return Calibration(
        thresholds, f"{dataset.name} ({dataset.split})", len(samples), tuple(failed), tuple(notes)
    )


def _remarks(thresholds: Thresholds, before: Setup, of_best_f1: bool) -> Iterator[str]:
    """What a user should know of new thresholds. before: of the detector as it was."""
    for name, new, old in (
        ("image", thresholds.image, before.threshold),
        ("pixel", thresholds.pixel, before.pixel_threshold),
    ):
        if new is None and old is not None:
            yield f"the {name} threshold stays as it was, {old:.6g}"
    if of_best_f1 and (alarms := thresholds.false_alarms) is not None and alarms.value > MANY:
        yield "best F1 lets most normal images be called anomalous; --false-alarm-rate keeps that rare"


def _at_rate(finder: ThresholdFinder, rate: float, pixel_rate: float | None) -> Thresholds:
    if not finder.counts[0]:
        raise BadDataset("none of the normal images could be scored; a false-alarm rate needs them")
    return finder.at_false_alarm_rate(rate, pixel_rate)


def _labelled(dataset: Dataset, rate: float | None) -> tuple[list[Sample], list[str]]:
    """The samples to score, with labels, and remarks."""
    samples = list(dataset.samples)
    known = [sample for sample in samples if sample.label is not None]
    if known:
        left = len(samples) - len(known)
        return known, [f"{left} images without a label were left out"] if left else []
    if rate is None:
        raise BadDataset(
            f"{dataset.name} has no labels; if all its images are normal, say so with --false-alarm-rate, "
            f"such as {DEFAULT_RATE}, else sort them into folders good and bad"
        )
    note = f"no labels: all {len(samples)} images are taken as normal"
    return [replace(sample, label=0) for sample in samples], [note]


@dataclass(frozen=True)
class _Job:
    """A sample on its way to the network, or why it cannot go."""

    sample: Sample
    prepared: Prepared | None = None
    mask: np.ndarray | None = None
    error: str = ""


def _scored(
    detector: Detector, samples: Sequence[Sample], batch_size: int
) -> Iterator[tuple[Sample, np.ndarray | None, Result | str]]:
    """Every sample in order with its mask and its result, or why there is none; decoded ahead in threads."""

    def decode(sample: Sample) -> _Job:
        try:
            prepared = replace(detector.prepare(load_pixels(sample)), path=str(sample.image))
            mask = load_mask(sample, prepared.size) if sample.label else None
        except BadImage as error:
            return _Job(sample, error=str(error))
        except MemoryError:
            return _Job(sample, error=f"{printable_name(sample.image)}: not enough memory to decode it")
        return _Job(sample, prepared, mask)

    batches = decoded_batches(
        decode,
        samples,
        batch_size,
        cost=lambda sample: pixel_count(sample.image),
        is_full=lambda jobs: detector.is_full([job.prepared for job in jobs], batch_size),
    )
    with closing(batches):
        for batch in batches:
            yield from _through_network(detector, batch)
            del batch  # its pictures would live on while the next are decoded


def _through_network(
    detector: Detector, jobs: Sequence[_Job]
) -> Iterator[tuple[Sample, np.ndarray | None, Result | str]]:
    raws = detector.infer_each([job.prepared for job in jobs if job.prepared is not None])
    for job in jobs:
        found: Result | str = job.error
        if job.prepared is not None:
            raw = next(raws)
            try:
                if isinstance(raw, str):
                    found = f"{printable_name(job.sample.image)}: {raw}"
                else:
                    found = detector.finish(job.prepared, raw)
            except BadImage as error:
                found = str(error)
        yield job.sample, job.mask, found


def calibration_target(options: CalibrateOptions, overwrite: bool) -> Path:
    """Where the result will be written. Raises BadOption or OutputError when that may not be, or cannot."""
    given = None if options.checkpoint is None else Path(options.checkpoint).expanduser()
    if given is not None and not given.is_file():
        read_meta(given)  # says what is wrong
    ours = given is not None and not _is_embedded(given) and is_checkpoint(given)
    if options.out is None:
        if given is None or not ours:
            what = (
                "embedded checkpoints" if given is None or _is_embedded(given) else "the authors' checkpoints"
            )
            stem = (options.method or default_method(options.backbone)) if given is None else given.stem
            raise BadOption(
                f"{what} are never changed; name a file for the calibrated one with -o, "
                f"such as -o {stem}-calibrated{ENDING}"
            )
        return given.resolve()  # the file itself where it is named by a link
    target = Path(options.out).expanduser()
    if target.suffix != ENDING or target.is_dir():
        raise BadOption(f"-o {printable_name(target)}: expected a file name that ends in {ENDING}")
    if ours and given is not None and target.exists() and target.samefile(given):
        return given.resolve()
    if _is_embedded(target) or (given is not None and target.exists() and target.samefile(given)):
        raise BadOption(f"-o {printable_name(target)}: this file is never changed; choose another name")
    if target.exists() and not overwrite:
        raise OutputError(
            f"{printable_name(target)} exists; replace it with --overwrite, or choose another name with -o"
        )
    make_folder(target.parent)
    return target


def _is_embedded(path: Path) -> bool:
    return path.resolve().parent == EMBEDDED.resolve()


def keep_thresholds(
    detector: Detector,
    options: CalibrateOptions,
    own: Mapping[str, Any] | None,
    target: Path,
    found: Calibration,
) -> Calibration:
    """Write what was found into `target`, with what else was asked for and the checkpoint does not say."""
    changes: dict[str, Any] = {}
    if options.image_size is not None:
        changes["image_size"] = detector.setup.image_size
    if own:
        changes["options"] = detector.setup.options
    write_thresholds(detector, options.checkpoint, target, found, changes)
    return replace(found, checkpoint=target)


def write_thresholds(
    detector: Detector, checkpoint: str | None, target: Path, found: Calibration, changes: Mapping[str, Any]
) -> None:
    """The checkpoint that `detector` was made from, with the thresholds; what was not found stays as it was."""
    setup, thresholds = detector.setup, found.thresholds
    image = setup.threshold if thresholds.image is None else thresholds.image
    pixel = setup.pixel_threshold if thresholds.pixel is None else thresholds.pixel
    note = (
        f"{NOTE}{thresholds.how} on {found.dataset}, {thresholds.normal} normal and "
        f"{thresholds.anomalous} anomalous images"
    )
    if setup.tile is not None:
        note += ", square tiles" if setup.tile == SQUARES else f", tiles of {setup.tile} pixels"
    source = EMBEDDED / setup.checkpoint if checkpoint is None else Path(checkpoint).expanduser()
    if setup.checkpoint and is_checkpoint(source):
        earlier = [line for line in read_meta(source).notes.splitlines() if not line.startswith(NOTE)]
        notes = "\n".join([*earlier, note])
        # Thresholds hold only for pictures that are cut and scored as they were here.
        changes = {**changes, "tile": setup.tile, "overlap": setup.overlap, "score_rule": setup.score_rule}
        # Where nothing is learned, all that the file says is of the backbone used here.
        if not detector.method.state_dict():  # type: ignore[attr-defined]
            changes["backbone_fingerprint"] = setup.backbone_fingerprint
        rewrite_checkpoint(
            source, target, image_threshold=image, pixel_threshold=pixel, notes=notes, **changes
        )
        return
    detector.setup = replace(setup, threshold=image, pixel_threshold=pixel)
    detector.save(target, note)
