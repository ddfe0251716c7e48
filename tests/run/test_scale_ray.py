"""Runs at scale on two local Ray workers: the same as the local engine, and nothing lost or twice after kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from drawn_data import draw_dataset
from PIL import Image
from pyarrow import parquet

import blemish
from blemish.data.images import find_images
from blemish.data.layouts import open_dataset
from blemish.errors import OutputError
from blemish.output.tables import read_map, read_records
from blemish.run import scale, scale_evaluate, scale_ray
from blemish.run.detectors import load_detectors
from blemish.run.evaluate import evaluate
from blemish.run.evaluate_options import EvaluateOptions
from blemish.run.predict import RunSummary, predict_folder
from blemish.run.results import Evaluation, Speed
from blemish.run.scale import Crew, predict_at_scale
from blemish.run.scale_results import Parts, Place
from blemish.run.scale_worker import PredictWorker, Unit

pytestmark = pytest.mark.slow
Make = Callable[..., Path]
CREW = Crew(workers=2)


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    """One Ray for all tests of the module; what the runs find running they leave running."""
    with scale_ray.cluster(None, 2, 1):
        yield
    assert not ray.is_initialized()


@pytest.fixture
def loading(small_checkpoint: Make) -> dict[str, Any]:
    return {"checkpoint": small_checkpoint(), "threads": 1}


def pictures(folder: Path, count: int, side: int = 40) -> Path:
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(folder / f"{i:03}.png")
    return folder


def assert_same(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    """Equal records but for times, and for the last digits of scores and of what follows from them."""
    near = ("seconds", "regions", "score", "map_max")
    for mine, other in zip(one, two, strict=True):
        assert {k: v for k, v in mine.items() if k not in near} == {
            k: v for k, v in other.items() if k not in near
        }
        assert [mine.get(k, 0) for k in near[2:]] == pytest.approx(
            [other.get(k, 0) for k in near[2:]], abs=2e-6
        )
        assert len(mine.get("regions", ())) == len(other.get("regions", ()))


def run(inputs: list[str], out: Path | str, loading: dict[str, Any], **options: Any) -> RunSummary:
    return predict_at_scale(inputs, str(out), loading, CREW, batch_size=4, **options)


def paths(out: Path) -> list[str]:
    return [values["path"] for values in Parts(Place(str(out))).records()]


def test_equals_the_local_engine_and_resumes(tmp_path: Path, loading: dict[str, Any]) -> None:
    folder = pictures(tmp_path / "in", 21)
    (folder / "007.png").write_bytes(b"no picture")
    inputs = [str(folder), str(tmp_path / "missing.png")]
    local, out = tmp_path / "local", tmp_path / "out"
    detector = blemish.load(**loading)
    expected = predict_folder(detector, find_images(inputs), local, save=("map", "overlay"), batch_size=4)
    shown: list[str | None] = []
    lines: list[Any] = []
    options = {"save": ("map", "overlay"), "on_record": lines.append}
    found = run(inputs, out, loading, on_progress=lambda done, total, error: shown.append(error), **options)
    assert (
        (found.total, found.done, found.failed)
        == (expected.total, expected.done, expected.failed)
        == (22, 20, 2)
    )
    assert (found.anomalous, found.exit_code) == (expected.anomalous, 1)
    one, two = (list(read_records(place / "predictions.jsonl")) for place in (local, out))
    assert_same(one, two)
    assert sorted(v["path"] for v in lines) == sorted(v["path"] for v in two)
    assert len([error for error in shown if error]) == 2
    assert [row.split(",")[0] for row in (out / "predictions.csv").read_text().splitlines()[1:]] == [
        v["path"] for v in two
    ]
    for path in sorted((local / "maps").iterdir()):
        np.testing.assert_allclose(read_map(out / "maps" / path.name), read_map(path), atol=2e-6)
    assert len(list((out / "overlays").iterdir())) == 20
    run_file = json.loads((out / "run.json").read_text())
    assert run_file["engine"] == "ray" and run_file["counts"]["done"] == 20 and run_file["status"] == "done"

    Image.new("RGB", (40, 40)).save(folder / "007.png")
    again = run(inputs, out, loading, resume=True, save=("map", "overlay"))
    assert (again.skipped, again.done, again.failed) == (20, 21, 1)
    assert Counter(paths(out)) == Counter(v["path"] for v in one)
    assert [v["path"] for v in read_records(out / "predictions.jsonl")] == [v["path"] for v in one]
    with pytest.raises(OutputError, match="cannot resume"):
        run(inputs, out, {**loading, "threshold": 0.1}, resume=True, save=("map", "overlay"))
    with pytest.raises(OutputError, match="cannot resume"):
        run(inputs, local, loading, resume=True, save=("map", "overlay"))


def test_tables_and_urls_into_a_url(tmp_path: Path, loading: dict[str, Any]) -> None:
    folder = pictures(tmp_path / "in", 6)
    content: list[bytes | None] = [path.read_bytes() for path in sorted(folder.iterdir())[:3]]
    columns = {"bytes": [*content, b"broken", None], "name": [f"cam/{i}.png" for i in range(5)]}
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=2)
    inputs = [str(tmp_path / "t.parquet"), f"file://{folder}", f"file://{tmp_path}/none.png"]
    found = run(inputs, f"file://{tmp_path}/out", loading, save=("overlay",))
    assert (found.total, found.done, found.failed) == (12, 9, 3)
    records = list(read_records(tmp_path / "out/predictions.jsonl"))
    names = [*(f"cam/{i}.png" for i in range(5)), *(f"file://{path}" for path in sorted(folder.iterdir()))]
    assert [v["path"] for v in records] == [*names, f"file://{tmp_path}/none.png"]
    assert [v.get("error") for v in records if "error" in v] == [
        "not an image (its content is no PNG, JPEG, BMP, WebP, TIFF or GIF)",
        "the row has no bytes",
        "nothing is here",
    ]
    detector = blemish.load(**loading)
    scores = [detector.predict(path).score for path in sorted(folder.iterdir())]
    assert [v["score"] for v in records if "score" in v] == pytest.approx([*scores[:3], *scores], abs=2e-6)
    assert sorted(p.name for p in (tmp_path / "out/overlays").rglob("*.png"))[:3] == [
        "0.png",
        "000.png",
        "001.png",
    ]
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_killed_workers_lose_nothing(
    tmp_path: Path, loading: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = tmp_path / "flags"
    flags.mkdir()

    class Fragile(PredictWorker):
        """Dies, as by `kill -9`, once before a part is written and once before that is reported."""

        def work(self, unit: Unit) -> Any:
            if unit.first == 8:
                list(self._records(unit, Path(self.job.out)))
                self.die_once("scored")
            found = super().work(unit)
            if unit.first == 16:
                self.die_once("written")
            return found

        def die_once(self, name: str) -> None:
            if not (flags / name).exists():
                (flags / name).touch()
                os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(scale, "PredictWorker", Fragile)
    folder = pictures(tmp_path / "in", 24)
    found = run([str(folder)], tmp_path / "out", loading)
    assert sorted(path.name for path in flags.iterdir()) == ["scored", "written"]
    assert sorted(paths(tmp_path / "out")) == sorted(map(str, folder.iterdir()))
    assert (found.total, found.done, found.failed) == (24, 24, 0)


def children(pid: int) -> set[int]:
    """All processes below one."""
    found = {pid}
    for _ in range(6):
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) in found:
                found.add(int(stat.parent.name))
    return found - {pid}


def alive(pid: int) -> bool:
    """Whether a process goes on; Ray's agents aside, which notice only after a minute that their driver is gone."""
    try:
        if b"Agent" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return False
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find processes")
def test_a_killed_driver_is_resumed(tmp_path: Path, loading: dict[str, Any]) -> None:
    folder, out = pictures(tmp_path / "in", 160, 300), tmp_path / "out"
    options = ["--engine", "ray", "--workers", "1", "--threads", "1", "--batch-size", "4", "--save", "none"]
    options += ["--checkpoint", str(loading["checkpoint"]), "-o", str(out)]
    command = [sys.executable, "-m", "blemish", "predict", str(folder), *options]
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 180
        while not list(out.glob("results/part-*.parquet")):
            assert driver.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        below = children(driver.pid)
    finally:
        driver.kill()
        driver.wait()
    until = time.monotonic() + 30
    while any(map(alive, below)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in below if alive(pid)]
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("results/part-*.parquet")}
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    found = run([str(folder)], out, loading, resume=True)
    assert 0 < found.skipped < 160 and found.done == 160
    assert sorted(paths(out)) == sorted(map(str, folder.iterdir()))
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("results/part-*.parquet")}
    assert before.items() <= kept.items()


