"""Options from flat TOML files and `--set key=value`, turned into the typed fields of a frozen dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from blemish.errors import BadOption, UnknownName

SAVED_KINDS = ("overlay", "mask", "map", "attention")
ENGINES = ("local", "ray")
T = TypeVar("T")
_BARE_WORD = re.compile(r"[A-Za-z_][\w.:/+-]*")
_NONE = ("none", "null")


@dataclass(frozen=True)
class LoadOptions:
    """The arguments of `blemish.load` that commands have as options; None: not given."""

    method: str | None = None
    backbone: str | None = None
    checkpoint: str | None = None
    device: str = "auto"
    precision: str = "auto"
    image_size: int | None = None
    threads: int | None = None
    tile: int | str | None = None
    overlap: float | None = None
    score_rule: str | None = None
    class_name: str | None = None
    threshold: float | None = None
    pixel_threshold: float | None = None
    normal: str | None = None
    shots: int | None = None
    runtime: str | None = None
    compile: bool = False


LOAD_KEYS = tuple(LoadOptions.__dataclass_fields__)


@dataclass(frozen=True)
class PredictOptions(LoadOptions):
    """The keys of `blemish predict`, on the command line and in a --config file; None: not given.

    class_names: a file of words for class names, see `read_class_names`. save_memory: the file that receives what
    is remembered of `normal`. out: the folder that receives the results. save: pictures to write
    besides the tables, of "overlay", "mask", "map", "attention". batch_size: images that go through the network
    together. seed: of every random number, also those that draw the shots. limit: how many images at most. engine:
    "local", or "ray" for workers in processes of their own, so many as `workers` says, on the cluster at `address`.
    """

    class_names: str | None = None
    save_memory: str | None = None
    out: str = "blemish-out"
    save: str | tuple[str, ...] = ("overlay",)
    batch_size: int = 8
    seed: int = 0
    limit: int | None = None
    engine: str = "local"
    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        check_counts(self, "batch_size", "limit", "threads", "workers")
        check_seed(self.seed)
        check_engine(self.engine, self.workers, self.address)
        for kind in self.kinds:
            if kind not in SAVED_KINDS:
                raise UnknownName("kind of picture to save", kind, (*SAVED_KINDS, "none"))

    @property
    def kinds(self) -> tuple[str, ...]:
        """`save` as a tuple: "overlay,map" and ["overlay", "map"] are the same, "none" is nothing."""
        given = self.save.split(",") if isinstance(self.save, str) else self.save
        return tuple(dict.fromkeys(kind.strip() for kind in given if kind.strip() not in ("", "none")))


def check_counts(options: object, *names: str) -> None:
    """Refuse numbers below 1 in these fields; None is none given. Raises BadOption."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise BadOption(f"{name} is {value}; expected at least 1")


def check_seed(seed: int | None) -> None:
    """Refuse seeds that random generators do not take; None is none given. Raises BadOption."""
    if seed is not None and not 0 <= seed < 2**63:
        raise BadOption(f"seed is {seed}; expected 0 to {2**63 - 1}")


def check_engine(engine: str, workers: int | None, address: str | None) -> None:
    """Refuse engines that do not exist, and options of Ray's without it. Raises UnknownName or BadOption."""
    if engine not in ENGINES:
        raise UnknownName("engine", engine, ENGINES)
    for name, value in (("workers", workers), ("address", address)):
        if engine == "local" and value is not None:
            raise BadOption(f"{name} is {value}, and the local engine has none; pass --engine ray with it")


