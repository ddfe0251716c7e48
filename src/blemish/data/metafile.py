"""Files that list a dataset: `meta.json` of the AnomalyCLIP family, JSON lines of AA-CLIP, tables as csv."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from blemish.data.reading import Problem, Reading, WrongLayout
from blemish.errors import BadDataset
from blemish.files import printable_name

COLUMNS = {
    "image": ("image_path", "img_path", "image", "path", "filename"),
    "mask": ("mask_path", "mask"),
    "label": ("label_index", "anomaly", "label"),
    "split": ("split", "mode"),
    "class_name": ("class_name", "cls_name", "object", "category", "class"),
    "defect": ("specie_name", "defect"),
}
NORMAL_WORDS = ("normal", "good", "ok")
ABNORMAL_WORDS = ("anomaly", "anomalous", "abnormal", "bad", "ng", "defect", "defective")


@dataclass
class PathFinder:
    """Turns the paths written in a list into files.

    base: the folder they are relative to. absolute, moved: how many were absolute, and how many of all were found
    by a tail of theirs. escaping: those refused because `..` leads out of `base`. known: folders looked up before.
    """

    base: Path
    absolute: int = 0
    moved: int = 0
    escaping: list[str] = field(default_factory=list)
    known: dict[PurePosixPath, tuple[Path, ...]] = field(default_factory=dict)

    def find(self, text: str) -> Path | None:
        """The file (it may not exist), or None when the path leads out of the base.

        An absolute path that does not exist here, and a relative one that does not, are tried by their longest
        existing tail below the base.
        """
        pure = PurePosixPath(text.strip().replace("\\", "/"))
        drive = pure.parts[0].endswith(":") if pure.parts else False
        if pure.is_absolute() or drive:
            self.absolute += 1
        elif _leaves(pure):
            self.escaping.append(text)
            return None
        as_written = Path(pure) if pure.is_absolute() else self.base / pure
        for home in self._homes(pure.parent):
            path = home / pure.name
            if path.exists():
                self.moved += path != as_written
                return path
        return as_written

    def _homes(self, parent: PurePosixPath) -> tuple[Path, ...]:
        """Folders where files of a written folder may be: itself, then those by its tails, longest first."""
        if parent not in self.known:
            tails = [PurePosixPath(*parent.parts[start:]) for start in range(len(parent.parts) + 1)]
            homes = [self.base / tail for tail in tails if not _leaves(tail) and not tail.is_absolute()]
            if parent.is_absolute():
                homes.insert(0, Path(parent))
            self.known[parent] = tuple(home for home in homes if home.is_dir())
        return self.known[parent]


def _leaves(path: PurePosixPath) -> bool:
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False


def meta_file(root: Path) -> Path | None:
    """The meta file of a root: `meta.json` in it, `meta_<name>.json` beside it, or the only `meta_*.json` in it.

    Raises BadDataset when there are several of the last kind.
    """
    if root.is_file():
        return root if root.suffix.lower() == ".json" else None
    name = root.resolve().name
    for path in (root / "meta.json", root.parent / f"meta_{name}.json", root / f"meta_{name}.json"):
        if path.is_file():
            return path
    several = sorted(root.glob("meta_*.json"))
    if len(several) > 1:
        names = ", ".join(printable_name(p.name) for p in several)
        raise BadDataset(f"{printable_name(root)} holds several lists: {names}; name one of these files")
    return several[0] if several else None


def read_meta_json(reading: Reading) -> None:
    """Read `{split: {class: [entry]}}`. Raises BadDataset for damaged files, WrongLayout for other contents."""
    path = meta_file(reading.root)
    if path is None:
        raise WrongLayout(f"{printable_name(reading.root)}: no meta.json")
    read_listing(reading, path, _meta_rows)


def read_json_lines(reading: Reading) -> None:
    """Read AA-CLIP's lists: one object a line with image_path, label, class_name, mask_path. Raises BadDataset."""
    path = json_lines_file(reading.root)
    if path is None:
        raise WrongLayout(f"{printable_name(reading.root)}: no .jsonl")
    read_listing(reading, path, _line_rows)


def read_table(reading: Reading) -> None:
    """Read a csv with image_path, label_index and, where given, split, mask_path, class_name. Raises BadDataset."""
    path = table_file(reading.root)
    if path is None:
        raise WrongLayout(f"{printable_name(reading.root)}: no csv with a column image_path")
    read_listing(reading, path, table_rows)


def json_lines_file(root: Path) -> Path | None:
    """The root itself when it is a .jsonl, or the only one in it; several raise BadDataset."""
    return _only(root, (".jsonl",), lambda path: True)


def table_file(root: Path) -> Path | None:
    """The root itself when it is a .csv, or the only csv in it that has a column of image paths."""
    return _only(root, (".csv",), lambda path: _column(_header(path), "image") is not None)


def _only(root: Path, endings: tuple[str, ...], fits: Callable[[Path], bool]) -> Path | None:
    if root.is_file():
        return root if root.suffix.lower() in endings else None
    found = sorted(p for p in root.iterdir() if p.suffix.lower() in endings and p.is_file() and fits(p))
    if len(found) > 1:
        names = ", ".join(printable_name(p.name) for p in found)
        raise BadDataset(f"{printable_name(root)} holds several lists: {names}; name one of these files")
    return found[0] if found else None


