"""The catalogue: every promised name once, sums that agree with the papers, no doubtful recognition."""

from __future__ import annotations

import pytest

from blemish.data.catalog import CATALOG, GENERIC, find_entry

NAMES = [
    *("mvtec", "visa", "mpdd", "btad", "ksdd", "ksdd2", "dagm", "dtd_synthetic", "bsd", "gc", "msd", "road"),
    *("rsdd", "head_ct", "brain_mri", "br35h", "covid19", "isic", "colon_db", "clinic_db", "kvasir", "endo"),
    "tn3k",
]


def test_the_promised_names_in_their_order() -> None:
    assert list(CATALOG) == NAMES and list(GENERIC) == ["mvtec_layout", "meta_json", "folder"]


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_complete(name: str) -> None:
    entry = CATALOG[name]
    assert entry.name == name and entry.classes and entry.licence and entry.source and sum(entry.total)
    assert len({*entry.classes}) == len(entry.classes)
    if entry.per_class:
        assert set(entry.per_class) == set(entry.classes)
        assert tuple(map(sum, zip(*entry.per_class.values(), strict=True))) == entry.total
    assert set(entry.prompts) <= set(entry.classes)
    assert entry.mask_rule[0] in ">="


@pytest.mark.parametrize(
    ("name", "total"),
    [
        *(("mvtec", (467, 1258)), ("visa", (962, 1200)), ("mpdd", (176, 282)), ("btad", (451, 290))),
        *(("ksdd", (181, 74)), ("dagm", (6996, 1054)), ("dtd_synthetic", (357, 947)), ("ksdd2", (894, 110))),
        *(("head_ct", (100, 100)), ("brain_mri", (98, 155)), ("br35h", (1500, 1500)), ("isic", (0, 379))),
        *(("covid19", (1341, 219)), ("colon_db", (0, 380)), ("clinic_db", (0, 612)), ("kvasir", (0, 1000))),
        *(("endo", (0, 200)), ("tn3k", (0, 614))),
    ],
)
def test_counts_of_the_papers(name: str, total: tuple[int, int]) -> None:
    assert CATALOG[name].total == total


def test_words_for_prompts() -> None:
    assert CATALOG["btad"].prompt_name("01") == "object"
    assert CATALOG["visa"].prompt_name("pcb3") == "printed circuit board"
    assert CATALOG["mvtec"].prompt_name("metal_nut") == "metal nut"
    assert CATALOG["isic"].prompt_name("skin") == "skin"


@pytest.mark.parametrize(
    ("folders", "classes", "name"),
    [
        (["x"], ["bottle", "screw"], "mvtec"),
        (["x"], ["bottle"], None),
        (["MVTec-AD"], ["bottle"], "mvtec"),
        (["x"], ["bottle", "candle"], None),
        (["x"], ["Class1", "class2"], "dagm"),
        (["x"], ["01", "02"], None),
        (["BTech_Dataset_transformed"], ["01"], "btad"),
        (["x"], ["electrical commutators"], "ksdd"),
        (["x"], ["SDD"], "ksdd"),
        (["KolektorSDD2"], ["electrical_commutators"], "ksdd2"),
        (["x"], ["brain"], None),
        (["BrainMRI"], ["brain"], "brain_mri"),
        (["x"], ["headct"], "head_ct"),
        (["Kvasir-SEG"], ["colon"], "kvasir"),
        (["mvtec"], ["my_part"], None),
        ([], [], None),
    ],
)
def test_recognition_by_names(folders: list[str], classes: list[str], name: str | None) -> None:
    found = find_entry(folders, classes)
    assert (found.name if found else None) == name


def test_expected_counts_of_a_class() -> None:
    assert CATALOG["mvtec"].expected("screw") == (41, 119)
    assert CATALOG["dagm"].expected("Class1") is None
    assert CATALOG["ksdd"].expected("SDD") == (181, 74) and CATALOG["ksdd"].expected("nut") is None
