"""The cells of a benchmark: one method in one setting on one dataset with one seed, and what is kept of each."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blemish.errors import BadOption
from blemish.files import write_whole
from blemish.run.plan import DatasetPlan, MethodPlan, Plan, Variation, applies
from blemish.run.results import Evaluation, MethodResult

FORMAT, VERSION = "blemish-benchmark-cell", 1
CELLS_FOLDER = "cells"


@dataclass(frozen=True)
class Cell:
    """What is to be measured. auxiliary: name of the training set, as the plan says. seed: None for what is not
    trained here. variation: None for the usual words. digest: identifies everything the figures depend on."""

    method: MethodPlan
    dataset: DatasetPlan
    auxiliary: str
    seed: int | None
    variation: Variation | None
    digest: str

    @property
    def name(self) -> str:
        """A file name of its own, without ending."""
        parts = [self.dataset.name, self.method.label]
        parts += [] if self.seed is None else [f"seed{self.seed}"]
        parts += [] if self.variation is None else [self.variation.label]
        return "-".join(re.sub(r"\W+", "_", part)[:40] for part in parts) + f"-{self.digest[:8]}"

    @property
    def title(self) -> str:
        """The cell for messages."""
        seed = "" if self.seed is None else f", seed {self.seed}"
        words = "" if self.variation is None else f", {self.variation.label}"
        return f"{self.method.label} on {self.dataset.name}{seed}{words}"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: an evaluation of this one method, or the cause of failure."""

    evaluation: Evaluation | None = None
    error: str = ""
    seconds: float = 0.0

    @property
    def result(self) -> MethodResult | None:
        """The method's result, None when the cell failed."""
        return None if self.evaluation is None else self.evaluation.methods[0]


def cells_of(plan: Plan, roots: Mapping[str, Path], checkpoints: Path | None = None) -> list[Cell]:
    """Every cell, dataset by dataset: the usual words first, then the variations.

    Methods that are not trained here have one cell a dataset whatever the seeds; variations are tried with the
    first seed. roots: folders of training sets by name. checkpoints: folder that relative checkpoints are in.
    """
    cells = []
    for dataset in plan.datasets:
        for method in plan.methods:
            for seed in plan.seeds if method.train is not None else (None,):
                cells.append(_cell(plan, method, dataset, seed, None, roots, checkpoints))
        for method in plan.methods:
            first = plan.seeds[0] if method.train is not None else None
            for variation in plan.variations:
                if applies(variation, method.method):
                    cells.append(_cell(plan, method, dataset, first, variation, roots, checkpoints))
    return cells


def _cell(
    plan: Plan,
    method: MethodPlan,
    dataset: DatasetPlan,
    seed: int | None,
    variation: Variation | None,
    roots: Mapping[str, Path],
    checkpoints: Path | None,
) -> Cell:
    auxiliary = plan.auxiliary_of(method, dataset)
    file = checkpoint_file(method, auxiliary, checkpoints or plan.folder)
    about = {
        "method": {k: v for k, v in asdict(method).items() if k not in ("published", "checkpoint")},
        "checkpoint": None if file is None else _stamp(file),
        "dataset": {k: v for k, v in asdict(dataset).items() if k != "auxiliary"},
        "auxiliary": [auxiliary, str(roots.get(auxiliary, "")) if method.train is not None else ""],
        "seed": seed,
        "variation": None if variation is None else asdict(variation),
        "protocol": [plan.resolution, plan.protocol, plan.score_rule, plan.fpr_limit, plan.strict_iou],
        "mode": [plan.mode, plan.limit],
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
    return Cell(method, dataset, auxiliary, seed, variation, digest)


def checkpoint_file(method: MethodPlan, auxiliary: str, folder: Path) -> Path | None:
    """The checkpoint of a method trained on `auxiliary`; None where the plan names none.

    Raises nothing: a file that does not exist is found out when it is loaded.
    """
    text = method.checkpoint.get(auxiliary) or method.checkpoint.get("")
    return None if text is None else folder / Path(text).expanduser()


def _stamp(file: Path) -> list[Any]:
    """Name, size and time of change, so that another file of the same name is another checkpoint."""
    try:
        found = file.stat()
    except OSError:
        return [file.name]
    return [file.name, found.st_size, found.st_mtime_ns]


def save_cell(out: Path, cell: Cell, outcome: Outcome) -> None:
    """Keep what became of a cell. Raises OutputError."""
    values = {
        "format": FORMAT,
        "version": VERSION,
        "digest": cell.digest,
        "title": cell.title,
        "error": outcome.error,
        "seconds": round(outcome.seconds, 3),
        "evaluation": None if outcome.evaluation is None else outcome.evaluation.to_json(),
    }
    write_whole(cell_path(out, cell), json.dumps(values, allow_nan=False).encode())


def load_cell(out: Path, cell: Cell) -> Outcome | None:
    """What an earlier run kept of a cell; None when there is nothing, or something else, or it failed."""
    path = cell_path(out, cell)
    try:
        values = json.loads(path.read_bytes())
        kept = (values["format"], values["version"], values["digest"])
        if kept != (FORMAT, VERSION, cell.digest) or values["error"]:
            return None
        return Outcome(Evaluation.from_json(values["evaluation"], str(path)), "", float(values["seconds"]))
    except (OSError, ValueError, KeyError, TypeError, BadOption):
        return None


def cell_path(out: Path, cell: Cell) -> Path:
    """Where a cell is kept."""
    return out / CELLS_FOLDER / f"{cell.name}.json"


def groups(cells: Iterable[Cell], together: int) -> Iterator[list[Cell]]:
    """Cells of one dataset that one pass can serve, at most `together`: those whose classes have the same names."""
    by_names: dict[str, list[Cell]] = {}
    for cell in cells:
        names = {} if cell.variation is None else cell.variation.class_names
        by_names.setdefault(json.dumps(names, sort_keys=True), []).append(cell)
    for members in by_names.values():
        for first in range(0, len(members), together):
            yield members[first : first + together]


def group_digest(cells: Sequence[Cell]) -> str:
    """Identifies a group."""
    return hashlib.sha256("".join(cell.digest for cell in cells).encode()).hexdigest()
