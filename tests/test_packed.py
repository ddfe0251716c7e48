"""The form in which golden arrays are kept loses nothing."""

from __future__ import annotations

import numpy as np

from packed import pack, unpack


def test_round_trip() -> None:
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(size=(2, 9, 11)), axis=-1)
    smooth[0, 0, :3] = np.nan, -np.inf, -0.0
    arrays = {
        "single": smooth.astype(np.float32),
        "half": smooth.astype(np.float16),
        "double": smooth,
        "mask": (smooth > 0).astype(np.uint8),
        "line": rng.random(5),
        "none": np.zeros((0, 3, 3), np.float32),
    }
    found = unpack(pack(arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_smooth_arrays_become_small() -> None:
    x = np.linspace(0, 1, 100)
    smooth = (0.5 + np.outer(x, x) / 3).astype(np.float32)
    assert len(pack({"map": smooth})) < smooth.nbytes / 3
