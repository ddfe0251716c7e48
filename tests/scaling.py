"""What tests of runs at scale share."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from blemish.cli import main
from blemish.output.tables import read_records


def table(**columns: list[Any]) -> bytes:
    buffer = BytesIO()
    parquet.write_table(pa.table(columns), buffer, row_group_size=2)
    return buffer.getvalue()


def predict(inputs: list[str], out: str, checkpoint: Path, *more: str) -> int:
    """Exit status of `blemish predict`; two pictures a batch, and so a part of the results for every two."""
    options = ["--checkpoint", str(checkpoint), "--precision", "fp32", "--threads", "1", "--batch-size", "2"]
    return main(["predict", *inputs, *options, "-o", out, *more])


def local_records(files: list[Path], out: Path, checkpoint: Path) -> list[dict[str, Any]]:
    """What the local engine says of pictures on disk."""
    assert predict([str(file) for file in files], str(out), checkpoint, "--save", "none") == 0
    return list(read_records(out / "predictions.jsonl"))


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Equal but for paths, times, and the last digits of what is computed."""
    for mine, other in zip(found, expected, strict=True):
        assert [mine[k] for k in ("width", "height", "threshold", "is_anomalous")] == [
            other[k] for k in ("width", "height", "threshold", "is_anomalous")
        ]
        assert [mine["score"], mine["map_max"]] == pytest.approx([other["score"], other["map_max"]], abs=2e-6)
