"""Maps, masks, predictions.jsonl and predictions.csv."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blemish.errors import BadImage, OutputError
from blemish.output.tables import (
    PredictionWriter,
    error_record,
    read_map,
    read_records,
    record,
    write_map,
    write_mask,
)
from blemish.types import Result

KEYS = [
    "path",
    "score",
    "threshold",
    "is_anomalous",
    "width",
    "height",
    "map_max",
    "regions",
    "files",
    "seconds",
]


def result(score: float = 0.75, threshold: float | None = 0.5) -> Result:
    values = np.zeros((12, 20), np.float32)
    values[2:5, 3:9] = 0.7
    values[9, 15] = 0.9
    return Result(score, values, threshold, None if threshold is None else 0.6, seconds=0.25)


def simple(name: str) -> dict[str, Any]:
    return record(result(), name)


def lines(out: Path) -> list[str]:
    return [json.loads(line)["path"] for line in (out / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("shape", [(1, 1), (33, 70), (600, 800)])
def test_maps_come_back_exactly(tmp_path: Path, shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    write_map(tmp_path / "sub" / "a.tiff", values)
    back = read_map(tmp_path / "sub" / "a.tiff")
    assert back.dtype == np.float32 and back.shape == shape
    np.testing.assert_array_equal(back, values)
    with Image.open(tmp_path / "sub" / "a.tiff") as page:  # another reader agrees
        np.testing.assert_array_equal(np.asarray(page), values)


def test_maps_are_not_packed_and_bad_ones_refused(tmp_path: Path) -> None:
    write_map(tmp_path / "a.tiff", np.zeros((500, 500), np.float32))
    with Image.open(tmp_path / "a.tiff") as page:  # packing costs as much as the network and saves nothing
        assert page.info["compression"] == "raw"
    assert (tmp_path / "a.tiff").stat().st_size < 500 * 500 * 4 + 2000
    (tmp_path / "b.tiff").write_bytes(b"nonsense")
    with pytest.raises(BadImage, match=r"b\.tiff"):
        read_map(tmp_path / "b.tiff")


def test_masks_are_8_bit_grey(tmp_path: Path) -> None:
    mask = np.zeros((5, 9), bool)
    mask[1:3, 2:4] = True
    write_mask(tmp_path / "m.png", mask)
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture), mask * 255)


def test_record_has_the_published_keys_and_plain_values() -> None:
    values = record(result(), Path("a/ü.png"), {"overlay": Path("overlays/a/ü.png")})
    assert list(values) == KEYS
    assert json.loads(json.dumps(values)) == values
    assert values["regions"] == [
        {"box": [15, 9, 16, 10], "area": 1, "peak": 0.9},
        {"box": [3, 2, 9, 5], "area": 18, "peak": 0.7},
    ]
    assert (values["width"], values["height"], values["map_max"]) == (20, 12, 0.9)
    assert values["is_anomalous"] is True and values["files"] == {"overlay": "overlays/a/ü.png"}
    bare = record(result(threshold=None), "a.png")
    assert bare["threshold"] is None and bare["is_anomalous"] is None and bare["regions"] == []


def test_error_records_hold_path_and_cause_only() -> None:
    assert error_record("a.png", BadImage("a.png: is empty")) == {"path": "a.png", "error": "is empty"}


def test_lines_are_there_at_once_and_nan_is_refused(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path / "new" / "out") as writer:
        writer.write(simple("é.png"))
        assert lines(tmp_path / "new" / "out") == ["é.png"]
        with pytest.raises(ValueError, match="JSON"):
            writer.write({"path": "b", "score": float("nan")})
        writer.write(simple("c.png"))
    assert lines(tmp_path / "new" / "out") == ["é.png", "c.png"]


def test_resume_drops_torn_and_failed_lines_only(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path) as writer:
        for name in ("a.png", "b.png"):
            writer.write(simple(name))
        writer.write(error_record("c.png", "cut short"))
        writer.write(simple("d.png"))
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(path.read_bytes() + b"not json\n" + b'{"path": "e.png", "sc')
    with PredictionWriter(tmp_path, resume=True) as writer:
        assert list(writer.done) == ["a.png", "b.png", "d.png"]
        assert writer.done["a.png"] == simple("a.png")
        writer.write(simple("c.png"))
        writer.finish(["d.png", "c.png", "b.png", "a.png"])
    assert lines(tmp_path) == ["d.png", "c.png", "b.png", "a.png"]
    with PredictionWriter(tmp_path) as writer:
        assert writer.done == {}
    assert lines(tmp_path) == []


def test_a_killed_writer_leaves_whole_lines(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from blemish.output.tables import PredictionWriter\n"
        "w = PredictionWriter(Path(sys.argv[1]))\n"
        "for i in range(50): w.write({'path': str(i)})\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert lines(tmp_path) == [str(i) for i in range(50)]


def test_finish_orders_keeps_strangers_and_takes_the_later_of_two(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path) as writer:
        for name, score in (("old.png", 0.1), ("b.png", 0.2), ("a.png", 0.3), ("b.png", 0.4)):
            writer.write(record(result(score), name))
        writer.finish([Path("a.png"), Path("b.png"), Path("missing.png")])
    assert lines(tmp_path) == ["a.png", "b.png", "old.png"]
    assert [r["score"] for r in read_records(tmp_path / "predictions.jsonl")] == [0.3, 0.4, 0.1]
    assert not list(tmp_path.glob(".*"))


def test_csv_has_the_same_values_without_regions(tmp_path: Path) -> None:
    name = 'a "quoted", ü\n.png'
    with PredictionWriter(tmp_path) as writer:
        writer.write(record(result(), name, {"overlay": "overlays/a.png", "map": "maps/a.tiff"}))
        writer.write(record(result(threshold=None), "b.png"))
        writer.write(error_record("c.png", "cut short"))
        writer.finish([name, "b.png", "c.png"])
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert "regions" not in rows[0]
    assert rows[0] == {
        **{"path": name, "score": "0.75", "threshold": "0.5", "is_anomalous": "true", "width": "20"},
        **{"height": "12", "map_max": "0.9", "overlay": "overlays/a.png", "mask": "", "map": "maps/a.tiff"},
        **{"attention": "", "attention_data": "", "seconds": "0.25", "error": ""},
    }
    assert rows[1]["threshold"] == rows[1]["is_anomalous"] == ""
    assert {k: v for k, v in rows[2].items() if v} == {"path": "c.png", "error": "cut short"}


def test_an_empty_run_still_has_both_tables(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path) as writer:
        writer.finish([])
    assert (tmp_path / "predictions.jsonl").read_bytes() == b""
    assert (tmp_path / "predictions.csv").read_text().count("\n") == 1


def test_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match="cannot write"):
        PredictionWriter(tmp_path / "out")


def test_a_full_disk_keeps_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = PredictionWriter(tmp_path)
    writer.write(simple("a.png"))
    file = writer._file

    class Full:
        """Takes ten bytes, then no more."""

        taken = False

        def write(self, data: bytes) -> int:
            if self.taken:
                raise OSError(28, "No space left on device")
            self.taken = True
            return file.write(data[:10])

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

    monkeypatch.setattr(writer, "_file", Full())
    with pytest.raises(OutputError, match="no space left"):
        writer.write(simple("b.png"))
    assert lines(tmp_path) == ["a.png"]
    writer.close()
