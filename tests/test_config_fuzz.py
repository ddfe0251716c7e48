"""Configuration files and settings that are not as they should be: an error of one or two lines, or options."""

from __future__ import annotations

import functools
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blemish.config import PredictOptions, merge_options, parse_settings, read_class_names, read_config
from blemish.errors import BlemishError

quick = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WHOLE = b"""method = "vcp_clip"
image-size = 518
save = "overlay,mask"
threshold = 0.5
normal = ["a.png", "b.png"]
tile = "square"
"""


def shown(error: BlemishError) -> None:
    """The text is fit to be shown: one or two lines, not without end."""
    assert 0 < len(str(error).splitlines()) <= 2 and len(str(error)) < 2000


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@quick
@given(st.dictionaries(st.sampled_from([*PredictOptions.__dataclass_fields__]), VALUES, max_size=4))
def test_any_values_are_typed_or_refused(given_values: dict[str, Any]) -> None:
    try:
        options, own = merge_options(PredictOptions, "blemish predict", None, given_values, [])
    except BlemishError as error:
        shown(error)
    else:
        assert isinstance(options, PredictOptions) and own == {}


@quick
@given(st.data())
def test_spoiled_files(tmp_path: Path, data: st.DataObject) -> None:
    text = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        text[place : place + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
    path = tmp_path / "a.toml"
    path.write_bytes(bytes(text))
    for read in (read_config, read_class_names):
        try:
            found = read(path)
        except BlemishError as error:
            assert str(path) in str(error)
            shown(error)
        else:
            assert all(isinstance(key, str) for key in found)
            assert not any(isinstance(value, dict) for value in found.values())


@quick
@given(st.lists(st.text(max_size=12), max_size=3))
def test_any_settings_parse_or_are_refused(texts: list[str]) -> None:
    try:
        found = parse_settings(texts)
    except BlemishError as error:
        shown(error)
    else:
        assert len(found) <= len(texts) and all(key for key in found)


DEEP = (
    b"a = " + b"[" * 5000,
    b"a = " + b"9" * 5000,
    b"a" * 100_000,
    b'a = "' + b"x" * 100_000,
    b"a = [" * 5000,
)


@pytest.mark.parametrize("content", DEEP, ids=["brackets", "digits", "key", "text", "tables"])
def test_deep_and_long_files(tmp_path: Path, content: bytes) -> None:
    from blemish.run.plan import read_plan

    path = tmp_path / "a.toml"
    path.write_bytes(content)
    for read in (read_config, read_class_names, read_plan):
        with pytest.raises(BlemishError, match="not valid TOML") as caught:
            read(path)
        shown(caught.value)


@pytest.mark.parametrize("text", ["[" * 5000, "9" * 5000])
def test_deep_and_long_settings(text: str) -> None:
    with pytest.raises(BlemishError, match="cannot read the value"):
        parse_settings([f"layers={text}"])


@functools.cache
def plan_text() -> str:
    return (Path(__file__).parents[1] / "recipes" / "development.toml").read_text(encoding="utf-8")


@quick
@given(st.data())
def test_spoiled_plans(tmp_path: Path, data: st.DataObject) -> None:
    from blemish.run.plan import read_plan

    words = re.split(r"(\W+)", plan_text())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(words) - 1))
        words[place] = data.draw(
            st.sampled_from(["", "x", "3", "-1", '"', "[", "]", "{}", "=", "nan", words[place] * 2])
        )
    path = tmp_path / "PLAN.toml"
    path.write_text("".join(words), encoding="utf-8")
    try:
        plan = read_plan(path)
    except BlemishError as error:
        assert str(path) in str(error)
        shown(error)
    else:
        assert plan.datasets and plan.methods


KEYS = ["method", "dataset", "root", "options", "train", "checkpoint", "label", "epochs", "x"]


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(KEYS), inner, max_size=3))


TABLES = st.one_of(VALUES, nested(VALUES), nested(nested(VALUES)))


@quick
@given(
    st.dictionaries(
        st.sampled_from(["plan", "datasets", "defaults", "methods", "vary", "x"]), TABLES, max_size=4
    )
)
def test_plans_of_anything(values: dict[str, Any]) -> None:
    from blemish.run.plan import parse_plan

    whole = tomllib.loads('[[datasets]]\ndataset = "visa"\n[[methods]]\nmethod = "clip"\n')
    try:
        parse_plan(whole | values, Path())
    except BlemishError as error:
        shown(error)
