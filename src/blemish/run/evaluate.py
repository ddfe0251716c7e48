"""A whole run of `blemish evaluate`: methods on a labelled dataset -> metrics per class and their mean."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blemish.checkpoint import package_versions
from blemish.data.layouts import Dataset
from blemish.data.samples import spread
from blemish.detector import Detector, uses_class_names
from blemish.device import machine
from blemish.errors import BadDataset, BadOption, OutputError, UnknownName
from blemish.files import make_folder, printable_name, public_backbone
from blemish.run.class_pass import ClassPass, Spread
from blemish.run.evaluate_options import EvaluateOptions
from blemish.run.normals import Normals, check_able, find_normals
from blemish.run.parts import ClassPart, Parts
from blemish.run.predict import RUN_FILE, Progress, check_output, write_json
from blemish.run.results import RESULTS_FILE, Counts, Evaluation, MethodResult, Protocol, Speed, write_csv
from blemish.run.tally import means, why_no_pixel
from blemish.types import Sample

CSV_FILE, PARTS_FOLDER = "results.csv", "parts"
log = logging.getLogger(__name__)


def evaluate(
    detectors: Mapping[str, Detector],
    dataset: Dataset,
    out: Path,
    options: EvaluateOptions | None = None,
    *,
    class_names: Mapping[str, str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Progress | None = None,
    spread: Spread | None = None,
) -> Evaluation:
    """Score a dataset with every detector in one pass, and write results.json and results.csv into `out`.

    detectors: by label; those on one CLIP object share its passes (`load_detectors` makes such). class_names:
    class -> what methods are told that its images show, before `options.class_name` and the dataset's words; may
    name classes of other datasets too.
    Images that cannot be read are recorded with their cause and the rest go on. resume: go on with an earlier
    run of the same settings: finished classes are taken over, and the interrupted one goes on where its state
    was last saved; overwrite: start anew (no other file is deleted). on_progress (done, total, error). spread:
    workers that score the images with equal detectors, see `run.scale_evaluate`.

    Raises BadDataset when nothing is labelled, OutputError when `out` cannot be written or holds another run,
    BadOption and UnknownName for impossible options.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    options = options or EvaluateOptions()
    if not detectors:
        raise BadOption("no detectors given; name at least one method")
    check_output(out, resume=resume, overwrite=overwrite)
    classes, notes = choose_samples(dataset, options, out)
    words = _class_words(dataset, options, class_names or {}, classes)
    normals = _normals(detectors, dataset, options, classes)
    if normals is not None:
        notes += [normals.note(), *normals.warnings(classes)]
    pass_over = ClassPass(detectors, dataset.root, out, options, words, on_progress, normals, spread)
    settings = _settings(detectors, dataset, options, words, normals)
    if resume:
        _check_same(out, settings)
    make_folder(out)
    _warn_without_class_names(detectors, words)
    run = _run_info(detectors, settings, options.batch_size, started)
    write_json(out / RUN_FILE, run | {"status": "running"})
    counts = {name: count(samples) for name, samples in classes.items()}
    parts = _all_parts(pass_over, Parts(out / PARTS_FOLDER), classes, counts, settings, resume)
    pass_over.draw_texts(list(classes))
    seconds = round(sum(part.seconds for part in parts), 3)
    evaluation = Evaluation(
        dataset=dataset.name,
        layout=dataset.layout,
        classes=counts,
        methods=tuple(
            method_result(label, detector, options, parts, pass_over.scorer.shared_by[label])
            for label, detector in detectors.items()
        ),
        notes=(*dataset.notes, *notes, *trained_here(detectors, dataset)),
        settings=settings,
        versions=run["versions"],
        machine=run["machine"],
        started=started,
        seconds=seconds,
    )
    write_json(out / RESULTS_FILE, evaluation.to_json())
    write_csv(out / CSV_FILE, evaluation)
    write_json(out / RUN_FILE, run | {"status": "done", "seconds": seconds})
    return evaluation


def _run_info(
    detectors: Mapping[str, Detector], settings: Mapping[str, Any], batch_size: int, started: str
) -> dict[str, Any]:
    """The start of run.json."""
    return {
        "versions": package_versions(),
        **settings,
        "batch_size": batch_size,
        "machine": machine(next(iter(detectors.values())).device),
        "started": started,
    }


