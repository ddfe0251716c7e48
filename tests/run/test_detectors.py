"""Several detectors at once: labels, default checkpoints, shared backbones, options shared out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blemish.errors import BadCheckpoint, BadOption, UnknownName
from blemish.loading import Backbones
from blemish.run.detectors import load_detectors

Make = Callable[..., Path]


def test_one_backbone_serves_all(small_checkpoint: Make) -> None:
    files = [small_checkpoint(name) for name in ("vcp_clip", "anomaly_clip")]
    found = load_detectors((), files)
    assert list(found) == ["vcp_clip", "anomaly_clip"]
    assert found["vcp_clip"].clip is found["anomaly_clip"].clip
    assert found["vcp_clip"].setup.checkpoint == files[0].name
    ordered = load_detectors(("anomaly_clip", "vcp_clip"), files)
    assert list(ordered) == ["anomaly_clip", "vcp_clip"]


def test_backbones_are_kept_apart_by_precision(small_checkpoint: Make) -> None:
    backbones, path = Backbones(), small_checkpoint()
    single, again, half = (
        load_detectors((), [path], backbones=backbones, precision=precision)["anomaly_clip"]
        for precision in ("fp32", "fp32", "bf16")
    )
    assert single.clip is again.clip and single.clip is not half.clip
    assert (single.precision, half.precision) == ("fp32", "bf16")


def test_labels(small_checkpoint: Make, tmp_path: Path) -> None:
    a, b, c = (small_checkpoint(name) for name in ("vcp_clip", "vcp_clip", "anomaly_clip"))
    assert list(load_detectors((), [a, c, b])) == [
        f"vcp_clip:{a.stem}",
        f"vcp_clip:{b.stem}",
        "anomaly_clip",
    ]
    assert list(load_detectors((), [f"old={a}", f"new={b}"])) == ["old", "new"]
    odd = tmp_path / "x=y.safetensors"
    odd.write_bytes(a.read_bytes())
    assert list(load_detectors((), [str(odd)])) == ["vcp_clip"]
    with pytest.raises(BadOption, match=r"2 checkpoints are called 'old'.*LABEL=FILE"):
        load_detectors((), [f"old={a}", f"old={c}"])


def test_default_checkpoints() -> None:
    assert list(load_detectors()) == ["clip_ac"]
    found = load_detectors(("vcp_clip", "vcp_clip"))
    assert list(found) == ["vcp_clip"] and found["vcp_clip"].setup.checkpoint == "vcp_clip.safetensors"


def test_what_does_not_fit(small_checkpoint: Make) -> None:
    path = small_checkpoint("vcp_clip")
    with pytest.raises(BadOption, match="is a checkpoint of vcp_clip, which --method does not name"):
        load_detectors(("anomaly_clip",), [path])
    with pytest.raises(UnknownName, match="did you mean 'vcp_clip'"):
        load_detectors(("vcp_clp",))
    with pytest.raises(BadCheckpoint, match="does not exist"):
        load_detectors((), ["nowhere.safetensors"])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"sigma": 3.0}, {"anomaly_clip": 3.0, "vcp_clip": 3.0}),
        ({"vcp_clip.sigma": 3.0}, {"anomaly_clip": 4.0, "vcp_clip": 3.0}),
        ({"vcp_clip.sigma": 3.0, "sigma": 2.0}, {"anomaly_clip": 2.0, "vcp_clip": 3.0}),
    ],
)
def test_options_go_to_those_that_have_them(
    small_checkpoint: Make, settings: dict[str, Any], expected: dict[str, float]
) -> None:
    files = [small_checkpoint(name) for name in expected]
    found = load_detectors((), files, {**settings, "rounding": "off"})
    assert {label: d.method.config.sigma for label, d in found.items()} == expected
    assert found["anomaly_clip"].method.config.rounding == "off"


def test_options_that_none_has(small_checkpoint: Make) -> None:
    files = [small_checkpoint(name) for name in ("anomaly_clip", "vcp_clip")]
    with pytest.raises(BadOption, match="did you mean 'sigma'"):
        load_detectors((), files, {"sigmma": 3.0})
    with pytest.raises(UnknownName, match="gen_clip"):
        load_detectors((), files, {"gen_clip.sigma": 3.0})
    with pytest.raises(UnknownName, match="preset"):
        load_detectors((), files, {"preset": "nonsense"})
