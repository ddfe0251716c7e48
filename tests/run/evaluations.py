"""What the tests of evaluation share: comparable results, and what was decoded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from blemish.run import scoring
from blemish.run.results import ClassResult, Evaluation, MethodResult, Speed
from blemish.types import Sample

TWO = ("anomaly_clip", "vcp_clip")


def without_speed(evaluation: Evaluation) -> list[MethodResult]:
    """What must not depend on how a run went; sums may differ in the last bit with where arrays lie in memory."""

    def rounded(found: ClassResult) -> ClassResult:
        metrics = {
            name: replace(s, value=s.value and round(s.value, 12), error_bound=round(s.error_bound, 12))
            for name, s in found.metrics.items()
        }
        return replace(found, metrics=metrics)

    return [
        replace(
            m,
            speed=Speed(0, 0),
            peak_memory_mib=0,
            classes={name: rounded(found) for name, found in m.classes.items()},
            mean={
                name: replace(v, value=v.value and round(v.value, 12), error_bound=0)
                for name, v in m.mean.items()
            },
        )
        for m in evaluation.methods
    ]


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that receives the name of every picture that is decoded."""
    names: list[str] = []
    real = scoring.load_pixels

    def load(sample: Sample) -> np.ndarray:
        names.append(f"{sample.class_name}/{sample.defect}/{sample.image.name}")
        return real(sample)

    monkeypatch.setattr(scoring, "load_pixels", load)
    return names
