"""The exceptions that callers may react to. Each carries one or two lines: what, where, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BlemishError(Exception):
    """Base of every error that this package raises on purpose; its text is fit to be shown to a user."""


class UnknownName(BlemishError, ValueError):
    """A method, backbone, dataset or option name that does not exist; lists the nearest choices."""

    def __init__(self, kind: str, name: str, choices: Iterable[str]) -> None:
        known = sorted(choices)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}choose from {', '.join(known)}")
        self.kind, self.name, self.choices = kind, name, known


class BadImage(BlemishError, ValueError):
    """A picture that cannot be read or used; the text names the cause."""


class BadWeights(BlemishError, ValueError):
    """A weight file that is damaged, of another kind, or does not fit; names the tensor or key."""


class BadCheckpoint(BlemishError, ValueError):
    """A method checkpoint that is damaged, of another method, or made for another backbone."""


class WeightsNotFound(BlemishError, FileNotFoundError):
    """Weights neither cached nor reachable; says which file, where to put it, which option."""


class BadOption(BlemishError, ValueError):
    """An option with an impossible value or an unknown key."""


class OutputError(BlemishError, OSError):
    """An output folder or file that cannot be written."""


class BadDataset(BlemishError, ValueError):
    """A dataset folder whose layout is not recognised, or whose pictures do not fit the purpose."""


class BadModel(BlemishError, ValueError):
    """An exported model that is damaged, was not written by this program, or does not fit the machine."""


class MissingPackage(BlemishError, ImportError):
    """An optional package that is needed and not installed; names the extra that has it."""


class ExportError(BlemishError, RuntimeError):
    """A detector that cannot be exported, or whose exported file gives other results; nothing is left behind."""
