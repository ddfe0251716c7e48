"""The registry of methods: names, options, presets. Listing imports no method and no heavy package."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from importlib import import_module
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from ..errors import BadOption, UnknownName

if TYPE_CHECKING:
    from ..clip.model import CLIP

METHODS = {
    "anomaly_clip": "blemish.methods.anomaly_clip:AnomalyCLIP",
    "vcp_clip": "blemish.methods.vcp_clip:VCPCLIP",
    "vcp_clip_plus": "blemish.methods.vcp_clip_plus:VCPCLIPPlus",
    "vip2_clip": "blemish.methods.vip2_clip:ViP2CLIP",
    "gen_clip": "blemish.methods.gen_clip:GenCLIP",
    "clip": "blemish.methods.clip_zero:CLIPZero",
    "clip_ac": "blemish.methods.clip_zero:CLIPAC",
    "win_clip": "blemish.methods.win_clip:WinCLIP",
    "april_gan": "blemish.methods.april_gan:AprilGAN",
    "coop": "blemish.methods.coop:CoOp",
    "af_clip": "blemish.methods.af_clip:AFCLIP",
    "cocoop": "blemish.methods.cocoop:CoCoOp",
    "ada_clip": "blemish.methods.ada_clip:AdaCLIP",
    "fa_prompt": "blemish.methods.fa_prompt:FAPrompt",
    "ano_vl": "blemish.methods.ano_vl:AnoVL",
    "aa_clip": "blemish.methods.aa_clip:AACLIP",
}


@dataclass(frozen=True)
class Option:
    """One option of a method, as `options_of` describes it.

    choices: the values allowed, or in a tuple its elements; empty when any value of the type will do.
    """

    name: str
    type: Any
    default: Any
    help: str
    choices: tuple[Any, ...] = ()


def option(default: Any, help: str, choices: Iterable[Any] = (), least: float | None = None) -> Any:
    """A documented field of a method's configuration. least: smallest value allowed, for numbers."""
    metadata = {"help": help, "choices": tuple(choices), "least": least}
    return field(default=default, metadata=metadata)


def check_options(config: Any) -> None:
    """Refuse impossible values in a configuration made of `option` fields; BadOption names the field."""
    for f in fields(config):
        value, choices, least = getattr(config, f.name), f.metadata["choices"], f.metadata["least"]
        if choices:
            for v in value if isinstance(value, tuple) else (value,):
                if v not in choices:
                    raise BadOption(f"option {f.name} is {v!r}; choose from {', '.join(map(repr, choices))}")
        if least is not None and value is not None and not value >= least:
            raise BadOption(f"option {f.name} is {value!r}; expected {least} or more")


def method_class(name: str) -> Any:
    """The class registered under a method's name. Raises UnknownName."""
    if name not in METHODS:
        raise UnknownName("method", name, choices=METHODS)
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(module), attribute)


def config_class(name: str) -> Any:
    """The frozen dataclass that holds a method's options. Raises UnknownName."""
    return method_class(name).config_class


def options_of(name: str) -> dict[str, Option]:
    """Every option of a method with its type, default, help and choices. Raises UnknownName."""
    kind = config_class(name)
    types = get_type_hints(kind)
    return {
        f.name: Option(f.name, types[f.name], f.default, f.metadata["help"], f.metadata["choices"])
        for f in fields(kind)
        if f.default is not MISSING
    }


def presets(name: str) -> dict[str, dict[str, Any]]:
    """Named sets of options of a method, such as "paper". Raises UnknownName."""
    return {key: dict(value) for key, value in method_class(name).presets.items()}


def make_config(name: str, preset: str | None = None, **options: Any) -> Any:
    """A method's configuration: its defaults, changed by a preset, changed by options.

    Lists become tuples and whole numbers become floats where the option is one. Raises UnknownName for an
    unknown method or preset, BadOption for an unknown option or a value of another type. An option's former name, which
    older checkpoints have, stands for it where the option is not given by its own.
    """
    known, sets = options_of(name), presets(name)
    former = getattr(method_class(name), "former_names", {})
    options = {former[key]: value for key, value in options.items() if key in former} | {
        key: value for key, value in options.items() if key not in former
    }
    if preset is not None and preset not in sets:
        raise UnknownName(f"preset of {name}", preset, choices=sets)
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise BadOption(f"{name} has no option {key!r}: {hint}it has {', '.join(sorted(known))}")
    given = {key: _typed(known[key], value) for key, value in options.items()}
    return config_class(name)(**(sets[preset] if preset else {}) | given)


def build(name: str, clip: CLIP, preset: str | None = None, **options: Any) -> Any:
    """A method on a frozen CLIP, with freshly initialised learned parts.

    preset, options: see `make_config`. Raises BadOption also for values that this backbone cannot serve, such
    as a layer it does not have.
    """
    config = make_config(name, preset, **options)
    try:
        return method_class(name)(clip, config)
    except BadOption:
        raise
    except ValueError as error:
        raise BadOption(f"{name} on this backbone: {error}") from error


def _typed(known: Option, value: Any) -> Any:
    """The value in the option's type, or BadOption."""
    if isinstance(value, list):
        value = tuple(value)
    if known.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if value in ("none", "null") and type(None) in _members(known.type):
        value = None
    if get_origin(known.type) is tuple:
        allowed = _members(get_args(known.type)[0])
        fits = isinstance(value, tuple) and bool(value) and all(_is(v, allowed) for v in value)
    else:
        fits = _is(value, _members(known.type))
    if not fits:
        raise BadOption(
            f"option {known.name} is {value!r}; expected a value such as {known.default!r} ({known.help})"
        )
    return value


def _members(kind: Any) -> tuple[type, ...]:
    """The types of a union, or the type alone."""
    return get_args(kind) if isinstance(kind, UnionType) else (kind,)


def _is(value: Any, types: tuple[type, ...]) -> bool:
    """isinstance, except that True and False are no numbers."""
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))
