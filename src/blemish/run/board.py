"""From the outcomes of a benchmark's cells to its scoreboard and the rows of results.csv."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blemish.data.catalog import CATALOG
from blemish.data.layouts import Dataset
from blemish.output.scoreboard import (
    METRIC_TITLES,
    OVERVIEW,
    ClassScores,
    DatasetScores,
    Entry,
    Measured,
    Printed,
    Scoreboard,
    Shot,
    Spread,
    average,
)
from blemish.run.cells import Cell, Outcome
from blemish.run.overlap import catalogue_name
from blemish.run.plan import DatasetPlan, MethodPlan, Plan
from blemish.run.published import PublishedRow, find_published
from blemish.run.results import METRICS, Evaluation, MethodResult

MEAN = "mean"
CSV_COLUMNS = (
    *("dataset", "class", "label", "method", "seed", "variation", "trained_on", "overlap", "backbone"),
    *("checkpoint", "normal", "anomalous", "with_mask", "failed_images", *METRICS),
    *(f"published_{name}" for name in METRIC_TITLES),
    *("resolution", "protocol", "score_rule", "smoothing", "mode", "image_size", "precision"),
    *("encoder_seconds", "method_seconds", "peak_memory_mib", "error"),
)


@dataclass
class Target:
    """A dataset of the plan while the benchmark runs. error: why it could not be opened."""

    plan: DatasetPlan
    dataset: Dataset | None = None
    error: str = ""
    shots: dict[str, tuple[Shot, ...]] = field(default_factory=dict)

    @property
    def published_name(self) -> str:
        """What published figures call it: the plan's word with its preparation, or what was recognised."""
        if self.plan.dataset is not None and self.plan.dataset.partition(":")[0] in CATALOG:
            return self.plan.dataset
        entry = None if self.dataset is None else self.dataset.entry
        return "" if entry is None else entry.name


Found = Mapping[str, tuple[Cell, Outcome]]  # cell name -> the cell and what became of it


def scoreboard(
    plan: Plan, targets: Sequence[Target], found: Found, overlaps: Mapping[str, str], run: Mapping[str, Any]
) -> Scoreboard:
    """Everything for the tables and the page. overlaps: cell name -> in which way it is no zero-shot result."""
    datasets = tuple(_dataset(plan, target, found, overlaps) for target in targets)
    pairs = [(target, method) for target in targets for method in plan.methods]
    spreads = tuple(s for target, method in pairs for s in _spreads(target, method, found))
    return Scoreboard(plan.title, plan.about, datasets, spreads, _facts(plan), dict(run))


def _facts(plan: Plan) -> dict[str, str]:
    sides = "network input" if plan.resolution is None else str(plan.resolution)
    facts = {
        "Metrics at": f"{sides} px" if sides.isdecimal() else sides,
        "Protocol": f"{plan.protocol}, AUPRO up to a false positive rate of {plan.fpr_limit:g}",
        "Image score": "each method's own" if plan.score_rule == "native" else plan.score_rule,
        "State": "exact" if plan.mode == "exact" else "streaming, with error bounds",
    }
    if any(method.train is not None for method in plan.methods):
        facts["Seeds"] = ", ".join(map(str, plan.seeds))
    if plan.limit is not None:
        facts["Limit"] = f"at most {plan.limit} images of each class: no published protocol"
    return facts


def usual(found: Found, target: Target, method: MethodPlan) -> list[tuple[Cell, Outcome]]:
    """The cells of a method on a dataset with the usual words, by seed."""
    return [
        (cell, outcome)
        for cell, outcome in found.values()
        if cell.dataset.name == target.plan.name
        and cell.method.label == method.label
        and cell.variation is None
    ]


def _dataset(plan: Plan, target: Target, found: Found, overlaps: Mapping[str, str]) -> DatasetScores:
    members = [usual(found, target, method) for method in plan.methods]
    evaluations = [o.evaluation for cells in members for _, o in cells if o.evaluation is not None]
    entry = None if target.dataset is None else target.dataset.entry
    name = target.published_name.partition(":")[0] or (evaluations[0].dataset if evaluations else "")
    return DatasetScores(
        name=target.plan.name,
        dataset=name,
        counts=_counts(evaluations),
        entries=tuple(_entry(target, cells, overlaps) for cells in members if cells),
        shots=target.shots,
        notes=tuple(dict.fromkeys(note for e in evaluations for note in e.notes)),
        error=target.error,
        medical=entry is not None and entry.medical,
    )


