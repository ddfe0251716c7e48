"""Runs at scale from an object store that speaks S3's protocol, and into it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from blemish.cli import main
from blemish.errors import OutputError
from blemish.run.scale_inputs import list_items, read_rows, read_url
from blemish.run.scale_results import Parts, Place, check_place, part_name, write_tables
from object_store import Store, object_store
from scaling import assert_same, local_records, predict, table

s3fs = pytest.importorskip("s3fs")
Make = Callable[..., Path]
DAMAGED = "not an image (its content is no PNG, JPEG, BMP, WebP, TIFF or GIF)"


@pytest.fixture(scope="module")
def served() -> Iterator[Store]:
    """A store that this process, and those it starts, find as users' do: by the environment."""
    with object_store() as store, pytest.MonkeyPatch.context() as patch:
        for key, value in store.environment.items():
            patch.setenv(key, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield store
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def store(served: Store) -> Store:
    """The store without objects."""
    served.objects.clear()
    served.busy.clear()
    served.sealed = "\0"
    served.forget()
    return served


def filled(store: Store, draw: Make, count: int, folder: str = "line/in") -> list[Path]:
    """Pictures on disk, and the same below `folder` of the store."""
    files = [draw(f"disk/{number}.png") for number in range(count)]
    for file in files:
        store.objects[f"{folder}/{file.name}"] = file.read_bytes()
    return files


def test_folders_globs_and_files(store: Store) -> None:
    for name in ("a.png", "deep/b10.png", "deep/b2.png", "deep/c.jpg", "deep/.hidden/d.png", "notes.txt"):
        store.objects[f"line/in/{name}"] = name.encode()
    urls = [f"s3://line/in/{name}" for name in ("a.png", "deep/b2.png", "deep/b10.png", "deep/c.jpg")]
    for given in ("s3://line/in", "s3://line/in/"):
        found = list_items([given])
        assert [item.name for item in found] == urls
        assert [item.relative for item in found] == ["a.png", "deep/b2.png", "deep/b10.png", "deep/c.jpg"]
    globbed = list_items(["s3://line/in/*/b*.png", "s3://line/in/**/*.jpg", urls[0]])
    assert [item.name for item in globbed] == [*urls[1:], urls[0]]
    nothing = list_items(["s3://line/none", "s3://line/in/*.tiff", "s3://line/in/n*.txt"])
    assert [item.error for item in nothing[:2]] == ["nothing is here"] * 2
    assert str(nothing[2].error).startswith("no images here")
    assert read_url(urls[1]) == b"deep/b2.png" and read_url("s3://line/in/none.png") == "no such file"


def test_tables(store: Store) -> None:
    store.objects["line/in/a.png"] = b"a"
    store.objects["line/in/deep/b2.png"] = b"b"
    store.objects["line/paths.parquet"] = table(
        path=["in/a.png", "s3://line/in/deep/b2.png", "in/none.png", "in/../in/a.png"]
    )
    store.objects["line/many/2.parquet"] = table(bytes=[b"1", b"2", b"3"], name=["x", "y", "z"])
    store.objects["line/many/10.parquet"] = table(bytes=[b"4"])
    paths = list_items(["s3://line/paths.parquet"])
    assert [item.name for item in paths] == ["in/a.png", "s3://line/in/deep/b2.png", "in/none.png"]
    assert [read_url(item.source) for item in paths] == [b"a", b"b", "no such file"]
    rows = list_items(["s3://line/many"])
    assert [item.name for item in rows] == ["x", "y", "z", "10.parquet#0"]
    assert list(read_rows(rows)) == [b"1", b"2", b"3", b"4"]


def test_results(store: Store) -> None:
    place = Place("s3://line/out")
    check_place(place, resume=False, overwrite=False)
    assert place.names("results") == [] and place.read("run.json") is None
    parts, name = Parts(place), part_name(0, ["a"])
    record = {"path": "a", "error": "damaged"}
    parts.write(name, [record])
    parts.write(name, [record])
    assert list(store.objects) == [f"line/out/results/{name}"]
    assert list(parts.records()) == [record]
    assert write_tables(parts, ["a"], 1, limit=1)
    assert json.loads(store.objects["line/out/predictions.jsonl"]) == record
    with pytest.raises(OutputError, match="holds an earlier run"):
        check_place(place, resume=False, overwrite=False)
    assert parts.settle(drop_failed=True) == {} and parts.names() == []
    store.sealed = "line/locked"
    with pytest.raises(OutputError, match=r"cannot write s3://line/locked/a: .*choose another --out"):
        Place("s3://line/locked").write("a", b"1")


def at_scale(inputs: list[str], checkpoint: Path, *more: str) -> int:
    return predict(inputs, "s3://line/out", checkpoint, "--engine", "ray", "--workers", "1", *more)


def rows_of(store: Store) -> list[dict[str, Any]]:
    """The rows of all parts in the store, as any reader of parquet sees them."""
    parts = [store.objects[key] for key in store.below("line/out/results/")]
    return [row for part in parts for row in parquet.read_table(BytesIO(part)).to_pylist()]


def test_from_a_store_into_a_store(
    store: Store, one_worker: None, small_checkpoint: Make, draw: Make, tmp_path: Path
) -> None:
    checkpoint, files = small_checkpoint(), filled(store, draw, 4)
    store.objects["line/in/broken.png"] = b"no picture"
    store.objects["line/else/x.png"] = files[2].read_bytes()
    paths = ["s3://line/else/x.png", "../in/1.png", "none.png"]  # the second is in the folder too
    store.objects["line/else/t.parquet"] = table(path=paths)
    store.busy["line/in/3.png"] = 2  # fetched all the same
    assert at_scale(["s3://line/in/", "s3://line/else/t.parquet"], checkpoint, "--save", "overlay") == 1
    good = [*(f"s3://line/in/{number}.png" for number in range(4)), "s3://line/else/x.png"]
    records = [json.loads(line) for line in store.objects["line/out/predictions.jsonl"].splitlines()]
    assert [v["path"] for v in records] == [*good[:4], "s3://line/in/broken.png", good[4], "none.png"]
    assert records[4]["error"] == DAMAGED and records[6]["error"] == "no such file"
    scored = [values for values in records if "error" not in values]
    chosen = [*files, files[2]]
    assert store.busy["line/in/3.png"] == 0
    rows = {row["path"]: row for row in rows_of(store)}
    assert len(rows) == len(rows_of(store)) == 7 and len(store.below("line/out/results/")) == 4
    assert [rows[values["path"]]["score"] for values in records] == [v.get("score") for v in records]
    assert rows["s3://line/in/broken.png"]["error"] == DAMAGED
    overlays = [*(f"{number}.png" for number in range(4)), "line/else/x.png"]
    assert store.below("line/out/overlays/") == [f"line/out/overlays/{name}" for name in overlays]
    run = json.loads(store.objects["line/out/run.json"])
    assert run["status"] == "done" and run["engine"] == "ray" and run["counts"]["failed"] == 2
    local = tmp_path / "local"
    expected = {Path(v["path"]).name: v for v in local_records(files, local, checkpoint)}
    assert_same(scored, [expected[file.name] for file in chosen])


def test_a_run_in_a_store_is_resumed_by_its_output(
    store: Store, one_worker: None, small_checkpoint: Make, draw: Make, tmp_path: Path
) -> None:
    checkpoint, files = small_checkpoint(), filled(store, draw, 6)
    assert at_scale(["s3://line/in/*.png"], checkpoint, "--save", "none") == 0
    first = {key: store.objects[key] for key in store.below("line/out/results/")}
    assert len(first) == 3

    store.forget()
    assert at_scale(["s3://line/in/*.png"], checkpoint, "--save", "none", "--resume") == 0
    assert not [key for key in store.writes if "/results/" in key]
    assert not [key for key in store.reads if key.startswith("line/in/")]
    assert json.loads(store.objects["line/out/run.json"])["counts"]["skipped"] == 6

    gone = list(first)[1]
    del store.objects[gone]
    store.forget()
    assert at_scale(["s3://line/in/*.png"], checkpoint, "--save", "none", "--resume") == 0
    assert sorted(key for key in store.reads if key.startswith("line/in/")) == [
        "line/in/2.png",
        "line/in/3.png",
    ]
    kept = {key: content for key, content in first.items() if key != gone}
    assert kept.items() <= store.objects.items()
    assert not set(kept) & set(store.writes)
    assert json.loads(store.objects["line/out/run.json"])["counts"]["skipped"] == 4
    rows = sorted(rows_of(store), key=lambda row: row["path"])
    assert [row["path"] for row in rows] == [f"s3://line/in/{number}.png" for number in range(6)]
    assert_same(rows, local_records(files, tmp_path / "local", checkpoint))


@pytest.mark.slow
def test_ray_workers_find_the_store(store: Store, small_checkpoint: Make, draw: Make, tmp_path: Path) -> None:
    checkpoint, files = small_checkpoint(), filled(store, draw, 3)
    store.objects["line/in/broken.png"] = b"no picture"
    assert at_scale(["s3://line/in"], checkpoint, "--save", "none") == 1
    rows = sorted(rows_of(store), key=lambda row: row["path"])
    names = ("0.png", "1.png", "2.png", "broken.png")
    assert [row["path"] for row in rows] == [f"s3://line/in/{name}" for name in names]
    assert rows[3]["error"] == DAMAGED
    assert_same(rows[:3], local_records(files, tmp_path / "local", checkpoint))


@pytest.mark.parametrize(
    ("variable", "value", "inputs", "cause"),
    [
        ("AWS_ACCESS_KEY_ID", "another", "s3://line/in", "access key is not known"),
        ("AWS_DEFAULT_REGION", "us-east-1", "s3://nowhere/in", "bucket does not exist"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "s3://line/in", "Could not connect"),
    ],
)
def test_what_is_wrong_with_a_store_is_one_line(
    variable: str,
    value: str,
    inputs: str,
    cause: str,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv(variable, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        for arguments in ([inputs, "-o", str(tmp_path / "out")], ["x.png", "-o", f"{inputs}/out"]):
            assert main(["predict", "--engine", "ray", *arguments]) == 2
            text = capsys.readouterr().err
            assert cause in text and inputs in text and text.count("\n") == 1
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
