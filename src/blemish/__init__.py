"""blemish: zero-shot visual anomaly detection and segmentation with CLIP.

`blemish.load()` makes a `Detector`; its `predict` gives a `Result`. Heavy packages load with the first use of
these names, not with `import blemish`.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Detector", "Result", "__version__", "backbones", "datasets", "load", "methods"]

_HOMES = {"load": "blemish.loading", "Detector": "blemish.detector", "Result": "blemish.types"}

if TYPE_CHECKING:
    from blemish.detector import Detector
    from blemish.loading import load
    from blemish.types import Result

    def methods() -> tuple[str, ...]:
        """Names of the methods that can be loaded."""

else:
    from blemish import methods

    class _Listing(ModuleType):
        """The package `blemish.methods`, which can be called for the names in it.

        Importing anything from the package puts the module where the function of that name would be.
        """

        def __call__(self) -> tuple[str, ...]:
            return tuple(self.METHODS)

    methods.__class__ = _Listing


def backbones() -> tuple[str, ...]:
    """Names of the backbones that can be loaded; a path or a hub repository id works too."""
    from blemish.clip.weights import BACKBONES

    return tuple(BACKBONES)


def datasets() -> tuple[str, ...]:
    """Names of the datasets and generic layouts that `--dataset` and `open_dataset` take."""
    from blemish.data.catalog import CATALOG, GENERIC

    return (*CATALOG, *GENERIC)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
