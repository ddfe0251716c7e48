"""`blemish benchmark`: methods × datasets × seeds -> tables with the papers' figures beside the measured ones."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from blemish.checkpoint import package_versions
from blemish.config import check_counts
from blemish.data.layouts import open_dataset
from blemish.detector import Detector
from blemish.device import machine, resolve_device, resolve_precision
from blemish.errors import BadOption, BlemishError, OutputError
from blemish.files import make_folder
from blemish.output.benchmark_report import write_benchmark_report
from blemish.output.benchmark_tables import write_csv, write_markdown, write_tex
from blemish.run.board import CSV_COLUMNS, Target, csv_rows, plain_settings, scoreboard, usual
from blemish.run.cell_detectors import CellDetectors, slug
from blemish.run.cells import (
    Cell,
    Outcome,
    cells_of,
    checkpoint_file,
    group_digest,
    groups,
    load_cell,
    save_cell,
)
from blemish.run.evaluate import evaluate
from blemish.run.evaluate_options import EvaluateOptions
from blemish.run.overlap import overlap
from blemish.run.plan import DatasetPlan, Plan
from blemish.run.predict import RUN_FILE, check_output, write_json
from blemish.run.shots import draw_shots, load_shots, save_shots

REPORT_FILE = "report.html"
TOGETHER = 5
Ready = Sequence[tuple[Cell, Detector]]
Progress = Callable[[int, int, str | None], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchmarkOptions:
    """The keys of `blemish benchmark` besides the plan; device, precision, threads as in `blemish.load`.

    out: the folder that receives the results. checkpoints: folder that the plan's checkpoints are in; None: the
    plan's. allow_overlap: evaluate also where training set and target overlap, and say so. limit: at most so
    many images of each class. batch_size: images that go through the network together.
    """

    out: str = "blemish-benchmark"
    checkpoints: str | None = None
    allow_overlap: bool = False
    limit: int | None = None
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_counts(self, "batch_size", "limit", "threads")


@dataclass(frozen=True)
class BenchmarkSummary:
    """How a benchmark ended. done: cells with figures, `skipped` of them of an earlier run. failed: the others."""

    out: Path
    total: int
    done: int
    failed: int
    skipped: int
    seconds: float

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.out / REPORT_FILE

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some cells failed, 2 nothing done."""
        return 0 if not self.failed else 1 if self.done else 2


