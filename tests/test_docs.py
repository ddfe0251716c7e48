"""The documentation: it builds, its links and commands hold, and it says the same as the code."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *ROOT.glob("examples/*.md")])
METHOD_PAGES = sorted(p for p in (DOCS / "methods").glob("*.md") if p.stem != "index")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def fences(page: Path, language: str) -> list[str]:
    return [code for word, code in FENCE.findall(text(page)) if word == language]


def page_of(method: str) -> str:
    return text(DOCS / "methods" / f"{'clip' if method == 'clip_ac' else method}.md")


@pytest.mark.slow
def test_the_site_builds_and_asks_nobody(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install 'blemish[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stdout + done.stderr
    outside = re.compile(r'<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"')
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        assert not outside.findall(text(page)), page
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:|@import", text(style)), style


@each_page
def test_links_and_pictures_are_there(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", text(page))):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{target} in {page.name}"
        if anchor:
            assert anchor in headings(found), f"{target} in {page.name}"


def headings(page: Path) -> set[str]:
    """The anchors of a page, made as the site makes them."""
    lines = re.findall(r"^#+ (.+)$", FENCE.sub("", text(page)), re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", line).strip().lower()) for line in lines}


@each_page
def test_python_in_pages_is_python(page: Path) -> None:
    for code in fences(page, "python"):
        ast.parse(textwrap.dedent(code))


def lines_of(page: Path) -> Iterator[tuple[str, list[str], bool]]:
    """Command lines: (line, its words, whether it stands in a fence, ready to be run)."""
    for code in fences(page, "") + fences(page, "sh"):
        for line in code.replace("\\\n", " ").splitlines():
            yield line, shlex.split(line, comments=True), not line.endswith("…")
    for line in re.findall(r"`(blemish [^`]+)`", FENCE.sub("", text(page)).replace("\n", " ")):
        yield line, shlex.split(line), False


@functools.cache
def program() -> Any:
    import typer

    from blemish.cli import app

    return typer.main.get_command(app)


@each_page
def test_commands_exist_and_parse(page: Path) -> None:
    verbs = program().commands
    for line, words, whole in lines_of(page):
        if "blemish" in words[: words.index("-m") + 2 if "-m" in words else 1]:
            given = words[words.index("blemish") + 1 :]
            assert given[:1] == ["--help"] or given[0] in verbs, f"{line} in {page.name}"
            if given[0] in verbs:
                check(verbs[given[0]], given[1:], line, whole)
        elif words[:1] == ["python"] and words[1] != "-m":
            assert (ROOT / words[1]).is_file(), f"{line} in {page.name}"
        elif words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", text(ROOT / "Makefile"), re.M), f"{line} in {page.name}"


def check(verb: Any, words: list[str], line: str, whole: bool) -> None:
    """The options of a command line exist; a whole one parses."""
    known = {name for parameter in verb.params for name in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"-h", "--help"}
    for word in words:
        if word.startswith("-") and word != "-":
            assert word.partition("=")[0] in known, f"{word}: {line}"
    if "--config" in words:
        file = words[words.index("--config") + 1]
        assert not file.startswith("recipes/") or (ROOT / file).is_file(), line
    for setting in (words[i + 1] for i, word in enumerate(words) if word == "--set"):
        assert setting.partition("=")[0] in known_settings(), line
    if whole and not {"-h", "--help"} & {*words}:
        try:
            verb.make_context(verb.name, list(words))
        except Exception as error:
            raise AssertionError(f"{line}: {error}") from error


@functools.cache
def known_settings() -> set[str]:
    from blemish.config import PredictOptions
    from blemish.methods import METHODS, options_of
    from blemish.run.evaluate_options import EvaluateCommand
    from blemish.run.recipe import TrainOptions

    of_commands = (PredictOptions, EvaluateCommand, TrainOptions)
    names = {name for kind in of_commands for name in kind.__dataclass_fields__}
    return {"preset", "key", *names}.union(*(options_of(name) for name in METHODS))


def test_the_worked_example_is_the_script() -> None:
    script = text(ROOT / "examples" / "add_a_method.py")
    found = fences(DOCS / "add_a_method.md", "python")
    assert len(found) == 7 and all(code in script for code in found)


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda p: p.stem)
def test_a_method_page_has_figure_options_and_numbers(page: Path) -> None:
    from blemish.methods import METHODS, options_of, presets

    methods = ["clip", "clip_ac"] if page.stem == "clip" else [page.stem]
    written = text(page)
    assert all(name in METHODS for name in methods)
    assert f"(../images/methods/{page.stem}.svg)" in written and "## Published figures" in written
    for name in methods:
        for key in options_of(name):
            assert f"`{key}`" in written, f"option {key} of {name}"
        if "list methods --json" not in written:
            for key in presets(name):
                assert f"`{key}`" in written, f"preset {key} of {name}"


def test_every_method_is_described() -> None:
    from blemish.methods import METHODS

    overview, nav = text(DOCS / "methods" / "index.md"), text(ROOT / "mkdocs.yml")
    for name in METHODS:
        assert f"(`{name}`" in page_of(name) or f"`{name}`)" in page_of(name)
        assert f"`{name}`" in overview and f"`{name}`" in text(DOCS / "choosing.md")
    assert all(f"methods/{page.name}" in nav for page in METHOD_PAGES)


def test_the_figures_are_what_the_script_draws() -> None:
    from method_figures import figure
    from method_figures_data import FIGURES

    assert {*FIGURES} == {page.stem for page in METHOD_PAGES}
    for name, parts in FIGURES.items():
        assert text(DOCS / "images" / "methods" / f"{name}.svg") == figure(*parts), (
            "python tools/method_figures.py"
        )


def test_what_methods_need_is_what_the_table_says() -> None:
    from blemish.methods import METHODS, method_class

    rows: dict[str, list[str]] = {}
    for line in text(DOCS / "choosing.md").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0].startswith("`") and cells[1][:2] in ("ye", "no"):
            rows |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), cells[1:])
    assert {*rows} == {*METHODS}
    for name, (learned, named, masks, few) in rows.items():
        kind = method_class(name)
        assert (learned == "yes") == hasattr(kind, "loss"), name
        assert (few == "yes") == hasattr(kind, "remember"), name
        assert name == "gen_clip" or (named == "yes") == bool(getattr(kind, "uses_class_names", False)), name
        if learned == "yes":
            assert masks.startswith("no") == kind.learns_without_masks, name


def test_recipes_are_named() -> None:
    page = text(DOCS / "reproducing.md")
    for path in (ROOT / "recipes").glob("*.toml"):
        assert path.name in page or path.name.startswith(("train_", "embedded_")), path.name
    for name in re.findall(r"`(\w+\.toml)`", page):
        assert (ROOT / "recipes" / name).is_file() or name.startswith(("train_METHOD", "embedded_METHOD")), (
            name
        )


def test_the_development_table_has_its_mark() -> None:
    assert text(DOCS / "choosing.md").count("<!-- table: development benchmark -->") == 1


PUBLIC = ("blemish", "blemish.synth", "blemish.metrics", "blemish.errors")


def public_objects() -> Iterator[tuple[str, Any]]:
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        names = getattr(module, "__all__", None) or [
            n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module_name
        ]
        for name in names:
            if name != "__version__":
                yield f"{module_name}.{name}", getattr(module, name)


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """The public functions and properties of a class and of its bases in this package."""
    for base in kind.__mro__:
        if base.__module__.startswith("blemish"):
            yield from ((n, v) for n, v in vars(base).items() if not n.startswith("_"))


def test_every_public_name_is_documented_and_typed() -> None:
    for name, found in public_objects():
        if not callable(found):
            continue  # tuples and the like: the reference describes them
        assert inspect.getdoc(found), name
        if inspect.isclass(found):
            assert found.__doc__ and not found.__doc__.startswith(f"{found.__name__}("), (
                f"{name}: no docstring"
            )
            for key, member in members(found):
                function = (
                    member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                )
                if inspect.isfunction(function):
                    assert inspect.getdoc(getattr(found, key)), f"{name}.{key}"
                    assert_typed(function, f"{name}.{key}")
        elif inspect.isfunction(found):
            assert_typed(found, name)


def assert_typed(function: Any, name: str) -> None:
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty, f"{name}: result"
    for key, parameter in signature.parameters.items():
        assert key in ("self", "cls") or parameter.annotation is not inspect.Parameter.empty, f"{name}: {key}"


def test_every_public_name_is_in_the_reference() -> None:
    page = text(DOCS / "reference.md")
    for name, _ in public_objects():
        if not name.startswith("blemish.errors."):
            short = name.rpartition(".")[2]
            assert f"::: {name}\n" in page or f"`{short}`" in page or f"`{name}()`" in page, name


def test_types_are_shipped() -> None:
    import blemish

    assert (Path(blemish.__file__).parent / "py.typed").is_file()


# Rooms and single files in the order of docs/architecture.md; each imports only what stands before it.
BASE = ("errors", "files", "types", "machine", "pipeline", "device")
ROOMS = ("data", "clip", "parts", "methods", "metrics", "output")
FILES = ("calibrate", "checkpoint", "config", "score_rule", "predictor", "few_shot", "detector", "loading")
ORDER = (*BASE, *ROOMS, *FILES, "describe", "catalogue", "doctor", "synth", "run", "deploy", "cli")
ALLOWED = {("loading", "deploy")}


def test_rooms_import_only_from_above() -> None:
    package = ROOT / "src" / "blemish"
    for path in package.rglob("*.py"):
        place = path.relative_to(package).parts
        room = place[0] if len(place) > 1 else path.stem
        if room in ("__init__", "__main__"):
            continue
        assert room in ORDER, f"{path}: say in docs/architecture.md where it stands"
        for other in imported(path, place) & {*ORDER} - {room}:
            fine = ORDER.index(other) < ORDER.index(room) or (room, other) in ALLOWED
            assert fine, f"{path.relative_to(package)} imports {other}"


def imported(path: Path, place: tuple[str, ...]) -> set[str]:
    """First names below `blemish` that a file imports, but for type checkers."""
    tree, found = ast.parse(text(path)), set()
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in typing_only:
            package = ["blemish", *place[:-1]][: len(place) - node.level + 1] if node.level else []
            parts = [*package, *(node.module.split(".") if node.module else [])]
            if parts[:1] == ["blemish"]:
                found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found
