"""A whole run of `blemish predict --engine ray`: many pictures, many workers, parquet out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blemish.errors import BadOption
from blemish.run.predict import (
    LINES_FILE,
    RUN_FILE,
    Progress,
    RunSummary,
    check_save,
    compare_settings,
    is_own_output,
    run_info,
    run_settings,
)
from blemish.run.scale_inputs import Item, list_items
from blemish.run.scale_ray import UNITS_AHEAD, Pool, check_request, cluster, once, run_units
from blemish.run.scale_results import RESULTS, Parts, Place, check_place, part_name, write_tables
from blemish.run.scale_worker import Job, Outcome, PredictWorker, Unit, outcome_of

UNIT = 256  # pictures at most: seconds of work lost with a worker, and parts of a sensible size
UNITS_PER_WORKER = 8  # at least, where there are pictures enough, so that workers end together
TABLE_ROWS = 1_000_000  # with more, predictions.jsonl and .csv are left out
LOST = "its worker died while scoring it, several times (out of memory?)"


@dataclass(frozen=True)
class Crew:
    """Who works. workers: None for as many as fit. address: of a Ray cluster; None for this machine alone."""

    workers: int | None = None
    address: str | None = None


def predict_at_scale(
    inputs: Iterable[str],
    out: str,
    loading: Mapping[str, Any],
    crew: Crew | None = None,
    *,
    save: Sequence[str] = (),
    batch_size: int = 8,
    seed: int = 0,
    limit: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
    on_record: Callable[[Mapping[str, Any]], None] | None = None,
    on_progress: Progress | None = None,
) -> RunSummary:
    """Score what `inputs` name with a pool of Ray workers, each with a model of its own.

    inputs: see `blemish.run.scale_inputs.list_items`. out: a folder that all workers see, or a URL of fsspec's; it
    receives results/part-*.parquet, the saved pictures, run.json, and predictions.jsonl and predictions.csv unless
    there are more than `TABLE_ROWS`. loading: what `blemish.load` takes; files named there must be where workers run.
    Pictures that fail are rows with an error. resume: pictures in whole parts are skipped, failed ones tried again;
    overwrite: earlier parts are removed. on_record receives new records as units end, on_progress (done, total,
    error). Raises a BlemishError for bad inputs, addresses and options.
    """
    started = time.perf_counter()
    crew, place = crew or Crew(), Place(out)
    if resume and overwrite:
        raise BadOption("--resume and --overwrite exclude each other; choose one")
    check_place(place, resume=resume, overwrite=overwrite)
    check_request(crew.address, crew.workers, str(loading.get("device") or "auto"))
    items = _own_items(list_items(inputs), place)[:limit]
    if not items:
        raise BadOption("no images given; name files, folders, URLs, parquet tables, or - for standard input")
    job = Job(
        dict(loading), _absolute(place), tuple(save), batch_size, report=on_record is not None, seed=seed
    )
    run = _Run(job, Parts(place), items, on_record, on_progress)
    more = {"seed": seed, "limit": limit} | dict(about or {})
    info = _score(run, crew, more, resume=resume, overwrite=overwrite)
    found = run.parts.settle(drop_failed=False)
    written = write_tables(run.parts, [item.name for item in items], len(found), TABLE_ROWS)
    summary = run.summary(out, started)
    counts = {key: getattr(summary, key) for key in ("total", "done", "failed", "skipped", "anomalous")}
    end = {"status": "done", "counts": counts, "seconds": round(summary.seconds, 3), "tables": written}
    _write_json(place, info | end)
    return summary


def _score(
    run: _Run, crew: Crew, more: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> dict[str, Any]:
    """Everything from the model's description to the last part; returns what run.json says. more: of it."""
    job, place = run.job, run.parts.place
    device, threads = str(job.loading.get("device") or "auto"), job.loading.get("threads")
    with ExitStack() as stack:
        pool = None
        # On this machine what is wrong with the model is said before Ray starts, which takes its time.
        if crew.address and run.with_pictures:
            pool = stack.enter_context(cluster(crew.address, crew.workers, threads, device))
        settings, info = describe(job) if pool is None else once(describe, (job,), pool)
        settings["engine"] = "ray"
        if resume:
            _check_same(place, settings)
        elif overwrite:
            run.parts.clear()
        info |= settings | dict(more)
        _write_json(place, info | {"status": "running"})
        run.begin(run.parts.settle(drop_failed=True))
        if run.todo:
            pool = pool or stack.enter_context(cluster(crew.address, crew.workers, threads, device))
            info["workers"] = pool.size
            run.score(pool)
    return info


