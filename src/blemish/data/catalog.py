"""One row per known dataset: classes, counts, masks, licence, source. Plain data, read by eye."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CatalogEntry:
    """One dataset of the papers."""

    name: str


CATALOG: dict[str, CatalogEntry] = {}
