"""Figures that the papers publish, to stand beside measured ones; the data are in published.toml."""

from __future__ import annotations

import functools
import math
import tomllib
from dataclasses import dataclass
from importlib.resources import files as package_files
from typing import Any

PAPERS_BACKBONE, PAPERS_SIZE, PAPERS_PROTOCOL = "ViT-L-14-336", 518, "anomalyclip"


@dataclass(frozen=True)
class PublishedRow:
    """One printed row: a method on a dataset.

    variant: "" for the method as proposed, else the ablation's name. auxiliary: the training set, "" for
    methods that learn nothing. values: metric -> fraction in [0, 1]; metrics that the paper does not print are
    absent. backbone, image_size: of the network, "" and 0 where the source does not say. protocol: how AUPRO
    was computed. note: what keeps the row from being compared, or explains it.
    """

    method: str
    variant: str
    dataset: str
    auxiliary: str
    paper: str
    table: str
    values: dict[str, float]
    backbone: str = PAPERS_BACKBONE
    image_size: int = PAPERS_SIZE
    protocol: str = PAPERS_PROTOCOL
    note: str = ""

    @property
    def source(self) -> str:
        """Paper and table, with the note."""
        return f"{self.paper}, {self.table}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class PublishedFigure:
    """One printed number, a fraction, and the row that it stands in."""

    value: float
    row: PublishedRow


@functools.cache
def published_rows() -> tuple[PublishedRow, ...]:
    """Every row of published.toml, a method's own paper before what others measured."""
    text = package_files("blemish.run").joinpath("published.toml").read_text(encoding="utf-8")
    return tuple(row for table in tomllib.loads(text)["tables"] for row in _rows(table))


def _rows(table: dict[str, Any]) -> list[PublishedRow]:
    common = {key: table[key] for key in ("backbone", "image_size", "protocol", "note") if key in table}
    places = [(table.get("variant", ""), name, figures) for name, figures in table.get("rows", {}).items()]
    places += [
        (name, table.get("dataset", ""), figures) for name, figures in table.get("variants", {}).items()
    ]
    rows = []
    for variant, dataset, figures in places:
        printed = zip(table["metrics"], figures, strict=True)
        rows.append(
            PublishedRow(
                method=table["method"],
                variant=variant,
                dataset=dataset,
                auxiliary=table.get("auxiliary_of", {}).get(dataset, table.get("auxiliary", "")),
                paper=table["paper"],
                table=table["table"],
                # decimal places of the print, so that 92.0 is 0.92 and not 0.9200000000000001
                values={name: round(v / 100, 6) for name, v in printed if not math.isnan(v)},
                **common,
            )
        )
    return rows


def find_published(
    method: str, dataset: str, variant: str = "", auxiliary: str = ""
) -> dict[str, PublishedFigure]:
    """metric -> the published figure of a method on a dataset; empty when there is none.

    variant: as in `PublishedRow`. auxiliary: the measured method's training set; "" is unknown and fits every
    row. Of several figures the first in the file counts.
    """
    found: dict[str, PublishedFigure] = {}
    for row in published_rows():
        if (row.method, row.dataset, row.variant) != (method, dataset, variant):
            continue
        if auxiliary and row.auxiliary and auxiliary != row.auxiliary:
            continue
        for name, value in row.values.items():
            found.setdefault(name, PublishedFigure(value, row))
    return found


def published_variants(method: str) -> frozenset[str]:
    """Names of a method's ablations that have published figures."""
    return frozenset(row.variant for row in published_rows() if row.method == method and row.variant)
