"""A benchmark: cells, failures, resume, overlap, training by seeds, the robustness study, what is written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drawn_data import draw_dataset

from blemish.errors import BadOption, OutputError
from blemish.run import benchmark as module
from blemish.run.benchmark import BenchmarkOptions, BenchmarkSummary, benchmark
from blemish.run.board import differences
from blemish.run.cells import cells_of, load_cell, save_cell
from blemish.run.plan import DatasetPlan, MethodPlan, Plan, Variation, read_plan, with_roots
from blemish.run.published import find_published
from blemish.run.results import ImageRow, read_results
from blemish.run.shots import choose

Make = Callable[..., Path]


@pytest.fixture
def plan(tmp_path: Path, small_checkpoint: Make) -> Plan:
    """Two methods on two drawn sets."""
    draw_dataset(tmp_path / "first", ("plate", "gear_wheel"), side=40)
    draw_dataset(tmp_path / "second", ("disc",), side=40)
    methods = tuple(
        MethodPlan(method=name, label=name, checkpoint={"": str(small_checkpoint(name))})
        for name in ("anomaly_clip", "vcp_clip")
    )
    datasets = tuple(DatasetPlan(name=n, root=str(tmp_path / n)) for n in ("first", "second"))
    return Plan(title="Drawn", folder=tmp_path, datasets=datasets, methods=methods, auxiliary="drawn")


def run(
    plan: Plan, out: Path, *given: str, options: dict[str, Any] | None = None, **how: Any
) -> BenchmarkSummary:
    chosen, roots = with_roots(plan, given)
    return benchmark(chosen, roots, BenchmarkOptions(out=str(out), **(options or {})), **how)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_figure_is_that_of_an_evaluation_and_every_file_is_there(plan: Plan, tmp_path: Path) -> None:
    shown: list[tuple[int, int, str | None]] = []
    out = tmp_path / "out"
    summary = run(plan, out, on_progress=lambda *now: shown.append(now))
    assert (summary.total, summary.done, summary.failed, summary.exit_code) == (4, 4, 0, 0)
    found = rows(out)
    assert [(r["dataset"], r["label"], r["class"]) for r in found][:3] == [
        ("first", "anomaly_clip", "gear_wheel"),
        ("first", "anomaly_clip", "plate"),
        ("first", "anomaly_clip", "mean"),
    ]
    assert len(found) == 2 * 3 + 2 * 2
    evaluated = {
        (e.dataset, m.method): m
        for e in map(read_results, (out / "evaluations").glob("*/results.json"))
        for m in e.methods
    }
    for row in found:
        result = evaluated[row["dataset"], row["method"]]
        if row["class"] != "mean":
            assert float(row["image_ap"]) == pytest.approx(
                result.classes[row["class"]].metrics["image_ap"].value
            )
        else:
            assert float(row["pixel_auroc"]) == pytest.approx(result.mean["pixel_auroc"].value)
        assert row["trained_on"] == "drawn" and row["error"] == ""
    for name in ("tables.md", "tables.tex", "report.html"):
        assert "gear" in (out / name).read_text(encoding="utf-8")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") >= 3 * 2 * 4 and str(tmp_path) not in page
    assert json.loads((out / "run.json").read_bytes())["status"] == "done"
    totals = {total for _, total, _ in shown}
    done = [done for done, _, _ in shown]
    assert len(totals) == 1 and done[0] == 0 and done == sorted(done) and done[-1] == totals.pop()


def test_a_cell_that_fails_is_a_row_and_the_rest_goes_on(plan: Plan, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    methods = (
        replace(plan.methods[0], label="missing", checkpoint={"": "nowhere.pth"}),
        replace(plan.methods[0], label="broken", checkpoint={"": str(broken)}),
        replace(plan.methods[0], label="other", checkpoint={"visa": "x.pth"}),
        replace(plan.methods[0], label="size", image_size=47),
        plan.methods[1],
    )
    lost = DatasetPlan(name="lost")
    empty = DatasetPlan(name="empty", root=str(tmp_path / "no such folder"))
    out, errors = tmp_path / "out", []
    changed = replace(plan, methods=methods, datasets=(lost, plan.datasets[1], empty))
    summary = run(changed, out, on_progress=lambda done, total, error: errors.append(error))
    assert (summary.done, summary.failed, summary.exit_code) == (1, 14, 1)
    causes = {(r["dataset"], r["label"]): r["error"] for r in rows(out) if r["error"]}
    assert len(causes) == 14 == len([e for e in errors if e])
    assert "--data lost=ROOT" in causes["lost", "vcp_clip"] and "no such" in causes["empty", "vcp_clip"]
    assert "nowhere.pth" in causes["second", "missing"] and "broken" in causes["second", "broken"]
    assert "no checkpoint trained on drawn; the plan has visa" in causes["second", "other"]
    assert "multiple" in causes["second", "size"]
    assert ("second", "vcp_clip") not in causes
    for name in ("tables.md", "report.html"):
        text = (out / name).read_text(encoding="utf-8")
        assert "failed" in text and "ROOT" in text
    nothing = replace(changed, datasets=(lost,))
    assert run(nothing, tmp_path / "none").exit_code == 2


def test_a_method_that_breaks_in_the_middle_takes_no_other_along(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = module.evaluate

    def evaluate(detectors: Any, *given: Any, **how: Any) -> Any:
        if any("anomaly" in label for label in detectors):
            raise RuntimeError("shape mismatch\nin a long trace")
        return plain(detectors, *given, **how)

    monkeypatch.setattr(module, "evaluate", evaluate)
    out = tmp_path / "out"
    summary = run(plan, out)
    assert (summary.done, summary.failed) == (2, 2)
    causes = {r["label"]: r["error"] for r in rows(out) if r["error"]}
    assert causes == {"anomaly_clip": "RuntimeError: shape mismatch"}
    monkeypatch.undo()
    resumed = run(plan, out, resume=True)
    assert (resumed.done, resumed.skipped, resumed.failed) == (4, 2, 0)


@pytest.mark.slow
def test_resume_computes_only_what_is_missing_and_gives_the_same(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plain, calls = tmp_path / "out", module.evaluate, []

    def evaluate(detectors: Any, *given: Any, **how: Any) -> Any:
        calls.append(len(detectors))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(detectors, *given, **how)

    monkeypatch.setattr(module, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        run(plan, out)
    assert "plate" in (out / "tables.md").read_text(encoding="utf-8"), "what is done can be read"
    with pytest.raises(OutputError, match="--resume"):
        run(plan, out)
    with pytest.raises(BadOption, match="exclude"):
        run(plan, out, resume=True, overwrite=True)
    calls.append(0)
    assert run(plan, out, resume=True).skipped == 2 and calls[3:] == [2]
    assert run(plan, out, resume=True).skipped == 4 and calls[4:] == []
    whole = run(plan, tmp_path / "whole")
    assert whole.skipped == 0
    drop = ("encoder_seconds", "method_seconds", "peak_memory_mib")
    same = [
        [{k: v for k, v in r.items() if k not in drop} for r in rows(f)] for f in (out, tmp_path / "whole")
    ]
    assert same[0] == same[1]
    # another protocol is another figure
    assert run(replace(plan, protocol="anomalyclip"), out, resume=True).skipped == 0


def test_cells_are_kept_whole_and_damaged_ones_are_done_again(plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(plan, out)
    chosen, roots = with_roots(plan, [])
    first, *others = cells_of(chosen, roots, plan.folder)
    outcome = load_cell(out, first)
    assert outcome is not None and outcome.result is not None and outcome.result.label == "anomaly_clip"
    path = next((out / "cells").glob(f"{first.name}*"))
    path.write_bytes(path.read_bytes()[:-20])
    assert load_cell(out, first) is None
    save_cell(out, first, replace(outcome, error="broke", evaluation=None))
    assert load_cell(out, first) is None
    assert len({cell.name for cell in (first, *others)}) == 4


def test_training_set_and_target_must_differ(plan: Plan, tmp_path: Path, small_checkpoint: Make) -> None:
    own = replace(
        plan.methods[0], checkpoint={"": str(small_checkpoint("anomaly_clip", auxiliary="first + x"))}
    )
    out = tmp_path / "out"
    with pytest.raises(BadOption, match=r"anomaly_clip on first: trained on first.*--allow-overlap"):
        run(replace(plan, methods=(own,)), out)
    assert not out.exists()
    named = replace(plan, auxiliary="second")
    with pytest.raises(BadOption, match="on second: trained on second"):
        run(named, out)
    classes = replace(plan, auxiliary="mvtec")
    draw_dataset(tmp_path / "mine", ("bottle", "gear"), side=40)
    target = DatasetPlan(name="mine", root=str(tmp_path / "mine"))
    with pytest.raises(BadOption, match="same classes: bottle"):
        run(replace(classes, datasets=(target,)), out)
    train = MethodPlan(method="vcp_clip", label="here", train={"data": ["first"]}, backbone="tiny")
    with pytest.raises(BadOption, match="same folder"):
        run(replace(plan, methods=(train,)), out)
    assert run(replace(plan, methods=(own,)), out, options={"allow_overlap": True}).exit_code == 0
    assert "no zero-shot result" in (out / "tables.md").read_text(encoding="utf-8")
    overlaps = {r["dataset"]: r["overlap"] for r in rows(out)}
    assert "first" in overlaps["first"] and overlaps["second"] == ""


@pytest.mark.slow
def test_seeds_are_those_of_training_and_collapse_without_it(
    plan: Plan, tmp_path: Path, small_backbone: Path
) -> None:
    draw_dataset(tmp_path / "aux", ("cube",), side=40)
    train = {"epochs": 1, "batch_size": 4}
    trained = MethodPlan(
        method="vcp_clip", label="trained", backbone=str(small_backbone), image_size=32, train=train
    )
    changed = replace(plan, methods=(plan.methods[0], trained), seeds=(3, 4), auxiliary="aux")
    out = tmp_path / "out"
    summary = run(changed, out, f"aux={tmp_path / 'aux'}")
    assert (summary.total, summary.failed) == (6, 0), rows(out)
    seeds = [(r["label"], r["seed"]) for r in rows(out) if r["dataset"] == "second" and r["class"] == "mean"]
    assert seeds == [("anomaly_clip", ""), ("trained", "3"), ("trained", "4")]
    assert len(list((out / "trained").iterdir())) == 2, "trained once for all datasets"
    scores = {
        r["seed"]: r["pixel_auroc"] for r in rows(out) if r["dataset"] == "first" and r["class"] == "mean"
    }
    assert scores["3"] != scores["4"]
    assert " ± " in (out / "tables.md").read_text(encoding="utf-8")
    missing = run(replace(changed, seeds=(3,)), tmp_path / "nodata")
    assert missing.failed == 2
    assert any("--data aux=ROOT" in r["error"] for r in rows(tmp_path / "nodata"))


def test_words_said_otherwise_change_what_depends_on_them(plan: Plan, tmp_path: Path) -> None:
    variations = (
        Variation("state_words", "fine / bad", {"state_words": ["fine", "bad"]}),
        Variation("state_words", "clean / dirty", {"state_words": ["clean", "dirty"]}),
        Variation("class_names", "saucer", {}, {"disc": "saucer"}),
    )
    out = tmp_path / "out"
    changed = replace(plan, variations=variations, datasets=plan.datasets[1:])
    summary = run(changed, out)
    # anomaly_clip has no state words, and neither method reads class names
    assert (summary.total, summary.failed) == (2 + 2 + 2, 0)
    found = {(r["label"], r["variation"]): r for r in rows(out) if r["class"] == "mean"}
    usual = found["vcp_clip", ""]
    assert found["vcp_clip", "fine / bad"]["pixel_ap"] != usual["pixel_ap"]
    assert found["vcp_clip", "saucer"]["pixel_ap"] == usual["pixel_ap"]
    classes = {r["class"] for r in rows(out)}
    assert classes == {"disc", "mean"}
    text = (out / "tables.md").read_text(encoding="utf-8")
    assert "Robustness: state words" in text and "Robustness: class names" in text
    figures = [float(found["vcp_clip", v]["image_auroc"]) for v in ("", "fine / bad", "clean / dirty")]
    line = next(
        line for line in text.split("Robustness: state words")[1].splitlines() if "Image AUROC" in line
    )
    shown = [part.strip() for part in line.split("|")[3:7]]
    expected = (figures[0], sum(figures) / 3, min(figures), max(figures))
    assert shown == [f"{100 * v:.1f}" for v in expected]


def test_published_figures_stand_beside_measured_ones(
    plan: Plan, tmp_path: Path, small_checkpoint: Make
) -> None:
    draw_dataset(tmp_path / "mvtec", ("bottle", "cable"), side=40)
    target = DatasetPlan(name="MVTec", root=str(tmp_path / "mvtec"), dataset="mvtec", auxiliary="visa")
    ours = MethodPlan(
        method="vcp_clip",
        label="ours",
        checkpoint={"visa": str(small_checkpoint("vcp_clip", auxiliary="VisA"))},
    )
    # this checkpoint says that it was trained on other data than the paper's
    drawn = replace(plan.methods[1], label="drawn")
    out = tmp_path / "out"
    run(replace(plan, datasets=(target,), methods=(ours, drawn)), out)
    means = {r["label"]: r for r in rows(out) if r["class"] == "mean"}
    assert (
        float(means["ours"]["published_pixel_auroc"]) == 0.92 and means["ours"]["published_pixel_iou"] == ""
    )
    assert means["drawn"]["published_pixel_auroc"] == ""
    text = (out / "tables.md").read_text(encoding="utf-8")
    change = round(100 * float(means["ours"]["pixel_auroc"]), 1) - 92.0
    assert f"(92.0, {'+' if change > 0 else '−'}{abs(change):.1f}\\*)" in text
    assert "VCP-CLIP, Table 1" in text and "not ViT-L-14-336" in text
    result = read_results(next((out / "evaluations").glob("*/results.json"))).methods[0]
    row = find_published("vcp_clip", "mvtec")["pixel_aupro"].row
    told = " ".join(differences(row, "pixel_aupro", result))
    assert "not 518 px" in told and "protocol exact, not anomalyclip" in told
    assert "protocol" not in " ".join(differences(row, "image_auroc", result))


def test_pictures_are_the_clearest_true_and_the_worst_false_ones() -> None:
    images = [
        ImageRow(f"{label}{score}", label, score)
        for label in (0, 1)
        for score in (0.1, 0.2, 0.3, 0.7, 0.8, 0.9)
    ]
    chosen = [(kind, row.path) for kind, row in choose(images, 0.5)]
    assert chosen == [
        ("tp", "10.9"),
        ("tp", "10.8"),
        ("fp", "00.9"),
        ("fp", "00.8"),
        ("fn", "10.1"),
        ("fn", "10.2"),
        ("tn", "00.1"),
        ("tn", "00.2"),
    ]
    assert {kind for kind, _ in choose(images, None)} == {"tp", "fp"} and choose([], 0.5) == []


def test_a_plan_on_disk_with_a_base_folder(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    file = plan.methods[0].checkpoint[""]
    path.write_text(
        '[plan]\nlimit = 2\nresolution = "native"\n[[datasets]]\nname = "second"\n'
        f'[[methods]]\nmethod = "anomaly_clip"\ncheckpoint = "{Path(file).name}"\n',
        encoding="utf-8",
    )
    out = tmp_path / "out"
    options = {"checkpoints": str(Path(file).parent), "limit": 4}
    assert run(read_plan(path), out, str(tmp_path), options=options).exit_code == 0
    (row, _) = rows(out)
    assert int(row["normal"]) + int(row["anomalous"]) == 4 and row["resolution"] == "native"
    assert "at most 4 images" in (out / "tables.md").read_text(encoding="utf-8")
