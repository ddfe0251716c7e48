"""What a worker of `blemish predict --engine ray` does with a unit of pictures: the local engine's stages."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blemish.data.images import ImageRef, printable_name
from blemish.pipeline import ordered_map
from blemish.run.predict import Stages
from blemish.run.scale_inputs import Item, is_url, read_rows, read_url
from blemish.run.scale_ray import UnitWorker
from blemish.run.scale_results import Parts, Place, part_name

if TYPE_CHECKING:
    from blemish.predictor import Predictor

FETCHERS = 16  # an object store answers slowly and serves many at once
FETCHED_AHEAD = 32


@dataclass(frozen=True)
class Job:
    """What all workers of a run need to know. loading: for `blemish.load`. out: of the run. save: kinds of pictures.

    report: outcomes carry all records, else those of failed pictures only. seed: of every random number.
    """

    loading: Mapping[str, Any]
    out: str
    save: tuple[str, ...]
    batch_size: int
    report: bool = False
    seed: int = 0

    def load(self) -> Predictor:
        """The model. Raises what `blemish.load` raises."""
        import blemish

        if self.loading.get("runtime") is None:
            import torch

            torch.manual_seed(self.seed)
        return blemish.load(**self.loading)


@dataclass(frozen=True)
class Unit:
    """Pictures that one worker scores into one part. number: of the unit. first: place of its first picture."""

    number: int
    first: int
    items: tuple[Item, ...]

    @property
    def part(self) -> str:
        """The name of its part."""
        return part_name(self.first, [item.name for item in self.items])


@dataclass(frozen=True)
class Outcome:
    """What became of a unit. judged: pictures with a threshold, `anomalous` of them. records: see `Job.report`."""

    number: int
    done: int
    failed: int
    judged: int
    anomalous: int
    records: tuple[dict[str, Any], ...]


class PredictWorker(UnitWorker):
    """Holds one model, loaded with the first unit so that what is wrong with it is reported like any fault."""

    def __init__(self, folder: str, job: Job) -> None:
        super().__init__(folder)
        self.job = job
        self.parts = Parts(Place(job.out))
        self._predictor: Predictor | None = None

    @property
    def predictor(self) -> Predictor:
        """The model."""
        if self._predictor is None:
            self._predictor = self.job.load()
        return self._predictor

    def work(self, unit: Unit) -> Outcome:
        """Score a unit and write its part; again gives the same part, so that a repeated unit counts once."""
        place = self.parts.place
        with tempfile.TemporaryDirectory(prefix="blemish-") as scratch:
            folder = Path(scratch) if place.local is None else place.local
            records = []
            for values in self._records(unit, folder):
                records.append(values)
                if place.local is None:
                    _upload(place, folder, values.get("files", {}).values())
        self.parts.write(unit.part, records)
        return outcome_of(unit.number, records, self.job.report)

    def _records(self, unit: Unit, folder: Path) -> Iterator[dict[str, Any]]:
        """The records of a unit, in order."""
        contents: dict[str, Path | bytes] = {}
        stages = Stages(self.predictor, folder, self.job.save, content=lambda ref: contents[str(ref.path)])
        records = stages.records(_refs(unit.items, contents), self.job.batch_size)
        # Within the stages a picture is called by its number: a URL is no path.
        for number, (item, values) in enumerate(zip(unit.items, records, strict=True)):
            contents.pop(str(number), None)
            named = {**values, "path": item.name}
            if "error" in values:
                named["error"] = values["error"].removeprefix(f"{printable_name(item.source)}: ")
            yield named


def outcome_of(number: int, records: Sequence[dict[str, Any]], report: bool) -> Outcome:
    """The counts of a unit's records."""
    failed = [values for values in records if "error" in values]
    verdicts = [v for values in records if (v := values.get("is_anomalous")) is not None]
    chosen = tuple(records if report else failed)
    return Outcome(number, len(records) - len(failed), len(failed), len(verdicts), sum(verdicts), chosen)


def _refs(items: Sequence[Item], contents: dict[str, Path | bytes]) -> Iterator[ImageRef]:
    """The pictures of a unit, fetched some way ahead; what they are read from goes into `contents` by number."""
    fetched = ordered_map(_fetch, _with_rows(items), workers=FETCHERS, ahead=FETCHED_AHEAD)
    with closing(fetched):
        for number, ((item, _), future) in enumerate(fetched):
            found = future.result()
            name = Path(str(number))
            if isinstance(found, str):
                yield ImageRef(name, Path(item.relative), found)
            else:
                contents[str(number)] = found
                yield ImageRef(name, Path(item.relative))


def _with_rows(items: Sequence[Item]) -> Iterator[tuple[Item, bytes | str | None]]:
    """Every item, with its bytes where they are a table's, which is read from front to back."""
    rows = read_rows(item for item in items if item.in_table)
    for item in items:
        yield item, next(rows) if item.in_table else None


def _fetch(pair: tuple[Item, bytes | str | None]) -> Path | bytes | str:
    """What an item is read from, its file or bytes, or why there is nothing."""
    item, content = pair
    if content is not None:
        return content
    return read_url(item.source) if is_url(item.source) else Path(item.source)


def _upload(place: Place, folder: Path, names: Any) -> None:
    for name in names:
        place.write(name, (folder / name).read_bytes())
        (folder / name).unlink()
