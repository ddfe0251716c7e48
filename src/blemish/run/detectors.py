"""Several detectors at once: which methods with which checkpoints, on backbones loaded once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blemish.detector import Detector
from blemish.errors import BadOption, UnknownName
from blemish.loading import Backbones, default_method, load, method_of
from blemish.methods import METHODS, make_config, options_of, presets


def load_detectors(
    methods: Sequence[str] = (),
    checkpoints: Sequence[str | Path] = (),
    settings: Mapping[str, Any] | None = None,
    backbones: Backbones | None = None,
    **loading: Any,
) -> dict[str, Detector]:
    """Detectors by label, in the order named; those on the same backbone share one CLIP.

    methods: registered names; those without one of `checkpoints` take their default one. checkpoints: files, or
    `label=file`. A checkpoint without a label is called by its method, or by method and file name when there
    are several of the method. Without either: the default method. settings: methods' own options; one goes to
    every method that has it, `label.option` (or `method.option`) to one only. backbones: CLIPs loaded earlier.
    loading: backbone, device, precision, image_size and what else `blemish.load` takes. Raises what
    `blemish.load` raises, BadOption for a checkpoint of no method named or a label given twice.
    """
    if not methods and not checkpoints:
        methods = [default_method(loading.get("backbone"))]
    wanted = _wanted(methods, checkpoints)
    options = _shared_out({label: method for label, method, _ in wanted}, settings or {})
    shared = backbones or Backbones()
    return {
        label: load(method, checkpoint=checkpoint, backbones=shared, **loading, **options[label])
        for label, method, checkpoint in wanted
    }


def _wanted(
    methods: Sequence[str], checkpoints: Sequence[str | Path]
) -> list[tuple[str, str, str | Path | None]]:
    """(label, method, checkpoint) of each detector, methods in the order named."""
    for name in methods:
        if name not in METHODS:
            raise UnknownName("method", name, METHODS)
    files = [_split_label(text) for text in checkpoints]
    named = [(label, method_of(path), path) for label, path in files]
    for _, method, path in named:
        if methods and method not in methods:
            raise BadOption(
                f"{path} is a checkpoint of {method}, which --method does not name ({', '.join(methods)})"
            )
    order = list(dict.fromkeys(methods)) or list(dict.fromkeys(method for _, method, _ in named))
    found: list[tuple[str, str, str | Path | None]] = []
    for method in order:
        own = [(label, path) for label, its, path in named if its == method]
        if not own:
            found.append((method, method, None))
        for label, path in own:
            alone = method if len(own) == 1 else f"{method}:{Path(path).stem}"
            found.append((label or alone, method, path))
    for label, count in Counter(label for label, _, _ in found).items():
        if count > 1:
            raise BadOption(
                f"{count} checkpoints are called {label!r}; tell them apart: --checkpoint LABEL=FILE"
            )
    return found


def _split_label(text: str | Path) -> tuple[str, str | Path]:
    """`label=file`, or a file alone, whose name may hold an equals sign too."""
    label, equals, path = str(text).partition("=")
    if not equals or not label or isinstance(text, Path) or Path(text).exists():
        return "", text
    return label, path


def _shared_out(methods: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """label -> its options. methods: label -> method. Raises BadOption for an option that no method has."""
    options: dict[str, dict[str, Any]] = {label: {} for label in methods}
    for key, value in sorted(settings.items(), key=lambda item: "." in item[0]):
        owner, dot, name = key.rpartition(".")
        if dot:
            takers = [label for label in methods if owner in (methods[label], label.replace("-", "_"))]
            if not takers:
                raise UnknownName("method before the dot in --set", owner, {*methods, *methods.values()})
        else:
            takers = [label for label, method in methods.items() if _has(method, name, value)]
            if not takers:  # let the first one say what is wrong
                takers = list(methods)[:1]
                preset = {"preset": value} if name == "preset" else {name: value}
                make_config(methods[takers[0]], **preset)
        for label in takers:
            options[label][name] = value
    return options


def _has(method: str, name: str, value: Any) -> bool:
    return value in presets(method) if name == "preset" else name in options_of(method)
