"""`blemish evaluate --engine ray`: workers score parts of classes, their metric states are merged here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blemish.run.class_pass import ClassPass, Work
from blemish.run.detectors import load_detectors
from blemish.run.evaluate_options import EvaluateOptions
from blemish.run.normals import Normals
from blemish.run.scale import LOST, Crew
from blemish.run.scale_ray import Pool, UnitWorker, cluster, run_units
from blemish.run.tally import Tally

UNIT = 32  # images about: a state of exact metrics takes 4 bytes a pixel of each


@dataclass(frozen=True)
class Recipe:
    """What `load_detectors` is given, here and in every worker."""

    methods: Sequence[str]
    checkpoints: Sequence[str | Path]
    settings: Mapping[str, Any]
    loading: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """What all workers need to know; see `ClassPass`."""

    recipe: Recipe
    root: Path
    out: Path
    options: EvaluateOptions
    words: Mapping[str, str]
    normals: Normals | None
    threads: int


@dataclass(frozen=True)
class Part:
    """A part of a class, as it goes to a worker."""

    number: int
    work: Work


@contextlib.contextmanager
def spread_over(crew: Crew, recipe: Recipe) -> Iterator[RaySpread]:
    """Workers for `blemish.run.evaluate.evaluate`. Raises BadOption for bad addresses and numbers of workers."""
    device, threads = str(recipe.loading.get("device") or "auto"), recipe.loading.get("threads")
    with cluster(crew.address, crew.workers, threads, device) as pool:
        yield RaySpread(recipe, pool)


class RaySpread:
    """Sends parts of all classes through the pool, and hands their states out in order."""

    def __init__(self, recipe: Recipe, pool: Pool) -> None:
        self.recipe, self.pool = recipe, pool
        self._works: list[Work] = []
        self._parts: list[Part] = []
        self._states: Iterator[tuple[int, dict[str, Tally]]] = iter(())
        self._next = 0
        self._ahead: tuple[int, dict[str, Tally]] | None = None
        self._pass: ClassPass | None = None

    def begin(self, pass_over: ClassPass, works: Sequence[Work]) -> None:
        """Say what all classes are, in order."""
        self._pass, self._works = pass_over, list(works)
        self._parts = []

    def tallies(self, work: Work) -> Iterator[tuple[int, dict[str, Tally]]]:
        """(number of samples, states by label) of consecutive parts. work: what is left of the next class."""
        if not self._parts:
            self._start(work)
        while self._next < len(self._parts) and self._parts[self._next].work.name == work.name:
            part = self._parts[self._next]
            self._next += 1
            yield len(part.work.samples), self._state(part)

    def _start(self, first: Work) -> None:
        """Cut all classes into parts of whole batches; of the first one only what an earlier run has left."""
        pass_over = self._pass
        assert pass_over is not None
        size = -(-UNIT // pass_over.options.batch_size) * pass_over.options.batch_size
        cut = [
            work.part(i, i + size)
            for work in (first, *(w for w in self._works if w.name != first.name))
            for i in range(0, len(work.samples), size)
        ]
        self._parts = [Part(number, work) for number, work in enumerate(cut)]
        job = Job(
            self.recipe,
            pass_over.root.absolute(),
            pass_over.out.absolute(),
            pass_over.options,
            pass_over.words,
            pass_over.normals,
            self.pool.threads,
        )
        self._states = run_units(self._parts, EvaluateWorker, (job,), self.pool, ordered=True)

    def _state(self, part: Part) -> dict[str, Tally]:
        """The state of a part; one of failed images when its workers died again and again."""
        if self._ahead is None:
            self._ahead = next(self._states, None)
        if self._ahead is not None and self._ahead[0] == part.number:
            found, self._ahead = self._ahead[1], None
            return found
        assert self._pass is not None
        tallies = self._pass.new_tallies()
        for tally in tallies.values():
            for sample in part.work.samples:
                tally.fail(self._pass.name(sample), LOST)
        return tallies


class EvaluateWorker(UnitWorker):
    """Holds detectors equal to the driver's."""

    def __init__(self, folder: str, job: Job) -> None:
        super().__init__(folder)
        self.job = job
        self._pass: ClassPass | None = None
        self._class = ""
        self._memory = contextlib.ExitStack()

    def work(self, part: Part) -> tuple[int, dict[str, Tally]]:
        """Score a part of a class."""
        pass_over = self._pass or self._load()
        if part.work.name != self._class and pass_over.normals is not None:
            self._memory.close()
            self._memory.enter_context(pass_over.normals.remembered(pass_over.detectors, part.work.name))
        self._class = part.work.name
        tallies = pass_over.new_tallies()
        for _ in pass_over.score(part.work, tallies):
            pass
        return part.number, tallies

    def _load(self) -> ClassPass:
        import torch

        job, recipe = self.job, self.job.recipe
        torch.manual_seed(job.options.seed)
        loading = {**recipe.loading, "threads": job.threads}
        detectors = load_detectors(recipe.methods, recipe.checkpoints, recipe.settings, **loading)
        self._pass = ClassPass(detectors, job.root, job.out, job.options, job.words, None, job.normals)
        return self._pass