def benchmark(
    plan: Plan,
    roots: Mapping[str, Path],
    options: BenchmarkOptions | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> BenchmarkSummary:
    """Measure every cell of a plan and write results.csv, tables.md, tables.tex and report.html.

    plan, roots: of `with_roots`. A cell that fails is a row with its cause, and the rest goes on. resume: take
    over finished cells whose settings have not changed; overwrite: start anew. on_progress (done, total, error)
    counts images times cells over the whole plan.

    Raises BadOption where training set and target overlap, OutputError when `out` cannot be written or holds
    another run.
    """
    options = options or BenchmarkOptions()
    out = Path(options.out)
    check_output(out, resume=resume, overwrite=overwrite)
    resolve_precision(options.precision, resolve_device(options.device))
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.limit is not None:
        plan = replace(plan, limit=options.limit)
    return _Benchmark(plan, roots, options, resume, on_progress).run()


class _Benchmark:
    """One run: the state that its steps share."""

    def __init__(
        self,
        plan: Plan,
        roots: Mapping[str, Path],
        options: BenchmarkOptions,
        resume: bool,
        on_progress: Progress | None,
    ) -> None:
        self.plan, self.roots, self.options, self.resume = plan, roots, options, resume
        self.out = Path(options.out)
        place = options.checkpoints
        self.checkpoints = plan.folder if place is None else Path(place).expanduser()
        self.cells = cells_of(plan, roots, self.checkpoints)
        self.makers = CellDetectors(
            self.out, self.checkpoints, plan.folder, roots, options.device, options.precision
        )
        self.targets = [_open(entry) for entry in plan.datasets]
        self.found: dict[str, tuple[Cell, Outcome]] = {}
        self.detectors: dict[str, Detector] = {}
        self.overlaps: dict[str, str] = {}
        self.skipped = 0
        self.units = {target.plan.name: _images(target, plan.limit) for target in self.targets}
        self.done_units, self.show = 0, on_progress or (lambda done, total, error: None)

    def run(self) -> BenchmarkSummary:
        started, begun = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
        self._check_overlaps()
        make_folder(self.out)
        run: dict[str, Any] = {"versions": package_versions(), "status": "running", "started": begun}
        run |= {
            "plan": plain_settings(self.plan),
            "options": {"precision": self.options.precision, "batch_size": self.options.batch_size},
            "machine": machine(resolve_device(self.options.device)),
        }
        write_json(self.out / RUN_FILE, run)
        if self.resume:
            self._take_over()
        self._report(0, None)
        for target in self.targets:
            self._measure(target)
            self._write(run)  # what is done can be read, however the run ends
        seconds = time.perf_counter() - started
        run |= {"status": "done", "seconds": round(seconds, 3), "cells": len(self.cells)}
        self._write(run)
        failed = sum(bool(outcome.error) for _, outcome in self.found.values())
        total = len(self.cells)
        return BenchmarkSummary(self.out, total, total - failed, failed, self.skipped, seconds)

    def _report(self, units: int, error: str | None) -> None:
        self.done_units += units
        self.show(self.done_units, sum(self.units[cell.dataset.name] for cell in self.cells), error)

    def _check_overlaps(self) -> None:
        """Raises BadOption where training set and target overlap, unless that is allowed."""
        opened = {target.plan.name: target.dataset for target in self.targets}
        for cell in self.cells:
            file = checkpoint_file(cell.method, cell.auxiliary, self.checkpoints)
            if reason := overlap(cell, opened[cell.dataset.name], file, self.roots):
                self.overlaps[cell.name] = reason
        if self.overlaps and not self.options.allow_overlap:
            cell = next(cell for cell in self.cells if cell.name in self.overlaps)
            raise BadOption(
                f"{cell.title}: {self.overlaps[cell.name]}, so its figures would be no zero-shot figures; "
                f"name another auxiliary set in the plan, or pass --allow-overlap"
            )

    def _take_over(self) -> None:
        for cell in self.cells:
            if (outcome := load_cell(self.out, cell)) is not None:
                self.found[cell.name] = cell, outcome
                self.skipped += 1
                self.done_units += self.units[cell.dataset.name]

    def _measure(self, target: Target) -> None:
        """Every cell of a dataset that is not done yet, then its pictures."""
        pending = [c for c in self.cells if c.dataset.name == target.plan.name and c.name not in self.found]
        if target.dataset is None:
            for cell in pending:
                self._keep(cell, Outcome(error=target.error))
            return
        for group in groups(pending, TOGETHER):
            ready = [(cell, detector) for cell in group if (detector := self._load(cell)) is not None]
            if ready:
                self._evaluate(target, ready)
        self._pictures(target)
        self.detectors.clear()

    def _keep(self, cell: Cell, outcome: Outcome, shown: bool = True) -> None:
        self.found[cell.name] = cell, outcome
        save_cell(self.out, cell, outcome)
        if shown:
            error = f"{cell.title}: {outcome.error}" if outcome.error else None
            self._report(self.units[cell.dataset.name], error)

    def _load(self, cell: Cell) -> Detector | None:
        """The detector of a cell, trained first if the plan says so; None when that failed."""
        try:
            detector = self.makers.make(cell)
        except OutputError:
            raise
        except Exception as error:
            self._keep(cell, Outcome(error=cause(error)))
            return None
        if cell.variation is None:
            self.detectors[cell.name] = detector
        return detector

    def _evaluate(self, target: Target, ready: Ready) -> None:
        """Score a group in one pass; when that fails, every cell alone, so that one cannot take others along."""
        before = self.done_units
        try:
            outcomes = list(self._pass_over(target, ready))
        except OutputError:
            raise
        except Exception as error:
            log.debug("evaluation failed", exc_info=True)
            self.done_units = before
            if len(ready) > 1:
                for pair in ready:
                    self._evaluate(target, [pair])
            else:
                for cell, _ in ready:
                    self._keep(cell, Outcome(error=cause(error)))
            return
        self.done_units = before
        for cell, outcome in outcomes:
            self._keep(cell, outcome, shown=False)
        self._report(sum(self.units[cell.dataset.name] for cell, _ in ready), None)

    def _pass_over(self, target: Target, ready: Ready) -> Iterator[tuple[Cell, Outcome]]:
        assert target.dataset is not None
        cells = [cell for cell, _ in ready]
        names = {} if cells[0].variation is None else cells[0].variation.class_names
        folder = self.out / "evaluations" / slug(target.plan.name, group_digest(cells))
        started, before = time.perf_counter(), self.done_units
        units = sum(self.units[cell.dataset.name] for cell in cells)

        def show(done: int, total: int, error: str | None) -> None:
            self.done_units = before + units * done // max(total, 1)
            self._report(0, None if error is None else f"{target.plan.name}: {error}")

        detectors = {cell.name: detector for cell, detector in ready}
        options = self._evaluate_options(target)
        words = {k: v for k, v in names.items() if k in target.dataset.classes}
        run = partial(
            evaluate, detectors, target.dataset, folder, options, class_names=words, on_progress=show
        )
        resume = self.resume and folder.exists()
        try:
            evaluation = run(resume=resume, overwrite=not resume)
        except OutputError:
            if not resume:
                raise
            # begun with another batch size or device, which no figure depends on
            evaluation = run(overwrite=True)
        seconds = (time.perf_counter() - started) / len(cells)
        found = {method.label: method for method in evaluation.methods}
        for cell in cells:
            alone = replace(evaluation, methods=(replace(found[cell.name], label=cell.method.label),))
            yield cell, Outcome(alone, "", seconds)

    def _evaluate_options(self, target: Target) -> EvaluateOptions:
        plan = self.plan
        return EvaluateOptions(
            resolution=plan.resolution,
            protocol=plan.protocol,
            fpr_limit=plan.fpr_limit,
            strict_iou=plan.strict_iou,
            mode=plan.mode,
            score_rule=plan.score_rule,
            classes=target.plan.classes,
            limit=plan.limit,
            batch_size=self.options.batch_size,
        )

    def _pictures(self, target: Target) -> None:
        """Pictures of the dataset for the page, of the first seed of every method that has figures."""
        chosen: dict[str, Cell] = {}
        for method in self.plan.methods:
            for cell, outcome in usual(self.found, target, method):
                if outcome.result is not None:
                    chosen.setdefault(method.label, cell)
        if not chosen or target.dataset is None:
            return
        path = self.out / "pictures" / f"{slug(target.plan.name, '')}.json"
        digest = group_digest(list(chosen.values()))
        kept = load_shots(path, digest) if self.resume else None
        if kept is None:
            try:
                kept = self._draw(target, chosen)
            except Exception as error:  # figures are worth more than their pictures
                log.warning("no pictures of %s for the page: %s", target.plan.name, cause(error))
                return
            save_shots(path, digest, kept)
        target.shots = kept

    def _draw(self, target: Target, chosen: Mapping[str, Cell]) -> dict[str, Any]:
        assert target.dataset is not None
        detectors, results = {}, {}
        for label, cell in chosen.items():
            detectors[label] = self.detectors.get(cell.name) or self.makers.make(cell)
            result = self.found[cell.name][1].result
            assert result is not None
            results[label] = result
        entry = target.dataset.entry
        return dict(
            draw_shots(
                target.dataset,
                detectors,
                results,
                lambda s: (
                    s.class_name.replace("_", " ") if entry is None else entry.prompt_name(s.class_name)
                ),
            )
        )

    def _write(self, run: Mapping[str, Any]) -> None:
        ordered = {cell.name: self.found[cell.name] for cell in self.cells if cell.name in self.found}
        board = scoreboard(self.plan, self.targets, ordered, self.overlaps, run)
        write_csv(self.out / "results.csv", csv_rows(self.targets, ordered, self.overlaps), CSV_COLUMNS)
        write_markdown(self.out / "tables.md", board)
        write_tex(self.out / "tables.tex", board)
        write_benchmark_report(self.out / REPORT_FILE, board, self.plan.fpr_limit)
        write_json(self.out / RUN_FILE, run)


def _open(plan: DatasetPlan) -> Target:
    """A dataset of the plan; one that cannot be opened says why."""
    if plan.root is None:
        return Target(plan, error=f"no folder; pass --data {plan.name}=ROOT, or write root in the plan")
    try:
        dataset = open_dataset(Path(plan.root), plan.dataset)
        return Target(plan, dataset.of_defects(plan.defects) if plan.defects else dataset)
    except BlemishError as error:
        return Target(plan, error=f"{error}; another folder: --data {plan.name}=ROOT")


def _images(target: Target, limit: int | None) -> int:
    """How many images a cell has; at least 1, so that a dataset that failed counts as work done."""
    if target.dataset is None:
        return 1
    wanted = target.plan.classes
    counts = {n: sum(c) for n, c in target.dataset.counts().items() if not wanted or n in wanted}
    return max(1, sum(c if limit is None else min(c, limit) for c in counts.values()))


def cause(error: Exception) -> str:
    """An error as a row of the tables tells it."""
    if isinstance(error, BlemishError):
        return str(error)
    first = (str(error) or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first}"
