"""The papers' figures."""

from __future__ import annotations

import pytest

from blemish.data.catalog import CATALOG
from blemish.run.published import find_published, published_rows, published_variants
from blemish.run.results import METRICS

METHOD_NAMES = [
    "anomaly_clip",
    "vcp_clip",
    "vcp_clip_plus",
    "vip2_clip",
    "gen_clip",
    "clip",
    "clip_ac",
    "win_clip",
    "april_gan",
    "coop",
    "cocoop",
    "ada_clip",
    "aa_clip",
    "fa_prompt",
    "ano_vl",
    "af_clip",
]


def test_every_row_names_what_exists_and_holds_fractions() -> None:
    rows = published_rows()
    assert len(rows) > 90
    for row in rows:
        assert row.dataset.partition(":")[0] in CATALOG and row.method in METHOD_NAMES, row
        assert row.auxiliary in ("", *CATALOG), row
        assert row.values and set(row.values) <= set(METRICS), row
        assert all(0 < value < 1 for value in row.values.values()), row
        assert row.auxiliary != row.dataset, row
        assert row.protocol == "anomalyclip" and row.paper and row.table
    assert len({(r.method, r.variant, r.dataset, r.paper, r.table, *r.values) for r in rows}) == len(rows)


@pytest.mark.parametrize(
    ("method", "dataset", "metric", "value"),
    [
        ("vcp_clip", "mvtec", "pixel_ap", 0.494),
        ("vcp_clip", "visa", "image_ap", 0.876),
        ("vcp_clip", "dagm", "pixel_aupro", 0.983),
        ("vcp_clip_plus", "mpdd", "image_auroc", 0.676),
        ("vip2_clip", "ksdd:thirds", "pixel_f1max", 0.530),
        ("vip2_clip", "isic", "pixel_auroc", 0.903),
        ("anomaly_clip", "mvtec", "image_auroc", 0.915),
        ("anomaly_clip", "tn3k", "pixel_aupro", 0.504),
        ("gen_clip", "btad", "image_ap", 0.969),
        ("april_gan", "mvtec", "pixel_aupro", 0.440),
    ],
)
def test_figures_as_printed(method: str, dataset: str, metric: str, value: float) -> None:
    assert find_published(method, dataset)[metric].value == value


def test_the_methods_own_paper_goes_first_and_others_fill_in() -> None:
    found = find_published("vcp_clip", "visa")
    assert found["pixel_auroc"].value == 0.957 and found["pixel_auroc"].row.table == "Table 1"
    assert found["image_auroc"].row.table == "Table 10"
    assert found["pixel_iou"].value == 0.222 and found["pixel_iou"].row.paper == "VCP-CLIP+"


def test_another_training_set_has_other_figures() -> None:
    assert find_published("anomaly_clip", "mvtec", auxiliary="visa")
    assert not find_published("anomaly_clip", "mvtec", auxiliary="ksdd")
    assert not find_published("anomaly_clip", "cookies") and not find_published("nobody", "mvtec")
    # a method that learns nothing has its figures whatever the plan calls the training set
    assert find_published("clip", "mvtec", auxiliary="visa")


def test_variants_stand_apart() -> None:
    assert find_published("vcp_clip_plus", "mvtec", "baseline")["pixel_aupro"].value == 0.495
    assert find_published("vcp_clip_plus", "mvtec", "tau 0.04")["pixel_auroc"].value == 0.895
    assert "image_auroc" not in find_published("vcp_clip_plus", "mvtec", "N 5")
    assert {"no_vca", "no_fgp", "no_utpa"} == published_variants("vip2_clip")
