"""Runs at scale without Ray: what inputs name, parts and places of results, refusals."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from blemish.cli import main
from blemish.config import PredictOptions
from blemish.errors import BadOption, BlemishError, OutputError, UnknownName
from blemish.output.tables import read_records
from blemish.run import scale, scale_ray
from blemish.run.scale import cut_units
from blemish.run.scale_inputs import Item, list_items, read_rows, read_url
from blemish.run.scale_ray import Fault, Pool, UnitWorker, _check_address, _pool, opened, packed
from blemish.run.scale_results import Parts, Place, check_place, part_name, write_tables
from blemish.run.scale_worker import Job, Outcome, Unit, outcome_of

Draw = Callable[..., Path]


def table(file: Path, rows: int | None = None, **columns: list[Any]) -> Path:
    parquet.write_table(pa.table(columns), file, row_group_size=rows)
    return file


def good(path: str, score: float = 0.5) -> dict[str, Any]:
    regions = [{"box": [0, 1, 4, 5], "area": 7, "peak": 0.1}]
    return {
        **{"path": path, "score": score, "threshold": None, "is_anomalous": None},
        **{"width": 4, "height": 5, "map_max": 0.1, "regions": regions},
        **{"files": {"map": "maps/a.tiff"}, "seconds": 0.01},
    }


def test_local_pictures_are_those_of_the_local_engine(draw: Draw, tmp_path: Path) -> None:
    for name in ("in/a.png", "in/b10.png", "in/b2.png", "in/a.jpg"):
        draw(name)
    found = list_items([str(tmp_path / "in"), str(tmp_path / "in/a.png"), str(tmp_path / "none")])
    assert [Path(item.name).name for item in found] == ["a.jpg", "a.png", "b2.png", "b10.png", "none"]
    assert [item.relative for item in found[:2]] == ["a.jpg", "a_png.png"]
    assert found[-1].error == "no such file or folder"
    assert Path(found[0].source).is_absolute()


@pytest.mark.parametrize("inputs", ["file://{}/in", "file://{}/in/**/*.png", "file://{}/in/deep/a.png"])
def test_urls(inputs: str, draw: Draw, tmp_path: Path) -> None:
    for name in ("in/deep/a.png", "in/deep/.hidden/b.png"):
        draw(name)
    (tmp_path / "in/notes.csv").write_text("no picture")
    found = [item for item in list_items([inputs.format(tmp_path)] * 2) if ".hidden" not in item.name]
    assert [item.name for item in found] == [f"file://{tmp_path}/in/deep/a.png"]
    assert found[0].relative == ("a.png" if inputs.endswith("a.png") else "deep/a.png")
    assert read_url(found[0].source) == (tmp_path / "in/deep/a.png").read_bytes()


def test_object_store_in_memory(draw: Draw) -> None:
    store = fsspec.filesystem("memory")
    for name in ("bucket/x/1.png", "bucket/x/2.png", "bucket/y/readme.txt"):
        store.pipe(f"/{name}", draw("one.png").read_bytes())
    found = list_items(["memory://bucket/x", "memory://bucket/y", "memory://bucket/z"])
    assert [item.relative for item in found[:2]] == ["1.png", "2.png"]
    assert "no images here" in str(found[2].error) and found[3].error == "nothing is here"
    assert read_url("memory://bucket/x/3.png") == "no such file"


def test_table_of_paths(draw: Draw, tmp_path: Path) -> None:
    here = draw("in/a.png")
    paths = ["in/a.png", str(here), f"file://{here}", "../up.png", None, "in/a.png"]
    found = list_items([str(table(tmp_path / "t.parquet", path=paths))])
    # the first, second, third and last name one file
    assert [item.source for item in found[:2]] == [str(here), f"{tmp_path}/../up.png"]
    assert found[1].relative == "up.png" and found[2].error == "the row has no path"
    assert len(found) == 3 and found[0].name == "in/a.png"


def test_table_of_bytes_with_names(tmp_path: Path) -> None:
    content = [bytes([i]) * 3 for i in range(7)]
    content[3:4] = [None]  # type: ignore[list-item]
    names = ["a", "b", "a", None, "../c", "d/e", "f"]
    path = table(tmp_path / "t.parquet", rows=4, bytes=content, name=names)
    found = list_items([str(path)])
    assert [item.name for item in found] == ["a", "b", "a#2", "t.parquet#3", "../c", "d/e", "f"]
    assert [item.relative for item in found] == ["a", "b", "a-2", "t.parquet#3", "c", "d/e", "f"]
    assert [(item.group, item.row) for item in found[3:5]] == [(0, 3), (1, 0)]
    chosen = [found[i] for i in (1, 2, 3, 5, 6)]
    assert list(read_rows(chosen)) == [b"\1\1\1", b"\2\2\2", "the row has no bytes", b"\5\5\5", b"\6\6\6"]


def test_folder_of_tables(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for part in (2, 10, 1):
        table(tmp_path / f"many/part-{part}.parquet", path=[f"{part}.png"])
    for text in (str(tmp_path / "many"), f"file://{tmp_path}/many"):
        assert [item.name for item in list_items([text])] == ["1.png", "2.png", "10.png"]


@pytest.mark.parametrize(
    ("columns", "cause"),
    [
        ({"image": ["a"]}, "has columns image; expected path or bytes"),
        ({"path": [1]}, "column path holds int64; expected string"),
        ({"bytes": ["text"]}, "column bytes holds string; expected binary"),
        ({"path": pa.array([], pa.string())}, "no rows"),
    ],
)
def test_tables_that_cannot_be_used(
    columns: dict[str, Any], cause: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = table(tmp_path / "t.parquet", **columns)
    assert main(["predict", "--engine", "ray", str(path), "-o", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err
    assert cause in text and str(path) in text and text.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["{}/broken.parquet"], "cannot be read as a parquet table"),
        (["{}/none.parquet"], "no such table"),
        (["nonsense://bucket/x"], "not an address that can be used"),
        (["zip://a.png::file:///x.zip"], "chained URLs"),
        (["{}", "--workers", "0"], "workers is 0"),
        (["{}", "--address", "nowhere"], "expected HOST:PORT"),
        (["{}", "--address", "ray://head:10001"], "--address auto"),
        (["{}", "--device", "cuda:1"], "gives every worker its own"),
    ],
)
def test_wrong_use_is_one_line_and_2(
    arguments: list[str], cause: str, draw: Draw, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    draw("a.png")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    given = [text.format(tmp_path) for text in arguments]
    assert main(["predict", "--engine", "ray", *given, "-o", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err
    assert cause in text and text.count("\n") == 1


def test_nobody_at_the_address(draw: Draw, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = ["--engine", "ray", "--address", address, "-o", str(tmp_path / "out")]
    assert main(["predict", str(draw("a.png")), *options]) == 2
    text = capsys.readouterr().err
    assert f"no Ray cluster answers at {address}" in text and text.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (b"HTTP/1.0 400 Bad Request\r\n\r\n", "is no Ray cluster; expected HOST:PORT"),
        (b"", "no Ray cluster answers"),
        (None, "(timed out); is it running?"),
    ],
)
def test_somebody_else_at_the_address(
    reply: bytes | None,
    cause: str,
    draw: Draw,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Servers that answer something else, close, or say nothing, for which Ray would wait for minutes."""
    monkeypatch.setattr(scale_ray, "PATIENCE", 0.3)
    over = threading.Event()

    def serve(server: socket.socket) -> None:
        connection = server.accept()[0]
        with connection:
            if reply:
                connection.recv(1000)
                connection.sendall(reply)
            elif reply is not None:
                # Closed without having read: the client sees a reset.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            over.wait(20)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        try:
            picture = draw("a.png")
            options = ["--engine", "ray", "--address", address, "-o", str(picture.parent / "out")]
            assert main(["predict", str(picture), *options]) == 2
        finally:
            over.set()
            thread.join()
    text = capsys.readouterr().err
    assert cause in text and address in text and text.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "said", "error", "expected"),
    [
        (
            "h:1",
            b"W rpc InvalidAuthToken: wrong\n" * 20,
            ConnectionError("Failed"),
            "at h:1 asks for a token",
        ),
        (
            "h:1",
            b"W no connection\n",
            RuntimeError("Version mismatch:\n  Ray: 1"),
            "(Version mismatch: Ray: 1)",
        ),
        (
            None,
            b"",
            Exception("timed out during startup"),
            "Ray did not start here (timed out during startup)",
        ),
    ],
)
def test_what_ray_says_becomes_one_line(
    address: str | None, said: bytes, error: Exception, expected: str, capfd: pytest.CaptureFixture
) -> None:
    def init(**_: object) -> None:
        os.write(2, said)
        raise error

    with pytest.raises(BadOption) as caught:
        scale_ray._start(SimpleNamespace(init=init), address, 1, 1)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_without_the_extra(
    draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    for command in (["predict", str(draw("a.png"))], ["evaluate", "--data", str(tmp_path)]):
        assert main([*command, "--engine", "ray", "-o", str(tmp_path / "out")]) == 2
        assert 'pip install "blemish[scale]"' in capsys.readouterr().err


def test_inputs_without_any_picture_need_no_ray(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    assert main(["predict", "--engine", "ray", str(tmp_path / "empty"), "-o", str(out)]) == 2
    text = capsys.readouterr().err
    assert "no images in this folder" in text and "1 failed" in text
    assert next(read_records(out / "predictions.jsonl"))["error"].startswith("no images")
    assert json.loads((out / "run.json").read_text())["counts"]["failed"] == 1


def test_options_of_ray_without_it() -> None:
    with pytest.raises(BadOption, match="pass --engine ray"):
        PredictOptions(workers=2)
    with pytest.raises(UnknownName, match="'ray'"):
        PredictOptions(engine="rya")


@pytest.mark.parametrize("root", ["{}/out", "file://{}/out", "memory://{}/out"])
def test_parts_and_tables(root: str, tmp_path: Path) -> None:
    place = Place(root.format(tmp_path))
    check_place(place, resume=False, overwrite=False)
    parts = Parts(place)
    first, second = [good("b", 0.25), {"path": "x", "error": "damaged"}], [good("a", 1 / 3)]
    parts.write(part_name(8, ["a"]), second)
    parts.write(part_name(0, ["b", "x"]), first)
    parts.write(part_name(0, ["b", "x"]), first)
    assert list(parts.records()) == [*first, *second]
    assert parts.settle(drop_failed=False) == {"b": None, "x": None, "a": None}
    assert write_tables(parts, ["a", "x", "b"], 3, limit=3)
    lines = [json.loads(line) for line in (place.read("predictions.jsonl") or b"").splitlines()]
    assert lines == [second[0], first[1], first[0]]
    assert (place.read("predictions.csv") or b"").startswith(b"path,score")
    with pytest.raises(OutputError, match="holds an earlier run"):
        check_place(place, resume=False, overwrite=False)
    assert not write_tables(parts, ["a", "x", "b"], 3, limit=2)
    assert place.read("predictions.jsonl") is None and len(parts.names()) == 2
    assert not [name for name in place.names("results") if name.endswith(".tmp")]


def test_settling_drops_failures_doubles_and_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = Parts(Place(str(tmp_path)))
    parts.write("part-0-a.parquet", [good("a"), {"path": "x", "error": "damaged"}])
    parts.write("part-1-b.parquet", [good("a"), good("b")])
    parts.write("part-2-c.parquet", [{"path": "y", "error": "damaged"}])
    (tmp_path / "results/part-3-d.parquet").write_bytes(b"PAR1")
    (tmp_path / "results/.half.tmp").write_bytes(b"PAR1")
    assert parts.settle(drop_failed=True) == {"a": None, "b": None}
    assert [values["path"] for values in parts.records()] == ["a", "b"]
    assert parts.names() == ["part-0-a.parquet", "part-1-b.parquet"]
    assert "part-3-d.parquet is damaged" in caplog.text
    parts.clear()
    assert parts.names() == []


def test_units_are_whole_batches_and_enough_for_all() -> None:
    items = [(n, Item(str(n), str(n), str(n))) for n in range(1000)]
    for workers, batch in ((1, 8), (2, 8), (4, 3), (2, 2000)):
        units = cut_units(items, workers, batch)
        assert [item for unit in units for item in unit.items] == [item for _, item in items]
        assert all(len(unit.items) % batch == 0 for unit in units[:-1])
        assert batch == 2000 or len(units) >= 4 * workers
        assert len({unit.part for unit in units}) == len(units)
    assert max(len(unit.items) for unit in cut_units(items * 100, 2, 8)) == 256


def test_pools() -> None:
    assert _pool({"CPU": 16}, None, None, "auto") == Pool(4, 4)
    assert _pool({"CPU": 16}, 2, None, "auto") == Pool(2, 8)
    assert _pool({"CPU": 2}, 2, 1, "auto") == Pool(2, 1)
    assert _pool({"CPU": 64, "GPU": 4}, None, None, "auto") == Pool(4, 16, 1.0)
    assert _pool({"CPU": 64, "GPU": 4}, 8, None, "auto") == Pool(8, 8, 0.5)
    assert _pool({"CPU": 8, "GPU": 4}, None, None, "cpu") == Pool(2, 4)
    with pytest.raises(BadOption, match="does not fit"):
        _pool({"CPU": 2}, 1, 3, "auto")
    _check_address("auto")


def test_a_read_only_store_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("memory://readonly")
    monkeypatch.setattr(place._fs, "pipe_file", lambda *_: (_ for _ in ()).throw(PermissionError("denied")))
    with pytest.raises(OutputError, match=r"cannot write memory://readonly/a: denied"):
        place.write("a", io.BytesIO(b"1").getvalue())


class Troubled(UnitWorker):
    def work(self, unit: Any) -> str:
        if isinstance(unit, Exception):
            raise unit
        return f"done {unit}"


def test_faults_of_workers_come_back_as_outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    worker = Troubled(str(tmp_path))

    def outcome(unit: object) -> object:
        found: object = pickle.loads(worker({"unit": packed(unit)})["outcome"])
        return found

    assert outcome(3) == "done 3"
    assert outcome(OutputError("the disk is full")) == Fault("the disk is full", expected=True)
    assert outcome(KeyError("x")) == Fault("KeyError in a worker: 'x'", expected=False)
    with pytest.raises(BlemishError, match="the disk is full"):
        opened(pickle.dumps(outcome(OutputError("the disk is full"))))
    with pytest.raises(RuntimeError, match="KeyError in a worker"):
        opened(pickle.dumps(outcome(KeyError("x"))))


def test_units_lost_are_tried_again_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Item(f"{n}.png", f"{n}.png", f"/{n}.png") for n in range(40)]
    parts, rounds = Parts(Place(str(tmp_path))), []

    def run(units: list[Unit], *_: Any, ahead: int, **__: Any) -> Iterator[Outcome]:
        """Dies over the 5th picture, with which the next unit is lost; writes the 3rd without saying so."""
        rounds.append(([len(unit.items) for unit in units], ahead))
        fatal = next(i for i, unit in enumerate(units) if items[5] in unit.items)
        for number, unit in enumerate(units):
            if number == fatal or (len(rounds) == 1 and number == fatal + 1):
                continue
            records = [good(item.name) for item in unit.items]
            parts.write(unit.part, records)
            if len(rounds) > 1 or number != fatal + 2:
                yield outcome_of(unit.number, records, report=False)

    monkeypatch.setattr(scale, "run_units", run)
    errors: list[str | None] = []
    job = Job({}, str(tmp_path), (), batch_size=2)
    state = scale._Run(job, parts, items, on_progress=lambda done, total, error: errors.append(error))
    state.begin({})
    monkeypatch.setattr(scale, "UNITS_PER_WORKER", 5)
    state.score(Pool(2, 1))
    assert rounds == [([4] * 10, 2), ([2] * 4, 1)]
    found = state.summary(str(tmp_path), 0)
    assert (found.total, found.done, found.failed) == (40, 38, 2)
    records = list(parts.records())
    assert sorted(values["path"] for values in records) == sorted(item.name for item in items)
    assert [v["path"] for v in records if "error" in v] == ["4.png", "5.png"]
    assert [error for error in errors if error] == [f"{n}.png: {scale.LOST}" for n in (4, 5)]
