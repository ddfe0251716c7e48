"""PLAN.toml of `blemish benchmark`: methods, datasets, seeds and how their numbers come about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from blemish.config import read_toml, typed_options
from blemish.data.catalog import CATALOG
from blemish.errors import BadOption, UnknownName
from blemish.methods import METHODS, make_config, options_of
from blemish.run.plan_training import check_training
from blemish.run.published import published_variants

LAYOUTS = ("mvtec_layout", "meta_json", "folder")
PROTOCOLS, MODES = ("exact", "anomalyclip"), ("exact", "streaming")
FULL_PRESETS = ("paper", "full")
FACTORS = ("state_words", "template", "class_names")
T = TypeVar("T")


@dataclass(frozen=True)
class DatasetPlan:
    """One target dataset.

    name: how tables call it; default: `dataset`, or the last part of `root`. dataset: a catalogue name (with a
    preparation, as in "ksdd:thirds") or layout; None: recognised. root: its folder, relative to the plan's;
    `--data NAME=ROOT` goes before it. classes: only these. defects: of the anomalous images only those of these kinds,
    the folders' names in MVTec's layout. auxiliary: the training set of what is tested here;
    None: the plan's.
    """

    name: str = ""
    dataset: str | None = None
    root: str | None = None
    classes: tuple[str, ...] = ()
    defects: tuple[str, ...] = ()
    auxiliary: str | None = None


@dataclass(frozen=True)
class MethodPlan:
    """One method in one setting: a row of the tables.

    label: how tables call it, unique; default: the method's name. backbone, image_size, options: as in
    `blemish.load`. checkpoint: learned parts, by training set, or "" for whatever set; relative to the plan or
    the folder given with --checkpoints; empty: the embedded ones. auxiliary: the training set of these
    checkpoints on every dataset; None: the dataset's, or the plan's. published: the variant whose published
    figures stand beside the measured ones, "" for the method as proposed, "off" for no figures; None: follows
    from the options. train: learn first, once for every seed; see `run.plan_training`.
    """

    method: str = ""
    label: str = ""
    backbone: str | None = None
    image_size: int | None = None
    auxiliary: str | None = None
    published: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    checkpoint: dict[str, str] = field(default_factory=dict)
    train: dict[str, Any] | None = None

    @property
    def variant(self) -> str | None:
        """The published variant that this entry measures; None when there is none."""
        if self.published is not None:
            return None if self.published == "off" else self.published
        if not self.options:
            return ""
        preset = self.options.get("preset")
        if set(self.options) == {"preset"} and (
            preset in FULL_PRESETS or preset in published_variants(self.method)
        ):
            return "" if preset in FULL_PRESETS else str(preset)
        return None


@dataclass(frozen=True)
class Variation:
    """One change made at test time to see what the numbers depend on.

    factor: "state_words", "template" or "class_names". label: how tables call it. options: the method's own
    options that say so. class_names: class -> the name that the method is told instead.
    """

    factor: str
    label: str
    options: dict[str, Any] = field(default_factory=dict)
    class_names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PlanHead:
    """The keys of [plan].

    seeds: of training; methods that are not trained here run once. auxiliary: the training set where nothing else is
    said. resolution, protocol, score_rule, fpr_limit, strict_iou, mode, limit: as in `run.evaluate.EvaluateOptions`.
    """

    title: str = ""
    about: str = ""
    seeds: tuple[int, ...] = (0,)
    auxiliary: str = ""
    protocol: str = "exact"
    resolution: int | str | None = None
    score_rule: str = "native"
    fpr_limit: float = 0.3
    strict_iou: bool = False
    mode: str = "exact"
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Plan(PlanHead):
    """A benchmark: every method on every dataset with every seed.

    folder: that relative paths begin in.
    """

    folder: Path
    datasets: tuple[DatasetPlan, ...]
    methods: tuple[MethodPlan, ...]
    variations: tuple[Variation, ...] = ()

    def auxiliary_of(self, method: MethodPlan, dataset: DatasetPlan) -> str:
        """Name of the training set of a method on a dataset, "" when the plan does not say."""
        named = (method.auxiliary, dataset.auxiliary, self.auxiliary)
        return next((name for name in named if name is not None), "")

    def settings(self) -> dict[str, Any]:
        """The plan as plain values, for run.json."""
        return {key: value for key, value in asdict(self).items() if key != "folder"}


def read_plan(path: Path) -> Plan:
    """Parse and check a plan. Nothing of the data or weights is opened.

    Raises BadOption when the file is missing, is not TOML, has an impossible value, or a key, method, dataset
    or option that does not exist; the text has the nearest name.
    """
    values = read_toml(path, "plan")
    try:
        return parse_plan(values, path.parent, path.stem)
    except (BadOption, UnknownName) as error:
        raise BadOption(f"{path}: {error}") from error


def parse_plan(values: Mapping[str, Any], folder: Path, name: str = "benchmark") -> Plan:
    """The plan in parsed TOML. folder: that relative paths begin in. name: the title when none is given."""
    known = ("plan", "datasets", "defaults", "methods", "vary")
    for key in values:
        if key not in known:
            raise UnknownName("table", key, known)
    head = _flat(PlanHead, _table(values, "plan"), "[plan]")
    defaults = _table(values, "defaults")
    datasets = tuple(_dataset(entry, i) for i, entry in enumerate(_tables(values, "datasets"), 1))
    methods = tuple(
        _method(defaults, entry, folder, i) for i, entry in enumerate(_tables(values, "methods"), 1)
    )
    _check_head(head)
    _check_unique("name of a dataset", (d.name for d in datasets))
    _check_unique("label of a method", (m.label for m in methods))
    variations = _variations(_table(values, "vary"))
    options = asdict(head) | {"title": head.title or name}
    return Plan(folder=folder, datasets=datasets, methods=methods, variations=variations, **options)


def with_roots(plan: Plan, given: Iterable[str]) -> tuple[Plan, dict[str, Path]]:
    """The plan with the texts of --data in place, and the folders of training sets by name.

    `NAME=ROOT` is the folder of one dataset; `ROOT` alone is where the others lie, each in a folder of its `root`
    or name (default: the plan's folder, and only those with a `root`). A target's folder also serves as the
    training set of that name. Raises UnknownName for a name that the plan does not have, BadOption for an empty
    one.
    """
    roots: dict[str, Path] = {}
    base: Path | None = None
    named = {d.name for d in plan.datasets} | {d.dataset for d in plan.datasets if d.dataset}
    named |= {plan.auxiliary_of(m, d) for m in plan.methods for d in plan.datasets} - {""}
    named |= {name for m in plan.methods for name in (m.train or {}).get("data", ())}
    for text in given:
        name, equals, root = (part.strip() for part in text.partition("="))
        if (equals and not (name and root)) or not text.strip():
            raise BadOption(f"--data {text!r}: expected NAME=ROOT, such as mvtec=data/mvtec_ad, or a folder")
        if not equals or Path(text).exists():
            base = Path(text).expanduser()
        elif name not in named:
            raise UnknownName("dataset of this plan", name, named)
        else:
            roots[name] = Path(root).expanduser()
    datasets = []
    for target in plan.datasets:
        place = roots.get(target.name) or roots.get(target.dataset or "")
        own = target.root or (None if base is None else target.name)
        if place is None and own is not None:
            place = (base or plan.folder) / Path(own).expanduser()
        datasets.append(replace(target, root=None if place is None else str(place)))
        if place is not None:
            for key in filter(None, (target.name, target.dataset)):
                roots.setdefault(key, place)
    if base is not None:
        for name in named:
            roots.setdefault(name, base / name)
    return replace(plan, datasets=tuple(datasets)), roots


def _table(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key, {})
    if not isinstance(found, dict):
        raise BadOption(f"{key} is {found!r}; expected a table, [{key}]")
    return {name.replace("-", "_"): value for name, value in found.items()}


def _tables(values: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = values.get(key, [])
    if not isinstance(found, list) or not found or not all(isinstance(entry, dict) for entry in found):
        raise BadOption(f"no {key}; list each in a table of its own, [[{key}]]")
    return [{name.replace("-", "_"): value for name, value in entry.items()} for entry in found]


def _flat(kind: type[T], values: Mapping[str, Any], owner: str) -> T:
    return kind(**typed_options(kind, values, owner))


def _check_head(head: PlanHead) -> None:
    if not head.seeds or min(head.seeds) < 0 or len(set(head.seeds)) < len(head.seeds):
        raise BadOption(f"seeds is {list(head.seeds)}; expected different numbers from 0")
    if head.protocol not in PROTOCOLS:
        raise UnknownName("protocol", head.protocol, PROTOCOLS)
    if isinstance(head.resolution, str) and head.resolution != "native":
        raise BadOption(f'resolution is {head.resolution!r}; expected a number of pixels or "native"')
    if isinstance(head.resolution, int) and head.resolution < 1:
        raise BadOption(f"resolution is {head.resolution}; expected at least 1 pixel")
    rule, _, count = head.score_rule.partition(":")
    if not (
        head.score_rule in ("native", "max") or (rule == "topk" and count.isdecimal() and int(count) > 0)
    ):
        raise BadOption(f"score_rule is {head.score_rule!r}; expected native, max or topk:K")
    if head.mode not in MODES:
        raise UnknownName("mode", head.mode, MODES)
    if head.limit is not None and head.limit < 1:
        raise BadOption(f"limit is {head.limit}; expected at least 1 image of each class")
    if not 0 < head.fpr_limit <= 1:
        raise BadOption(f"fpr_limit is {head.fpr_limit}; expected a share above 0, up to 1")


def _dataset(entry: Mapping[str, Any], number: int) -> DatasetPlan:
    target = _flat(DatasetPlan, entry, f"[[datasets]] {entry.get('name', number)}")
    if target.dataset is not None:
        base = target.dataset.partition(":")[0]
        if base not in CATALOG and base not in LAYOUTS:
            raise UnknownName("dataset", target.dataset, (*CATALOG, *LAYOUTS))
    name = target.name or target.dataset or (Path(target.root).name if target.root else "")
    if not name:
        raise BadOption(f"[[datasets]] {number} has neither name, dataset nor root")
    return replace(target, name=name)


def _method(defaults: Mapping[str, Any], entry: Mapping[str, Any], folder: Path, number: int) -> MethodPlan:
    owner = f"[[methods]] {entry.get('label') or entry.get('method') or number}"
    values = {**defaults, **entry}
    for key in ("options", "train"):
        parts = [part[key] for part in (defaults, entry) if part.get(key) is not None]
        if not all(isinstance(part, dict) for part in parts):
            raise BadOption(f"{owner}: {key} is {values[key]!r}; expected a table")
        values[key] = {k.replace("-", "_"): v for part in parts for k, v in part.items()} if parts else None
    nested = {key: values.pop(key) for key in ("options", "train", "checkpoint") if key in values}
    found = _flat(MethodPlan, values, owner)
    if found.method not in METHODS:
        raise UnknownName("method", found.method, METHODS)
    found = replace(
        found,
        label=found.label or found.method,
        options=nested.get("options") or {},
        checkpoint=_checkpoints(nested.get("checkpoint"), owner),
        train=nested.get("train"),
    )
    _check_method(found, folder, owner)
    return found


def _checkpoints(given: Any, owner: str) -> dict[str, str]:
    if given is None:
        return {}
    if isinstance(given, str):
        return {"": given}
    if isinstance(given, dict) and all(isinstance(path, str) for path in given.values()):
        return given
    raise BadOption(
        f'{owner}: checkpoint is {given!r}; expected a file, or files by training set, as {{ visa = "a.pth" }}'
    )


def _check_method(found: MethodPlan, folder: Path, owner: str) -> None:
    settings = dict(found.options)
    try:
        make_config(found.method, settings.pop("preset", None), **settings)
    except BadOption as error:
        raise BadOption(f"{owner}: {error}") from error
    known = published_variants(found.method)
    if found.published not in (None, "", "off", *known):
        raise UnknownName(f"published variant of {found.method}", str(found.published), (*known, "off"))
    if found.train is None:
        return
    if found.checkpoint:
        raise BadOption(f"{owner} has a checkpoint and [methods.train]; keep one of them")
    found.train.update(check_training(found.train, found.method, folder, owner))


def _check_unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadOption(f"{name!r} is the {what} twice; give each its own")
        seen.add(name)


def _variations(vary: Mapping[str, Any]) -> tuple[Variation, ...]:
    """[vary]: state_words = [[normal, abnormal], ...], template = ["...", ...], class_names = {class: [...]}."""
    found: list[Variation] = []
    for factor, values in vary.items():
        if factor not in FACTORS:
            raise UnknownName("factor of [vary]", factor, FACTORS)
        if factor == "class_names":
            found += _synonyms(values)
            continue
        pair = factor == "state_words"
        if not isinstance(values, list) or not all(
            _is_pair(v) if pair else isinstance(v, str) for v in values
        ):
            expected = 'pairs, as [["good", "damaged"]]' if pair else 'texts, as ["a photo of a"]'
            raise BadOption(f"[vary] {factor} is {values!r}; expected {expected}")
        for value in values:
            found.append(Variation(factor, " / ".join(value) if pair else value, {factor: value}))
    return tuple(found)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(word, str) for word in value)


def _synonyms(values: Any) -> list[Variation]:
    """The n-th variation gives every class its n-th synonym; classes with fewer keep their own name."""
    fits = isinstance(values, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in values.values()
    )
    if not fits:
        raise BadOption(f'[vary] class_names is {values!r}; expected lists, as {{ bottle = ["flask"] }}')
    variations = []
    for i in range(max(map(len, values.values()), default=0)):
        chosen = {name: synonyms[i] for name, synonyms in values.items() if len(synonyms) > i}
        label = ", ".join(chosen.values()) if len(chosen) <= 3 else f"synonyms {i + 1}"
        variations.append(Variation("class_names", label, {}, chosen))
    return variations


def applies(variation: Variation, method: str) -> bool:
    """Whether a method has the options that a variation changes; every method can be told other class names."""
    return all(name in options_of(method) for name in variation.options)