def choose_samples(
    dataset: Dataset, options: EvaluateOptions, out: Path
) -> tuple[dict[str, list[Sample]], list[str]]:
    """The labelled samples of each class that count, and remarks on what does not.

    Maps that an earlier run wrote below the dataset's folder are no samples. Raises BadDataset when nothing is
    left, UnknownName for a class that is not there.
    """
    place = out.absolute()
    samples = [s for s in dataset.samples if not s.image.absolute().is_relative_to(place)]
    labelled = [_printable(s) for s in samples if s.label is not None]
    root = printable_name(dataset.root)
    if not labelled:
        raise BadDataset(
            f"{root}: nothing says which of its {len(samples)} images are anomalous, so there is nothing to "
            f"evaluate;\nevaluation needs folders such as test/good and test/crack; `blemish predict {root}` "
            f"scores images without labels"
        )
    notes = []
    if len(labelled) < len(samples):
        notes.append(f"{len(samples) - len(labelled)} images without a label are left out")
    if dataset.problems:
        notes.append(f"{len(dataset.problems)} remarks on the files; `blemish info ROOT` lists them")
    classes: dict[str, list[Sample]] = {}
    for sample in labelled:
        classes.setdefault(sample.class_name, []).append(sample)
    wanted = options.chosen_classes
    for name in wanted:
        if name not in classes:
            raise UnknownName(f"class of {root}", name, classes)
    classes = {n: list(spread(s, options.limit)) for n, s in classes.items() if not wanted or n in wanted}
    if options.limit is not None:
        notes.append(f"at most {options.limit} images of each class (--limit)")
    return classes, notes


def _printable(sample: Sample) -> Sample:
    """Folder names with bytes that are no text would stop the writing of results."""
    name, defect = printable_name(sample.class_name), printable_name(sample.defect)
    return (
        sample
        if (name, defect) == (sample.class_name, sample.defect)
        else replace(sample, class_name=name, defect=defect)
    )


def trained_here(detectors: Mapping[str, Detector], dataset: Dataset) -> list[str]:
    """Remarks on checkpoints that say they were trained on this dataset."""
    return [
        f"{label} was trained on {detector.setup.auxiliary}, on which it is measured here"
        for label, detector in detectors.items()
        if dataset.name in detector.setup.auxiliary.partition(":")[0].split("+")
    ]


def count(samples: Sequence[Sample]) -> Counts:
    """How many are normal, anomalous, and outlined."""
    anomalous = [s for s in samples if s.label == 1]
    masks = sum(s.mask is not None for s in anomalous)
    return Counts(len(samples) - len(anomalous), len(anomalous), masks)


def protocol_of(detector: Detector, options: EvaluateOptions) -> Protocol:
    """What is written with every number of a detector."""
    sigma = getattr(detector.method.config, "sigma", None)
    return Protocol(
        resolution=options.resolution_of(detector),
        protocol=options.protocol,
        fpr_limit=float(options.fpr_limit),
        connectivity=options.connectivity,
        mode=options.mode,
        strict_iou=options.strict_iou,
        smoothing=None if sigma is None else float(sigma),
        score_rule=options.score_rule,
    )


def method_result(
    label: str, detector: Detector, options: EvaluateOptions, parts: Sequence[ClassPart], shared_by: int
) -> MethodResult:
    """One method over all classes."""
    setup = detector.setup
    classes = {part.class_name: part.results[label] for part in parts}
    scored = max(1, sum(part.scored[label] for part in parts))
    return MethodResult(
        label=label,
        method=setup.method,
        backbone=public_backbone(setup.backbone),
        backbone_fingerprint=setup.backbone_fingerprint,
        checkpoint=setup.checkpoint,
        checkpoint_sha256=setup.checkpoint_sha256,
        auxiliary=setup.auxiliary,
        options=_plain(setup.options),
        image_size=setup.image_size,
        precision=detector.precision,
        device=str(detector.device),
        protocol=protocol_of(detector, options),
        speed=Speed(
            encoder=sum(part.encoder[label] for part in parts) / scored,
            method=sum(part.method[label] for part in parts) / scored,
            shared_by=shared_by,
        ),
        peak_memory_mib=max(part.peak_memory_mib for part in parts),
        classes=classes,
        mean=means(classes),
    )


