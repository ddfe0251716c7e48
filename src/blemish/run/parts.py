"""What an evaluation has finished, on disk: whole classes, and now and then the state within a class."""

from __future__ import annotations

import json
import pickle
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blemish.errors import BadOption
from blemish.files import write_whole
from blemish.run.results import ClassResult, from_plain, plain
from blemish.run.tally import Tally

STATE_FILE = "state.pickle"
SECONDS_BETWEEN = 60.0
# Saving may take this share of the time at most.
SHARE = 0.05


@dataclass(frozen=True)
class ClassPart:
    """One finished class. digest: identifies settings and samples. All by label of the method.

    encoder, method: seconds in all. scored: images they were spent on. peak_memory_mib: so far. stamps: path ->
    size and time of change of the files that failed, so that mended ones can be told.
    """

    class_name: str
    digest: str
    seconds: float
    results: dict[str, ClassResult]
    encoder: dict[str, float]
    method: dict[str, float]
    scored: dict[str, int]
    peak_memory_mib: float
    stamps: dict[str, tuple[int, ...]] = field(default_factory=dict)


class Parts:
    """The folder of parts of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._next_save = time.monotonic() + SECONDS_BETWEEN

    def load(self, number: int, digest: str) -> ClassPart | None:
        """The finished class of this number; None when there is none, or one of other settings or samples."""
        try:
            values = json.loads(self._path(number).read_bytes())
            part = from_plain(ClassPart, values, str(self._path(number)))
        except (OSError, ValueError, BadOption):
            return None
        return part if part.digest == digest else None

    def save(self, number: int, part: ClassPart) -> None:
        """Keep a finished class; the state within it is not needed any more. Raises OutputError."""
        write_whole(self._path(number), json.dumps(plain(part), allow_nan=False).encode())
        (self.folder / STATE_FILE).unlink(missing_ok=True)

    def load_state(self, digest: str) -> tuple[int, float, dict[str, Tally]] | None:
        """(samples done, seconds, tallies by label) of a class that was interrupted; None when there is none."""
        try:
            with (self.folder / STATE_FILE).open("rb") as file:
                found: Any = _Reader(file).load()
            saved, done, seconds, tallies = found
        # A damaged pickle raises nearly anything; the class is then begun anew.
        except Exception:
            return None
        return (done, seconds, tallies) if saved == digest else None

    def keep_state(self, digest: str, done: int, seconds: float, tallies: dict[str, Tally]) -> None:
        """Save the state within a class when the last time is long enough ago. Raises OutputError."""
        started = time.monotonic()
        if started < self._next_save:
            return
        state = digest, done, seconds, tallies
        write_whole(self.folder / STATE_FILE, lambda file: pickle.dump(state, file, pickle.HIGHEST_PROTOCOL))
        ended = time.monotonic()
        self._next_save = ended + max(SECONDS_BETWEEN, (ended - started) / SHARE)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:03}.json"


class _Reader(pickle.Unpickler):
    """Reads our own states only: an output folder may come from somebody else, and a pickle can hold programs."""

    MODULES = ("blemish.metrics.", "blemish.run.tally", "blemish.run.results")
    NUMPY = frozenset({"dtype", "ndarray", "_reconstruct", "_frombuffer", "scalar"})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _restore_of
        found = super().find_class(module, name) if "." not in name and self._may_hold(module, name) else None
        if found is None or (module.startswith("blemish") and not isinstance(found, type)):
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a saved state")
        return found

    def _may_hold(self, module: str, name: str) -> bool:
        if module.partition(".")[0] == "numpy":
            return name in self.NUMPY
        return (module, name) == ("builtins", "complex") or module.startswith(self.MODULES)


def _restore_of(kind: type, name: str) -> Any:
    """The one attribute that a saved state may ask for: the streaming state's own way back."""
    if name != "restore" or not isinstance(kind, type):
        raise pickle.UnpicklingError(f"{name} is no part of a saved state")
    return getattr(kind, name)