def read_listing(
    reading: Reading,
    path: Path,
    rows: Callable[[Path], Iterator[tuple[str, dict[str, Any]]]],
    base: Path | None = None,
) -> None:
    """Take the samples that a list names.

    base: what its paths are relative to; None: its own folder. rows: yields (place in the file, values by the
    names of `COLUMNS`). Raises BadDataset for impossible values, WrongLayout when not one of the pictures exists.
    """
    finder = PathFinder(path.parent if base is None else base)
    name = printable_name(path.name)
    present, empty = False, 0
    for place, row in rows(path):
        split = str(row.get("split") or "test").strip().casefold()
        if not row.get("image"):
            empty += 1
            continue
        if not isinstance(row["image"], str):
            raise BadDataset(f"{name}, {place}: the picture's path is {row['image']!r}, expected text")
        if not reading.wants("train" if split.startswith("train") else "test"):
            continue
        image = finder.find(row["image"])
        if image is not None:
            label = _label(row.get("label"), f"{name}, {place}")
            mask = None if label == 0 else _mask(finder, row.get("mask"))
            present = present or image.is_file()
            reading.add(
                image,
                label,
                mask,
                class_name=str(row.get("class_name") or reading.class_name or "object"),
                defect=str(row.get("defect") or ""),
                split="train" if split.startswith("train") else "test",
            )
    _report(reading, finder, path, empty)
    if reading.samples and not present:
        raise WrongLayout(
            f"{printable_name(path)} names {len(reading.samples)} pictures and none of them exists, the first "
            f"is {printable_name(reading.samples[0].image)}; put the list where its paths begin"
        )


def _report(reading: Reading, finder: PathFinder, path: Path, empty: int) -> None:
    for text in finder.escaping:
        problem = f"{printable_name(path.name)}: {text} leads out of the dataset's folder; it was not used"
        reading.problems.append(Problem("escaping_path", path, problem, fatal=True))
    if finder.absolute:
        reading.notes.append(f"{printable_name(path.name)}: {finder.absolute} absolute paths")
    if finder.moved:
        reading.notes.append(
            f"{printable_name(path.name)}: {finder.moved} paths were found by their last parts"
        )
    if empty:
        reading.notes.append(f"{printable_name(path.name)}: {empty} entries name no picture")


def _label(value: Any, place: str) -> int | None:
    if value is None or value == "":
        return None
    text = str(value).strip().casefold()
    if text in NORMAL_WORDS or text in ABNORMAL_WORDS:
        return int(text in ABNORMAL_WORDS)
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if number not in (0.0, 1.0):
        raise BadDataset(f"{place}: the label is {value!r}, expected 0 (normal) or 1 (anomalous)")
    return int(number)


def _mask(finder: PathFinder, value: Any) -> Path | None:
    if not isinstance(value, str) or not value.strip():
        return None
    path = finder.find(value)
    # The scripts write the root itself where there is no mask, perhaps one that is no longer there
    return None if path is None or not path.suffix or path.is_dir() else path


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadDataset(f"{printable_name(path)}: cannot be read as text ({error})") from error


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, or thousands of digits or of brackets
        raise BadDataset(
            f"{place}: damaged JSON ({error}); make it anew, or pass --dataset mvtec_layout"
        ) from error


def _meta_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    contents = _json(_text(path), printable_name(path))
    known = ("train", "test", "val", "valid", "validation")
    if not isinstance(contents, dict) or not any(str(k).casefold() in known for k in contents):
        raise WrongLayout(f"{printable_name(path)}: expected an object with test and train")
    for split, classes in contents.items():
        if str(split).casefold() not in ("train", "test"):
            continue
        if not isinstance(classes, dict):
            raise BadDataset(
                f"{printable_name(path)}: {split} holds {type(classes).__name__}, expected classes"
            )
        for class_name, entries in classes.items():
            if not isinstance(entries, list | None):
                raise BadDataset(f"{printable_name(path)}: {split}/{class_name} holds no list of entries")
            for number, entry in enumerate(entries or ()):
                place = f"{split}/{class_name}[{number}]"
                if not isinstance(entry, dict):
                    raise BadDataset(f"{printable_name(path)}, {place}: {entry!r} is no entry")
                yield place, _named(entry) | {"split": split, "class_name": class_name}


def _line_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            entry = _json(line, f"{printable_name(path)}, line {number}")
            if not isinstance(entry, dict):
                raise BadDataset(f"{printable_name(path)}, line {number}: {entry!r} is no object")
            yield f"line {number}", _named(entry)


def table_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, values by the names of `COLUMNS`) of a csv with a header. Raises BadDataset."""
    lines = _text(path).splitlines()
    for number, entry in enumerate(csv.DictReader(lines, skipinitialspace=True), start=2):
        yield f"line {number}", _named({str(k).strip(): v for k, v in entry.items() if k is not None})


def _header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [cell.strip() for cell in next(csv.reader(file), [])]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _column(names: list[str], what: str) -> str | None:
    lower = {name.casefold(): name for name in names}
    return next((lower[n] for n in COLUMNS[what] if n in lower), None)


def _named(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an entry by our names, whatever the list calls them."""
    names = [str(key) for key in entry]
    columns = {what: _column(names, what) for what in COLUMNS}
    return {what: entry[column] for what, column in columns.items() if column is not None}
