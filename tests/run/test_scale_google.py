"""Runs at scale from a store that speaks Google Cloud Storage's protocol, and into it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blemish.cli import main
from blemish.errors import OutputError
from blemish.run.scale_inputs import list_items, read_url
from blemish.run.scale_results import Place
from google_store import GoogleStore, google_store
from scaling import assert_same, local_records, predict, table

fsspec = pytest.importorskip("fsspec")
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def served() -> Iterator[GoogleStore]:
    """A store that this process, and those it starts, find as users' do: by the environment."""
    from fsspec.config import conf, set_conf_env

    with google_store() as store, pytest.MonkeyPatch.context() as patch:
        for key, value in store.environment.items():
            patch.setenv(key, value)
        patch.setitem(conf, "gs", {})
        set_conf_env(conf)  # done when fsspec is imported, which may have been before
        kind = pytest.importorskip("gcsfs").GCSFileSystem
        kind.clear_instance_cache()
        yield store
        kind.clear_instance_cache()


@pytest.fixture
def store(served: GoogleStore) -> GoogleStore:
    """The store without objects."""
    served.objects.clear()
    served.busy.clear()
    served.sealed = "\0"
    served.forget()
    return served


def test_folders_globs_files_and_tables(store: GoogleStore) -> None:
    for name in ("a.png", "deep/b10.png", "deep/b2.png", "deep/c.jpg", "deep/.hidden/d.png", "notes.txt"):
        store.objects[f"line/in/{name}"] = name.encode()
    urls = [f"gs://line/in/{name}" for name in ("a.png", "deep/b2.png", "deep/b10.png", "deep/c.jpg")]
    found = list_items(["gs://line/in"])
    assert [item.name for item in found] == urls
    assert [item.relative for item in found] == ["a.png", "deep/b2.png", "deep/b10.png", "deep/c.jpg"]
    globbed = list_items(["gs://line/in/*/b*.png", "gs://line/in/**/*.jpg", urls[0]])
    assert [item.name for item in globbed] == [*urls[1:], urls[0]]
    nothing = list_items(["gs://line/none", "gs://line/in/*.tiff"])
    assert [item.error for item in nothing] == ["nothing is here"] * 2
    assert read_url(urls[1]) == b"deep/b2.png" and read_url("gs://line/in/none.png") == "no such file"
    store.objects["line/paths.parquet"] = table(path=["in/a.png", urls[1], "in/none.png"])
    paths = list_items(["gs://line/paths.parquet"])
    assert [read_url(item.source) for item in paths] == [b"a.png", b"deep/b2.png", "no such file"]


def test_results_are_written_read_listed_and_removed(store: GoogleStore) -> None:
    place = Place("gs://line/out")
    assert place.names("results") == [] and place.read("run.json") is None
    place.write("results/a", b"1\r\n\n--==0==2")
    assert store.objects == {"line/out/results/a": b"1\r\n\n--==0==2"}
    assert place.names("results") == ["a"] and place.read("results/a") == b"1\r\n\n--==0==2"
    place.remove("results/a")
    place.remove("results/a")
    assert store.objects == {} and place.names("results") == []
    store.sealed = "line/locked"
    with pytest.raises(OutputError, match=r"cannot write gs://line/locked/a: .*choose another --out"):
        Place("gs://line/locked").write("a", b"1")


def test_a_run_and_its_resumption(
    store: GoogleStore,
    one_worker: None,
    small_checkpoint: Make,
    draw: Make,
    tmp_path: Path,
) -> None:
    checkpoint, files = small_checkpoint(), [draw(f"disk/{number}.png") for number in range(4)]
    for file in files:
        store.objects[f"line/in/{file.name}"] = file.read_bytes()
    store.busy["line/in/3.png"] = 2  # fetched all the same
    options = ["--engine", "ray", "--workers", "1", "--save", "none"]
    assert predict(["gs://line/in"], "gs://line/out", checkpoint, *options) == 0
    assert store.busy["line/in/3.png"] == 0
    records = [json.loads(line) for line in store.objects["line/out/predictions.jsonl"].splitlines()]
    assert [values["path"] for values in records] == [f"gs://line/in/{number}.png" for number in range(4)]
    assert_same(records, local_records(files, tmp_path / "local", checkpoint))
    parts = store.below("line/out/results/")
    assert len(parts) == 2

    del store.objects[parts[0]]
    store.forget()
    assert predict(["gs://line/in"], "gs://line/out", checkpoint, *options, "--resume") == 0
    assert sorted(key for key in store.reads if key.startswith("line/in/")) == [
        "line/in/0.png",
        "line/in/1.png",
    ]
    assert store.below("line/out/results/") == parts
    assert json.loads(store.objects["line/out/run.json"])["counts"]["skipped"] == 2


def test_a_bucket_that_is_not_there_is_one_line(
    store: GoogleStore, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    assert main(["predict", "--engine", "ray", "gs://nowhere/in", "-o", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err
    assert "gs://nowhere/in" in text and "Traceback" not in text