def _all_parts(
    pass_over: ClassPass,
    parts: Parts,
    classes: Mapping[str, Sequence[Sample]],
    counts: Mapping[str, Counts],
    settings: Mapping[str, Any],
    resume: bool,
) -> list[ClassPart]:
    """Every class, from an earlier run or anew."""
    digests = {name: _digest(settings, pass_over.names(samples)) for name, samples in classes.items()}
    found: dict[int, ClassPart] = {}
    for number, (name, samples) in enumerate(classes.items()):
        part = parts.load(number, digests[name]) if resume else None
        kept = part is not None and pass_over.has_texts(name)
        if part is not None and kept and part.stamps == pass_over.stamps(samples, part.stamps):
            found[number] = part
    done = sum(len(samples) for number, samples in enumerate(classes.values()) if number in found)
    left = [(number, name) for number, name in enumerate(classes) if number not in found]
    reasons = {name: why_no_pixel(counts[name], pass_over.options.no_pixel) for _, name in left}
    works = [pass_over.work(name, classes[name], reasons[name]) for _, name in left]
    pass_over.begin(done, sum(map(len, classes.values())), works)
    for number, name in left:
        found[number] = pass_over.run(
            name, classes[name], counts[name], reasons[name], parts, digests[name], resume
        )
        parts.save(number, found[number])
    return [found[number] for number in sorted(found)]


def _normals(
    detectors: Mapping[str, Detector], dataset: Dataset, options: EvaluateOptions, classes: Mapping[str, Any]
) -> Normals | None:
    """The normal images of each class, where few-shot methods get any."""
    if options.normal is None:
        return None
    check_able(detectors)
    return find_normals(options.normal, dataset, list(classes), options.shots, options.seed)


def _warn_without_class_names(detectors: Mapping[str, Detector], words: Mapping[str, str]) -> None:
    """Say once that methods whose texts name the class have no better word than the layouts' own fallback."""
    users = [label for label, detector in detectors.items() if uses_class_names(detector.method)]
    nameless = [name for name, word in words.items() if name == word == Sample.class_name]
    if users and nameless:
        log.warning(
            '%s put%s class names into the texts, the dataset has none and "%s" stands for them; pass --class-name '
            '"what the images show"',
            ", ".join(users),
            "s" if len(users) == 1 else "",
            Sample.class_name,
        )


def _class_words(
    dataset: Dataset, options: EvaluateOptions, given: Mapping[str, str], classes: Mapping[str, Any]
) -> dict[str, str]:
    """class -> what methods are told. Raises UnknownName for a class that is not there."""
    if given and not any(name in dataset.classes for name in given):
        raise UnknownName(f"class of {dataset.name}", next(iter(given)), dataset.classes)
    return {name: given.get(name) or options.class_name or dataset.prompt_name(name) for name in classes}


def _settings(
    detectors: Mapping[str, Detector],
    dataset: Dataset,
    options: EvaluateOptions,
    words: Mapping[str, str],
    normals: Normals | None,
) -> dict[str, Any]:
    """Everything that a resumed run must have in common with its beginning."""
    methods = {
        label: asdict(detector.setup)
        | {"precision": detector.precision, "backbone": public_backbone(detector.setup.backbone)}
        for label, detector in detectors.items()
    }
    own = {name: getattr(options, name) for name in EvaluateOptions.__dataclass_fields__}
    own |= {"classes": options.chosen_classes, "save": options.kinds}
    own["normal"] = None if normals is None else normals.describe()
    del own["batch_size"]
    source = {"dataset": dataset.name, "layout": dataset.layout, "split": dataset.split}
    return _plain(source | own | {"class_names": dict(words), "methods": methods})


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As it is read back from JSON."""
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found


def _digest(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([settings, list(names)], sort_keys=True).encode()).hexdigest()


def _check_same(out: Path, settings: Mapping[str, Any]) -> None:
    """Raise OutputError when the earlier run in `out` had other settings."""
    path = out / RUN_FILE
    if not path.exists():
        return
    try:
        earlier = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(f"cannot resume: {path} is damaged; start anew with --overwrite") from error
    change = _first_change(earlier, settings)
    if change:
        raise OutputError(
            f"cannot resume {out}: {change}; use the same settings, or start anew with --overwrite"
        )


def _first_change(earlier: Any, now: Any, where: str = "") -> str:
    """Words for the first value that differs, searched in nested dicts; empty when none does."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        keys = [*now, *(key for key in earlier if where and key not in now)]
        texts = (_first_change(earlier.get(key), now.get(key), f"{where}{key}.") for key in keys)
        return next(filter(None, texts), "")
    return "" if earlier == now else f"{where.rstrip('.')} was {earlier!r} and is now {now!r}"


def exit_code(evaluation: Evaluation) -> int:
    """0 all images done, 1 some failed, 2 none done."""
    done = any(found.images for method in evaluation.methods for found in method.classes.values())
    return 0 if not evaluation.failed else 1 if done else 2