def describe(job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings, what else run.json says) of the model that workers load. Raises what `blemish.load` raises."""
    predictor = job.load()
    check_save(predictor, job.save)
    predictor.warn_about_class_name()
    settings = run_settings(predictor, job.save)
    return settings, run_info(predictor, settings, job.batch_size)


def cut_units(items: Sequence[tuple[int, Item]], workers: int, batch_size: int) -> list[Unit]:
    """Numbered items in units of whole batches, small enough that all workers have several."""
    share = -(-len(items) // (workers * UNITS_PER_WORKER))
    size = max(1, min(-(-share // batch_size), UNIT // batch_size)) * batch_size
    return [
        Unit(number, items[first][0], tuple(item for _, item in items[first : first + size]))
        for number, first in enumerate(range(0, len(items), size))
    ]


class _Run:
    """Scores what an earlier run has not, and counts."""

    def __init__(
        self,
        job: Job,
        parts: Parts,
        items: Sequence[Item],
        on_record: Callable[[Mapping[str, Any]], None] | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        self.job, self.parts, self.items = job, parts, items
        self.on_record, self.show = on_record, on_progress
        self.total, self.with_pictures = len(items), any(item.error is None for item in items)
        self.todo: list[tuple[int, Item]] = []
        self.skipped = self.done = self.failed = self.judged = self.anomalous = 0

    def begin(self, earlier: Mapping[str, bool | None]) -> None:
        """Count what an earlier run has done, by path, and write rows for inputs that gave no picture."""
        verdicts = [earlier[item.name] for item in self.items if item.name in earlier]
        judged = [verdict for verdict in verdicts if verdict is not None]
        self.skipped = self.done = len(verdicts)
        self.judged, self.anomalous = len(judged), sum(judged)
        left = [(n, item) for n, item in enumerate(self.items) if item.name not in earlier]
        self.todo = [(n, item) for n, item in left if item.error is None]
        self._report(None)
        if nothing := [item for _, item in left if item.error is not None]:
            self._write_failed(part_name(0, [item.name for item in nothing]), nothing, "")

    def score(self, pool: Pool) -> None:
        """Everything that is to be done, by the workers of the pool."""
        job = replace(self.job, loading={**self.job.loading, "threads": pool.threads})
        lost = self._run(cut_units(self.todo, pool.size, job.batch_size), job, pool)
        if lost:
            # Some picture may have killed its worker, and neighbours with it: batch by batch they are told apart.
            size = job.batch_size
            batches = [
                (unit.first + i, unit.items[i : i + size])
                for unit in lost
                for i in range(0, len(unit.items), size)
            ]
            again = [Unit(number, first, items) for number, (first, items) in enumerate(batches)]
            lost = self._run(again, job, pool, ahead=1)
        for unit in lost:
            self._write_failed(unit.part, unit.items, LOST)

    def _run(self, units: Sequence[Unit], job: Job, pool: Pool, ahead: int = UNITS_AHEAD) -> list[Unit]:
        """Units through the pool; those that their workers died over are returned."""
        lost = {unit.number: unit for unit in units}
        for outcome in run_units(units, PredictWorker, (job,), pool, ordered=False, ahead=ahead):
            if lost.pop(outcome.number, None) is not None:
                self._count(outcome)
        # A worker may die between writing a part and saying so.
        written = set(self.parts.names()) if lost else set()
        for unit in [unit for unit in lost.values() if unit.part in written]:
            self._count(outcome_of(unit.number, self.parts.read(unit.part), job.report))
            del lost[unit.number]
        return list(lost.values())

    def summary(self, out: str, started: float) -> RunSummary:
        """How it ended."""
        seconds = time.perf_counter() - started
        anomalous = self.anomalous if self.judged else None
        return RunSummary(Path(out), self.total, self.done, self.failed, self.skipped, anomalous, seconds)

    def _write_failed(self, part: str, items: Sequence[Item], cause: str) -> None:
        records = [{"path": item.name, "error": item.error or cause} for item in items]
        self.parts.write(part, records)
        self._count(outcome_of(-1, records, report=True))

    def _count(self, outcome: Outcome) -> None:
        self.done += outcome.done
        self.failed += outcome.failed
        self.judged += outcome.judged
        self.anomalous += outcome.anomalous
        for values in outcome.records:
            if "error" in values:
                self._report(f"{values['path']}: {values['error']}")
            if self.on_record is not None:
                self.on_record(values)
        self._report(None)

    def _report(self, error: str | None) -> None:
        if self.show is not None:
            self.show(self.done + self.failed, self.total, error)


def _own_items(items: Sequence[Item], place: Place) -> list[Item]:
    """The items without pictures that this run itself wrote."""
    if place.local is None:
        return list(items)
    out = place.local
    return [item for item in items if not is_own_output(Path(item.source), out)]


def _absolute(place: Place) -> str:
    """The output folder as workers name it, who may run in another folder."""
    return place.root if place.local is None else str(place.local.absolute())


def _check_same(place: Place, settings: Mapping[str, Any]) -> None:
    content = place.read(RUN_FILE)
    if content is not None or not {LINES_FILE, RESULTS}.isdisjoint(place.names("")):
        compare_settings(content or b"", settings, place.root)


def _write_json(place: Place, values: Mapping[str, Any]) -> None:
    place.write(RUN_FILE, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())
