"""Every plan in recipes/ parses, and names only what exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from blemish.run.cells import cells_of
from blemish.run.plan import read_plan, with_roots
from blemish.run.published import find_published

RECIPES = Path(__file__).parents[2] / "recipes"
PLANS = sorted(p for p in RECIPES.glob("*.toml") if not p.name.startswith(("train_", "embedded_")))
TABLES = {
    "vcp_clip": ("table_1", "table_10"),
    "vcp_clip_plus": ("main", "components", "temperature", "tokens", "top_k"),
    "vip2_clip": ("tables_1_2",),
    "anomaly_clip": ("table_1", "table_2", "table_3"),
    "gen_clip": ("table_1",),
}
ABLATIONS = (
    "components",
    "layers",
    "resolution",
    "backbone",
    "prompt_words",
    "top_k",
    "tokens",
    "temperature",
)


def test_there_is_a_plan_for_every_table_and_ablation() -> None:
    names = {p.stem for p in PLANS}
    assert {f"{method}_{part}" for method, parts in TABLES.items() for part in parts} <= names
    assert {f"ablation_{name}" for name in ABLATIONS} | {"development", "robustness"} <= names


@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_a_plan_parses_and_trains_on_nothing_that_it_tests(path: Path) -> None:
    plan, roots = with_roots(read_plan(path), ["data"])
    cells = cells_of(plan, roots)
    assert cells and len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        assert cell.auxiliary and cell.auxiliary != (cell.dataset.dataset or "").partition(":")[0]
        if cell.method.checkpoint:
            assert cell.auxiliary in cell.method.checkpoint
        recipes = (cell.method.train or {}).get("recipe", {})
        assert not recipes or cell.auxiliary in recipes or "" in recipes


@pytest.mark.parametrize("name", [f"{method}_{parts[0]}" for method, parts in TABLES.items()])
def test_a_table_finds_its_published_figures(name: str) -> None:
    plan = read_plan(RECIPES / f"{name}.toml")
    for method in plan.methods:
        for dataset in plan.datasets:
            known = (dataset.dataset or "", method.variant or "", plan.auxiliary_of(method, dataset))
            # boxes made by us are no masks of the paper; the paper's VCP-CLIP rows beside VCP-CLIP+ are VisA only
            if known[0] == "gc:boxes" or (name == "vcp_clip_plus_main" and known[0] == "mpdd"):
                continue
            assert find_published(method.method, *known), known


@pytest.mark.parametrize(
    "name", ["vcp_clip_plus_components", "vcp_clip_plus_temperature", "vcp_clip_plus_tokens"]
)
def test_every_row_of_an_ablation_of_the_paper_has_its_figures(name: str) -> None:
    plan = read_plan(RECIPES / f"{name}.toml")
    for method in plan.methods:
        assert method.variant is not None
        assert find_published(method.method, "mvtec", method.variant, "visa"), method.label