def _counts(evaluations: Sequence[Evaluation]) -> dict[str, tuple[int, int]]:
    return {
        name: (counts.normal, counts.anomalous) for e in evaluations for name, counts in e.classes.items()
    }


def _entry(target: Target, cells: Sequence[tuple[Cell, Outcome]], overlaps: Mapping[str, str]) -> Entry:
    """One method on one dataset, over its seeds."""
    first_cell = cells[0][0]
    results = [outcome.result for _, outcome in cells if outcome.result is not None]
    errors = [_error(cell, outcome, len(cells) > 1) for cell, outcome in cells if outcome.error]
    common: dict[str, Any] = {
        "label": first_cell.method.label,
        "method": first_cell.method.method,
        "overlap": overlaps.get(first_cell.name, ""),
        "seeds": tuple(cell.seed for cell, _ in cells),
        "errors": tuple(errors),
    }
    if not results:
        printed = _printed(target, first_cell, None)
        return Entry(auxiliary=first_cell.auxiliary, published=printed, **common)
    first = results[0]
    return Entry(
        auxiliary=first.auxiliary or first_cell.auxiliary,
        mean={name: _mean(results, name) for name in METRICS if not name.endswith("_threshold")},
        published=_printed(target, first_cell, first),
        classes={name: _class(results, name) for name in first.classes},
        facts=_method_facts(first_cell, first),
        seconds=(first.speed.encoder, first.speed.method),
        memory=first.peak_memory_mib,
        failed_images=sum(len(c.failed) for c in first.classes.values()),
        **common,
    )


def _error(cell: Cell, outcome: Outcome, several: bool) -> str:
    return f"seed {cell.seed}: {outcome.error}" if several else outcome.error


def _method_facts(cell: Cell, result: MethodResult) -> dict[str, str]:
    options = ", ".join(f"{key} {value}" for key, value in cell.method.options.items())
    return {
        "Method": result.method,
        "Backbone": result.backbone,
        "Input": f"{result.image_size} px",
        "Checkpoint": result.checkpoint or "none",
        "Options": options or "–",
        "Precision": result.precision,
    }


def _mean(results: Sequence[MethodResult], name: str) -> Measured:
    found = [r.mean.get(name) for r in results]
    reason = next((c.metrics[name].reason for c in results[0].classes.values() if name in c.metrics), "")
    bound = max((m.error_bound for m in found if m is not None), default=0.0)
    return average([None if m is None else m.value for m in found], reason or "", bound)


def _class(results: Sequence[MethodResult], name: str) -> ClassScores:
    parts = [r.classes[name] for r in results if name in r.classes]
    first = parts[0]
    metrics = {}
    for metric, score in first.metrics.items():
        values = [p.metrics[metric].value for p in parts if metric in p.metrics]
        metrics[metric] = average(values, score.reason or "", score.error_bound)
    bins = first.histogram
    return ClassScores(
        counts=(first.counts.normal, first.counts.anomalous),
        metrics=metrics,
        curves={kind: (line.x, line.y) for kind, line in first.curves.items()},
        histogram=None if bins is None else (bins.edges, bins.normal, bins.anomalous),
        threshold=first.image_threshold,
        notes=first.notes,
    )


def _printed(target: Target, cell: Cell, result: MethodResult | None) -> dict[str, Printed]:
    """Published figures of a cell's method.

    The checkpoint's word on its training goes before the plan's, unless the plan itself had it trained.
    """
    variant = cell.method.variant
    if variant is None or not target.published_name:
        return {}
    says = "" if result is None or cell.method.train is not None else result.auxiliary
    auxiliary = catalogue_name(says or cell.auxiliary)
    figures = find_published(cell.method.method, target.published_name, variant, auxiliary)
    return {
        name: Printed(
            figure.value, figure.row.source, () if result is None else differences(figure.row, name, result)
        )
        for name, figure in figures.items()
    }


