"""From what a user names on a command line (files, folders, globs, lists) to picture files."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blemish.files import printable_name

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
LIST_ENDINGS = (".txt", ".lst")


@dataclass(frozen=True)
class ImageRef:
    """A picture to be read, or an input that gave none.

    path: where it is, as the user wrote it.
    relative: the path under which its outputs are stored; unique in its list even without the ending,
        relative, free of "..", and encodable.
    error: `path: cause` for an input that gave no picture; None otherwise.
    """

    path: Path
    relative: Path
    error: str | None = None


def find_images(inputs: Iterable[str | Path], stdin: Iterable[str] | None = None) -> list[ImageRef]:
    """What the inputs name, in their order.

    inputs: files, folders (searched below, natural order, links followed, hidden names skipped), globs, text
        files of paths (.txt, .lst: one a line, relative to the text file or else to the working folder), "-"
        for paths on standard input.
    stdin: the lines for "-"; standard input itself when None.

    The same file named twice (also through a linked folder) appears once. Outputs are named by the path below
    the input's folder; where two inputs give one name, both grow by the names of their parent folders.
    Nothing is raised for an input that is missing or empty: its ImageRef carries the error.
    """
    finder = _Finder()
    for item in inputs:
        if str(item) == "-":
            lines = stdin if stdin is not None else map(os.fsdecode, sys.stdin.buffer)
            finder.add_list(lines, Path("-"), (Path(),))
        elif Path(item).suffix.lower() in LIST_ENDINGS and _is_file(Path(item)):
            finder.add_text_file(Path(item))
        else:
            finder.add(str(item))
    return finder.refs()


def natural_key(path: Path) -> tuple[Any, ...]:
    """Sorting key with numbers by value: 2.png before 10.png; ties broken by the exact text."""
    parts = tuple(
        tuple(
            (0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in re.split(r"(\d+)", part)
        )
        for part in (p.casefold() for p in path.parts)
    )
    return parts, str(path)


class _Finder:
    """Collects (path, root of its relative name, error) without duplicates."""

    def __init__(self) -> None:
        self.found: list[tuple[Path, Path, str | None]] = []
        self.seen: set[tuple[str, str]] = set()

    def refs(self) -> list[ImageRef]:
        names = iter(_unique_names([(path, root) for path, root, error in self.found if error is None]))
        return [
            ImageRef(path, Path(printable_name(path.name)) if error else next(names), error)
            for path, root, error in self.found
        ]

    def fail(self, path: Path, cause: str) -> None:
        key = ("error", str(path))
        if key not in self.seen:
            self.seen.add(key)
            self.found.append((path, path, f"{printable_name(path)}: {cause}"))

    def take(self, path: Path, root: Path) -> None:
        key = (os.path.realpath(path.parent), path.name)
        if key not in self.seen:
            self.seen.add(key)
            self.found.append((path, root, None))

    def add(self, text: str, base: Path | None = None) -> None:
        """One input. base: folder below which relative names are kept when the file lies in it."""
        path = Path(text)
        if not text.strip():
            # Path("") is the working folder, which nobody means who passes an unset shell variable
            self.found.append(
                (path, path, f"{text!r}: an empty name; name a file or folder (. for this one)")
            )
        elif _is_dir(path):
            self.add_folder(path, _root(path, base, folder=True))
        elif os.path.lexists(path) if "\0" not in text else False:
            self.take(path, _root(path, base))
        elif any(mark in text for mark in "*?["):
            self.add_glob(text)
        else:
            self.fail(path, "no such file or folder")

    def add_folder(self, folder: Path, root: Path) -> None:
        paths, unreadable = _walk(folder)
        for path in paths:
            self.take(path, root)
        for path in unreadable:
            self.fail(path, "the folder cannot be read (permission denied)")
        if not paths and not unreadable:
            self.fail(folder, f"no images in this folder (looked for {' '.join(IMAGE_ENDINGS)})")

    def add_glob(self, pattern: str) -> None:
        parts = Path(pattern).parts
        fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        base = Path(*parts[:fixed])
        if "**" in parts:  # by our own walk, which is safe from circular links
            files = [p for p in _walk(base)[0] if _matches(p.relative_to(base).parts, parts[fixed:])]
            folders: list[Path] = []
        else:
            hits = sorted(map(Path, glob.glob(pattern)), key=natural_key)  # noqa: PTH207 - absolute or not
            folders = [p for p in hits if _is_dir(p)]
            files = [p for p in hits if p.suffix.lower() in IMAGE_ENDINGS and not _is_dir(p)]
        for path in files:
            self.take(path, _absolute(base))
        for folder in folders:
            self.add_folder(folder, _absolute(base))
        if not files and not folders:
            self.fail(Path(pattern), "no images match this pattern")

    def add_text_file(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except OSError as error:
            self.fail(path, f"the list cannot be read ({(error.strerror or str(error)).lower()})")
            return
        self.add_list(lines, path, (path.parent, Path()))

    def add_list(self, lines: Iterable[str], source: Path, bases: Sequence[Path]) -> None:
        """Paths one a line; a relative one is looked for below each base in turn."""
        # Windows tools begin text with a byte order mark, which no path begins with
        texts = [text for text in (line.lstrip("\ufeff").rstrip("\r\n") for line in lines) if text.strip()]
        if not texts:
            self.fail(source, "names no images (expected one path a line)")
        for text in texts:
            base = next((b for b in bases if "\0" not in text and os.path.lexists(b / text)), bases[-1])
            self.add(str(base / text), base)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` would follow links and so rename outputs


def _root(path: Path, base: Path | None, folder: bool = False) -> Path:
    """The folder below which a path keeps its structure."""
    path = _absolute(path)
    if base is not None and path.is_relative_to(_absolute(base)):
        return _absolute(base)
    return path if folder else path.parent


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """(picture files in natural order, folders that cannot be read). Each real folder is entered once."""
    paths: list[Path] = []
    unreadable: list[Path] = []
    entered: set[str] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        real = os.path.realpath(current)
        if real in entered:
            continue
        entered.add(real)
        try:
            names = sorted(os.listdir(current))  # noqa: PTH208 - names keep their undecodable bytes either way
        except FileNotFoundError:
            continue
        except OSError:
            unreadable.append(current)
            continue
        for child in (current / name for name in reversed(names) if not name.startswith(".")):
            if _is_dir(child):
                waiting.append(child)
            elif child.suffix.lower() in IMAGE_ENDINGS:
                paths.append(child)
    return sorted(paths, key=natural_key), sorted(unreadable, key=natural_key)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        if len(pattern) == 1:
            return True
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _unique_names(found: Sequence[tuple[Path, Path]]) -> list[Path]:
    """Relative output paths for (path, root) pairs, distinct even after their endings are replaced."""
    places = [(_absolute(path), root) for path, root in found]
    depth = {root: 0 for _, root in places}
    while True:
        names = [
            Path(*root.parts[len(root.parts) - depth[root] :], *p.relative_to(root).parts)
            for p, root in places
        ]
        owners: defaultdict[Path, set[Path]] = defaultdict(set)
        for name, (_, root) in zip(names, places, strict=True):
            owners[name.with_suffix("")].add(root)
        clashing = {root for roots in owners.values() if len(roots) > 1 for root in roots}
        growing = [root for root in clashing if depth[root] < len(root.parts) - 1]
        if not growing:
            break
        for root in growing:
            depth[root] += 1
    taken: set[Path] = set()
    return [free_name(Path(printable_name(name)), taken) for name in names]


def free_name(name: Path, taken: set[Path]) -> Path:
    """The name itself, or with its ending in the stem (a.jpg beside a.png: a_jpg.jpg), or with a number."""
    choice, number = name, 1
    while choice.with_suffix("") in taken:
        mark = f"_{name.suffix[1:]}" if name.suffix else ""
        choice = name.with_name(
            f"{name.stem}{mark}{'' if number == 1 and mark else f'-{max(number, 2)}'}{name.suffix}"
        )
        number += 1
    taken.add(choice.with_suffix(""))
    return choice