def without_times(evaluation: Evaluation) -> list[Any]:
    found = []
    for method in evaluation.to_json()["methods"]:
        found.append({k: v for k, v in method.items() if k not in ("speed", "peak_memory_mib")})
    return found


def test_evaluation_equals_the_local_one(
    tmp_path: Path, small_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = draw_dataset(tmp_path / "set", ("plate", "gear"), side=40)
    (root / "plate/test/good/001.png").write_bytes(b"no picture")
    dataset = open_dataset(root)
    recipe = scale_evaluate.Recipe((), [small_checkpoint("anomaly_clip")], {}, {"threads": 1})
    detectors = load_detectors(recipe.methods, recipe.checkpoints, **recipe.loading)
    options = EvaluateOptions(batch_size=2, save="maps")
    expected = evaluate(detectors, dataset, tmp_path / "local", options)
    monkeypatch.setattr(scale_evaluate, "UNIT", 4)
    shown: list[tuple[int, str | None]] = []
    with scale_evaluate.spread_over(CREW, recipe) as spread:
        found = evaluate(
            detectors,
            dataset,
            tmp_path / "out",
            options,
            spread=spread,
            on_progress=lambda done, total, error: shown.append((done, error)),
        )
    assert without_times(found) == without_times(expected)
    assert found.methods[0].speed != Speed(0, 0) and len(found.failed) == 1
    assert shown[-1] == (20, None) and [error for _, error in shown if error]
    maps = {path.relative_to(tmp_path / "local") for path in (tmp_path / "local/maps").rglob("*.tiff")}
    assert maps == {path.relative_to(tmp_path / "out") for path in (tmp_path / "out/maps").rglob("*.tiff")}