def merge_options(
    kind: type[T], owner: str, config: Path | None, given: Mapping[str, Any], settings: Iterable[str]
) -> tuple[T, dict[str, Any]]:
    """The options of a command and the method's own: command line before --config before defaults.

    kind: the frozen dataclass of the command's options. owner: the command, for error texts. config: the
    --config file. given: options of the command line by name, None where not given. settings: the texts given
    to --set; those that are no option of the command are the method's, which who builds it checks.
    Raises UnknownName for a key of the file that no command or method has, BadOption for a wrong value.
    """
    from blemish.methods import METHODS, options_of

    in_file = read_config(config) if config else {}
    fields = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    own = {key: value for key, value in in_file.items() if key not in fields}
    # Only where it is needed: the options of methods are beside their code, which imports torch.
    allowed = {"preset"}.union(*(options_of(name) for name in METHODS)) if own else set()
    for key in sorted(own.keys() - allowed):
        near = difflib.get_close_matches(key, allowed, n=1)
        raise UnknownName(f"key in {config}", key, [*fields, *near])
    chosen = {key: value for key, value in in_file.items() if key in fields}
    for key, value in parse_settings(settings).items():
        (chosen if key in fields else own)[key] = value
    chosen |= {key: value for key, value in given.items() if value is not None}
    return kind(**typed_options(kind, chosen, owner)), own


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables and values of a TOML file. what: it holds, for the error text. Raises BadOption."""
    try:
        with path.expanduser().open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise BadOption(f"cannot read the {what} {path}: {cause}") from error
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, thousands of digits or of brackets
        raise BadOption(f"{path} is not valid TOML: {error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """The keys and values of a flat TOML file; keys may be written with `-` or `_`.

    Raises BadOption when the file is missing, is not TOML, or has tables (a configuration is flat).
    """
    data = read_toml(path, "configuration")
    for key, value in data.items():
        if isinstance(value, dict):
            raise BadOption(f"{path}: [{key}] is a table; write the options flat, as in image_size = 518")
    return {key.replace("-", "_"): value for key, value in data.items()}


def read_class_names(path: Path) -> dict[str, str]:
    """Words for classes from a flat TOML file: `pcb1 = "circuit board of an ultrasonic sensor"`.

    Names with spaces are written in quotes. Raises BadOption when the file is missing, is not TOML, is empty, or has
    values that are no words.
    """
    found = read_toml(path, "class names")
    for name, words in found.items():
        if not isinstance(words, str) or not words.strip():
            raise BadOption(
                f'{path}: {name} is {words!r}; expected words in quotes, as in {name} = "metal nut"'
            )
    if not found:
        raise BadOption(f'{path} names no class; expected lines such as pcb1 = "printed circuit board"')
    return found


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts, as given to --set, with values read as TOML; bare words are strings, later keys win.

    parse_settings(["layers=[6,12]", "preset=paper"]) == {"layers": [6, 12], "preset": "paper"}.
    Raises BadOption for a text without `=` or with a value that is neither TOML nor a plain word.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key, text = key.strip(), text.strip()
        if not equals or not key:
            raise BadOption(f"--set {pair!r}: expected key=value, such as --set layers=[6,12,18,24]")
        settings[key.replace("-", "_")] = _literal(pair, text)
    return settings


def _literal(pair: str, text: str) -> Any:
    source = text
    if text.startswith("(") and text.endswith(")"):
        source = f"[{text[1:-1]}]"
    elif text.lower() in ("true", "false"):
        source = text.lower()
    try:
        # A line break in the value could smuggle in more keys, so only single-line values count as TOML.
        if "\n" not in source:
            return tomllib.loads(f"value = {source}")["value"]
    except (ValueError, RecursionError):
        if _BARE_WORD.fullmatch(text):
            return text
    if not text:
        raise BadOption(f"--set {pair!r}: no value; for an empty text write --set '{pair.strip()}\"\"'")
    raise BadOption(f'--set {pair!r}: cannot read the value; write numbers, true/false, "text" or [a, b]')


def typed_options(kind: type, values: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """`values` with each value turned into the type of the field of that name in the dataclass `kind`.

    owner: whose options these are, for the error text. Lists become tuples, whole numbers become floats where
    a float is wanted, "none" becomes None where that is allowed. Raises UnknownName for a key that is no
    field (with the nearest name) and BadOption for a value of another type.
    """
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    typed: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise UnknownName(f"option of {owner}", key, names)
        try:
            typed[key] = _convert(value, hints[key])
        except TypeError as error:
            raise BadOption(
                f"option {key} of {owner} is {value!r}; expected {describe_type(hints[key])}"
            ) from error
    return typed


def describe_type(hint: Any) -> str:
    """A type hint in short words: `int`, `float or none`, `list of str`."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(one) for one in inner)
    if origin is tuple:
        return f"list of {describe_type(inner[0])}"
    return "none" if hint is type(None) else str(hint.__name__)


def _convert(value: Any, hint: Any) -> Any:
    """The value as `hint`: int, float, bool, str, None, unions of them, tuple[X, ...]; else TypeError."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, inner)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(one, inner[0]) for one in value)
    if hint is type(None) and isinstance(value, str) and value.lower() in _NONE:
        return None
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise TypeError
    return value


def _convert_union(value: Any, choices: tuple[Any, ...]) -> Any:
    # `int | float` must leave 6 a layer number and 0.25 a fraction, so the exact type goes first.
    for choice in sorted(choices, key=lambda one: (one is not type(None), type(value) is not one)):
        try:
            return _convert(value, choice)
        except TypeError:
            continue
    raise TypeError
