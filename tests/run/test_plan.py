"""PLAN.toml: what parses, and what is refused with a mend."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from blemish.errors import BadOption, UnknownName
from blemish.run.plan import applies, parse_plan, read_plan, with_roots

SMALL = """
[plan]
title = "Two by two"
seeds = [1, 2]
auxiliary = "visa"
resolution = 518
protocol = "anomalyclip"

[[datasets]]
dataset = "mvtec"
root = "data/mvtec_ad"
classes = ["bottle", "grid"]
defects = ["crack"]

[[datasets]]
dataset = "visa"
auxiliary = "mvtec"

[defaults]
backbone = "ViT-L-14-336"
options = { layers = [6, 24] }

[[methods]]
method = "vcp_clip"
checkpoint = { visa = "a.pth", mvtec = "b.pth" }

[[methods]]
method = "vip2_clip"
label = "ours"
options = { top_k = 10 }
[methods.train]
epochs = 3
data = "somewhere"
"""


def plan(text: str, folder: Path = Path("plans")):  # type: ignore[no-untyped-def]
    return parse_plan(tomllib.loads(text), folder)


def test_a_plan_and_its_defaults() -> None:
    found = plan(SMALL)
    assert (found.title, found.seeds, found.resolution, found.protocol) == (
        "Two by two",
        (1, 2),
        518,
        "anomalyclip",
    )
    mvtec, visa = found.datasets
    assert (mvtec.name, mvtec.classes, visa.root) == ("mvtec", ("bottle", "grid"), None)
    assert (mvtec.defects, visa.defects) == (("crack",), ())
    vcp, ours = found.methods
    assert (vcp.label, vcp.checkpoint) == ("vcp_clip", {"visa": "a.pth", "mvtec": "b.pth"})
    assert (ours.label, ours.backbone) == ("ours", "ViT-L-14-336")
    assert ours.options == {"layers": [6, 24], "top_k": 10}
    assert ours.train == {"epochs": 3, "data": ["somewhere"]}
    assert found.auxiliary_of(vcp, mvtec) == "visa" and found.auxiliary_of(vcp, visa) == "mvtec"


def test_roots_are_relative_to_the_plan_and_the_command_line_wins(tmp_path: Path) -> None:
    found, roots = with_roots(plan(SMALL, tmp_path), ["visa=elsewhere/visa"])
    assert [d.root for d in found.datasets] == [str(tmp_path / "data/mvtec_ad"), "elsewhere/visa"]
    assert roots == {"mvtec": tmp_path / "data/mvtec_ad", "visa": Path("elsewhere/visa")}
    found, roots = with_roots(plan(SMALL, tmp_path), ["mvtec=here"])
    assert found.datasets[0].root == "here" and roots == {"mvtec": Path("here")}
    found, roots = with_roots(plan(SMALL, tmp_path), ["all", "visa=there"])
    assert [d.root for d in found.datasets] == ["all/data/mvtec_ad", "there"]
    assert roots.pop("somewhere") == Path("all/somewhere")
    assert roots == {"mvtec": Path("all/data/mvtec_ad"), "visa": Path("there")}
    for wrong in ("", "=x", "mvtec="):
        with pytest.raises(BadOption, match="NAME=ROOT"):
            with_roots(plan(SMALL), [wrong])
    with pytest.raises(UnknownName, match="did you mean 'mvtec'"):
        with_roots(plan(SMALL), ["mvtek=x"])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds = [1, 2]", "seeds = [1, 1]", "different numbers"),
        ("seeds = [1, 2]", "seeds = []", "different numbers"),
        ("seeds = [1, 2]", "seed = 1", "did you mean 'seeds'"),
        ("resolution = 518", 'resolution = "big"', "native"),
        ("resolution = 518", "resolution = 0", "at least 1"),
        ('"anomalyclip"', '"anomaliclip"', "did you mean 'anomalyclip'"),
        ("protocol =", 'score_rule = "topk:0"\nprotocol =', "topk:K"),
        ("protocol =", "fpr_limit = 1.5\nprotocol =", "share"),
        ('dataset = "visa"', 'dataset = "vissa"', "did you mean 'visa'"),
        ('dataset = "visa"', 'dataset = "mvtec"', "twice"),
        ('method = "vcp_clip"', 'method = "vcp"', "choose from"),
        ('method = "vcp_clip"', 'method = "vcp_clip"\npublished = "fixd"', "choose from"),
        ('label = "ours"', 'label = "vcp_clip"', "twice"),
        ("top_k = 10", "top_kk = 10", "did you mean 'top_k'"),
        ("top_k = 10", 'top_k = "many"', "expected a value such as 50"),
        ("epochs = 3", "epoch = 3", "did you mean 'epochs'"),
        ("epochs = 3", "epochs = 0", "at least 1"),
        ("epochs = 3", "seed = 3", "sets it elsewhere"),
        ('label = "ours"', 'label = "ours"\ncheckpoint = "c.pth"', "keep one"),
        ('checkpoint = { visa = "a.pth", mvtec = "b.pth" }', "checkpoint = 3", "by training set"),
        ("[[methods]]", "[methods]", "."),
        ("[defaults]", "[default]", "did you mean 'defaults'"),
    ],
)
def test_wrong_plans_are_refused_with_a_mend(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "PLAN.toml"
    assert old in SMALL
    path.write_text(SMALL.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(BadOption) as caught:
        read_plan(path)
    assert said in str(caught.value) and "PLAN.toml" in str(caught.value)
    assert str(caught.value).count("\n") <= 1


@pytest.mark.parametrize("text", ["", "[plan]\n", '[[datasets]]\ndataset = "visa"\n', "datasets = 3\n"])
def test_a_plan_without_datasets_or_methods(text: str) -> None:
    with pytest.raises(BadOption, match=r"list each in a table of its own"):
        plan(text)


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match=r"nothing\.toml: no such file"):
        read_plan(tmp_path / "nothing.toml")


def test_the_published_variant_follows_from_the_options() -> None:
    entry = '[[datasets]]\ndataset = "mvtec"\n[[methods]]\nmethod = "vcp_clip_plus"\n'
    for options, wanted in [
        ("", ""),
        ('options = { preset = "full" }', ""),
        ('options = { preset = "fixed+idp" }', "fixed+idp"),
        ("options = { tau = 0.04 }", None),
        ('options = { tau = 0.04 }\npublished = "tau 0.04"', "tau 0.04"),
        ('published = "off"', None),
    ]:
        assert plan(entry + options).methods[0].variant == wanted


def test_variations_and_whom_they_concern() -> None:
    text = SMALL + (
        '[vary]\nstate_words = [["good", "bad"]]\n'
        'class_names = { bottle = ["flask", "vial"], grid = ["mesh"] }\n'
    )
    words, first, second = plan(text).variations
    assert words.options == {"state_words": ["good", "bad"]} and words.label == "good / bad"
    assert first.class_names == {"bottle": "flask", "grid": "mesh"} and second.class_names == {
        "bottle": "vial"
    }
    assert applies(words, "gen_clip") and not applies(words, "anomaly_clip")
    assert applies(first, "anomaly_clip")
    for wrong in ('state_words = [["good"]]', "template = [3]", "class_names = [1]", "words = []"):
        with pytest.raises((BadOption, UnknownName)):
            plan(SMALL + f"[vary]\n{wrong}\n")