def differences(row: PublishedRow, metric: str, result: MethodResult) -> tuple[str, ...]:
    """What was done otherwise than in the paper, as far as it bears on the metric."""
    found = []
    if row.backbone and row.backbone != result.backbone:
        found.append(f"backbone {result.backbone}, not {row.backbone}")
    if row.image_size and row.image_size != result.image_size:
        found.append(f"network input of {result.image_size}, not {row.image_size} px")
    side = result.protocol.resolution
    if metric.startswith("pixel_") and row.image_size and side != row.image_size:
        found.append(f"pixel metrics at {side}, not {row.image_size} px")
    if metric == "pixel_aupro" and row.protocol != result.protocol.protocol:
        found.append(f"AUPRO by protocol {result.protocol.protocol}, not {row.protocol}")
    if metric.startswith("image_") and result.protocol.score_rule != "native":
        found.append(f"image score {result.protocol.score_rule}")
    return tuple(found)


def _spreads(target: Target, method: MethodPlan, found: Found) -> Iterator[Spread]:
    """The robustness study of a method on a dataset: one `Spread` a factor and metric."""
    varied = [
        (cell, outcome.result)
        for cell, outcome in found.values()
        if (cell.dataset.name, cell.method.label) == (target.plan.name, method.label)
        and cell.variation is not None
    ]
    first = next((o.result for _, o in usual(found, target, method) if o.result is not None), None)
    factors = dict.fromkeys(cell.variation.factor for cell, _ in varied if cell.variation is not None)
    for factor in factors:
        for metric in OVERVIEW:
            values = {}
            for cell, result in varied:
                value = None if result is None or metric not in result.mean else result.mean[metric].value
                if cell.variation is not None and cell.variation.factor == factor and value is not None:
                    values[cell.variation.label] = value
            base = first.mean[metric].value if first is not None and metric in first.mean else None
            if values:
                yield Spread(target.plan.name, method.label, factor, metric, base, values)


def csv_rows(
    targets: Sequence[Target], found: Found, overlaps: Mapping[str, str]
) -> Iterator[dict[str, object]]:
    """dataset × class × method × seed, and the mean over classes; a failed cell is one row with its error."""
    by_name = {target.plan.name: target for target in targets}
    for cell, outcome in found.values():
        about: dict[str, object] = {
            "dataset": cell.dataset.name,
            "label": cell.method.label,
            "method": cell.method.method,
            "seed": cell.seed,
            "variation": None if cell.variation is None else cell.variation.label,
            "trained_on": cell.auxiliary,
            "overlap": overlaps.get(cell.name),
        }
        result = outcome.result
        if result is None:
            yield about | {"error": " ".join(outcome.error.split())}
            continue
        about |= _how(result) | {"trained_on": result.auxiliary or cell.auxiliary}
        for name, scores in result.classes.items():
            counts = {k: getattr(scores.counts, k) for k in ("normal", "anomalous", "with_mask")}
            values = {metric: score.value for metric, score in scores.metrics.items()}
            yield about | {"class": name, "failed_images": len(scores.failed)} | counts | values
        printed = _printed(by_name[cell.dataset.name], cell, result) if cell.variation is None else {}
        yield (
            about
            | {"class": MEAN}
            | {name: mean.value for name, mean in result.mean.items()}
            | {f"published_{name}": p.value for name, p in printed.items() if name in METRIC_TITLES}
        )


def _how(result: MethodResult) -> dict[str, object]:
    protocol = result.protocol
    return {
        "backbone": result.backbone,
        "checkpoint": result.checkpoint,
        "resolution": protocol.resolution,
        "protocol": protocol.protocol,
        "score_rule": protocol.score_rule,
        "smoothing": protocol.smoothing,
        "mode": protocol.mode,
        "image_size": result.image_size,
        "precision": result.precision,
        "encoder_seconds": result.speed.encoder,
        "method_seconds": result.speed.method,
        "peak_memory_mib": result.peak_memory_mib,
    }


def plain_settings(plan: Plan) -> dict[str, Any]:
    """The plan for run.json; of folders only the last name, since a path may tell a user's."""
    values: dict[str, Any] = json.loads(json.dumps(plan.settings(), default=str))
    for dataset in values["datasets"]:
        if dataset["root"]:
            dataset["root"] = str(dataset["root"]).rstrip("/").rpartition("/")[2]
    return values
