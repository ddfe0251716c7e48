"""An image threshold from operators' verdicts in the history of `blemish serve`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blemish.calibrate import ThresholdFinder
from blemish.deploy.history import TRUTH, Filter, History
from blemish.deploy.history_databases import SCHEMES, open_database
from blemish.deploy.history_models import checkpoint_file, describe_model, fingerprint
from blemish.detector import Detector
from blemish.errors import BadDataset
from blemish.files import printable_name
from blemish.loading import load
from blemish.run.calibrate import (
    LOAD_KEYS,
    CalibrateOptions,
    Calibration,
    calibration_target,
    keep_thresholds,
)

FEWEST = 2  # of a kind
DIFFERENCES_SHOWN = 3
MODELS_SHOWN = 3


@dataclass(frozen=True)
class Verdicts:
    """Judged pictures of one model: each once, by its latest verdict.

    normal, anomalous: their scores. inspected: inspections of the model; judged: those with a verdict.
    unflagged_normal: normal pictures that the model had called normal.
    """

    normal: tuple[float, ...]
    anomalous: tuple[float, ...]
    inspected: int
    judged: int
    unflagged_normal: int


def calibrate_from_history(
    options: CalibrateOptions, own: Mapping[str, Any] | None = None, *, overwrite: bool = False
) -> Calibration:
    """Find the image threshold from verdicts and write it into a checkpoint; the pixel threshold stays.

    options.from_db: the history. Only inspections count that were made with the same weights, options, image size and
    precision. own, overwrite: as for `calibrate_checkpoint`. Raises a BlemishError; nothing is written then.
    """
    target = calibration_target(options, overwrite)
    place = options.from_db or ""
    database = open_database(place, create=False)
    try:
        history = History(database, create=False)
        detector = load(**{key: getattr(options, key) for key in LOAD_KEYS}, **(own or {}))
        name = "the history" if place.startswith(SCHEMES) else f"the history {printable_name(place)}"
        verdicts = read_verdicts(
            history, models_of(history, detector, checkpoint_file(options.checkpoint, detector.setup), name)
        )
    finally:
        database.close()
    found = _thresholds(verdicts, options.false_alarm_rate, name)
    return keep_thresholds(detector, options, own, target, found)


def models_of(history: History, detector: Detector, checkpoint: Path | None, name: str) -> set[str]:
    """Fingerprints under which the history may have a detector's inspections.

    checkpoint: the file it was made from. name: of the history. Raises BadDataset that names what differs when the
    history has none of them.
    """
    # An exported file knows its checkpoint by the hash of the whole file.
    mine = [describe_model(detector, file) for file in (checkpoint, None)]
    wanted = {fingerprint(about) for about in mine}
    known = history.models()
    if found := wanted & known.keys():
        return found
    shown = list(known.items())[-MODELS_SHOWN:]
    lines = [f"{other} ({_differences(about, mine[0])})" for other, about in shown]
    raise BadDataset(
        f"{name} has no inspections of this model, {fingerprint(mine[0])}; it has "
        f"{'; '.join(lines) or 'none at all'}"
    )


def read_verdicts(history: History, models: set[str]) -> Verdicts:
    """The judged inspections of these models. A picture that was inspected more than once counts once."""
    latest: dict[str, dict[str, Any]] = {}
    counts: Counter[str] = Counter()
    for item in history.all(Filter()):
        if item["model"] not in models:
            continue
        counts["inspected"] += 1
        if item["verdict"] is None:
            continue
        counts["judged"] += 1
        known = latest.get(item["sha256"])
        if known is None or item["verdict_time"] > known["verdict_time"]:
            latest[item["sha256"]] = item
    scores: tuple[list[float], list[float]] = ([], [])
    for item in latest.values():
        scores[TRUTH[item["verdict"]]].append(item["score"])
        counts["unflagged"] += item["verdict"] == "correct"
    normal, anomalous = (tuple(values) for values in scores)
    return Verdicts(normal, anomalous, counts["inspected"], counts["judged"], counts["unflagged"])


def _thresholds(verdicts: Verdicts, rate: float | None, name: str) -> Calibration:
    normal, anomalous = len(verdicts.normal), len(verdicts.anomalous)
    if normal < FEWEST or (rate is None and anomalous < FEWEST):
        mend = "judge more images"
        if normal >= FEWEST:
            mend += ", or pass --false-alarm-rate, which needs normal ones alone"
        raise BadDataset(
            f"{name} has {normal} images judged normal and {anomalous} judged anomalous of {verdicts.inspected} "
            f"inspections of this model; at least {FEWEST} of a kind are needed: {mend}"
        )
    finder = ThresholdFinder()
    for label, scores in enumerate((verdicts.normal, verdicts.anomalous)):
        for score in scores:
            finder.update_score(score, label)
    found = finder.best_f1() if rate is None else finder.at_false_alarm_rate(rate)
    # That verdicts say nothing about pixels is said once, below.
    found = replace(found, notes=tuple(note for note in found.notes if "pixel" not in note))
    notes = [
        f"{verdicts.judged} of {verdicts.inspected} inspections of this model have a verdict, on "
        f"{normal + anomalous} different images",
        "verdicts are on whole images: the pixel threshold stays as it was",
    ]
    if 2 * verdicts.unflagged_normal < normal:
        notes.append(
            f"{normal - verdicts.unflagged_normal} of the {normal} normal images are false alarms, which is more than "
            f"chance would have it; judge images called normal too, or the rates are too dark"
        )
    return Calibration(found, name, verdicts.judged, notes=tuple(notes))


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What two models differ in, in a few words."""
    keys = [key for key in (*here, *there) if there.get(key) != here.get(key)]
    parts = []
    for key in list(dict.fromkeys(keys))[:DIFFERENCES_SHOWN]:
        short = isinstance(here.get(key), (int, float, str, type(None))) and len(str(there.get(key))) < 40
        parts.append(f"{key} {there.get(key)}, here {here.get(key)}" if short else f"other {key}")
    return "; ".join(parts)
