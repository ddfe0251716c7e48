"""Finding pictures: folders, globs, lists, links, and unique output names."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blemish.data.find import _unique_names
from blemish.data.images import find_images


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def relatives(*inputs: object, **options: object) -> list[str]:
    refs = find_images(map(str, inputs), **options)  # type: ignore[arg-type]
    assert all(ref.error is None and ref.path.exists() for ref in refs)
    return [ref.relative.as_posix() for ref in refs]


def test_folder_is_walked_in_natural_order(tmp_path: Path) -> None:
    make(
        tmp_path,
        "10.png",
        "2.PNG",
        "b/1.jpg",
        "a b/é.tiff",
        "notes.md",
        ".hidden.png",
        ".git/x.png",
        "B.webp",
    )
    assert relatives(tmp_path) == ["2.PNG", "10.png", "a b/é.tiff", "b/1.jpg", "B.webp"]


def test_missing_empty_and_unmatched_inputs_are_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make(tmp_path, "a.png")
    inputs = [tmp_path / "no.png", tmp_path / "empty", tmp_path / "x*.png", "bad\0name", tmp_path / "a.png"]
    refs = find_images(inputs)
    errors = [str(ref.error) for ref in refs[:4]]
    assert errors[0] == f"{tmp_path}/no.png: no such file or folder"
    assert "no images in this folder (looked for .png .jpg" in errors[1]
    assert "match" in errors[2] and "no such" in errors[3]
    assert refs[4].error is None and len(refs) == 5


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "1.png").touch()
    monkeypatch.chdir(tmp_path)
    (ref,) = find_images([name])
    assert ref.error is not None and "an empty name" in ref.error
    assert find_images(["."])[0].path == Path("1.png")


def test_files_of_any_ending_given_by_name_are_taken(tmp_path: Path) -> None:
    make(tmp_path, "a.dat")
    assert relatives(tmp_path / "a.dat") == ["a.dat"]


def test_globs(tmp_path: Path) -> None:
    make(tmp_path, "x/good/1.png", "x/bad/1.png", "x/bad/deep/2.png", "x/readme.md", "y[1].png")
    assert relatives(tmp_path / "x/*/*.png") == ["bad/1.png", "good/1.png"]
    assert relatives(tmp_path / "x/**/*.png") == ["bad/1.png", "bad/deep/2.png", "good/1.png"]
    assert relatives(tmp_path / "x/**") == ["bad/1.png", "bad/deep/2.png", "good/1.png"]
    assert relatives(tmp_path / "x/*") == ["bad/1.png", "bad/deep/2.png", "good/1.png"]
    assert relatives(tmp_path / "y[1].png") == ["y[1].png"]


def test_text_lists_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "set/a/1.png", "set/b/1.png", "here/2.png", "other/3.png")
    monkeypatch.chdir(tmp_path / "here")
    listing = tmp_path / "set/list.TXT"
    listing.write_text(f"\ufeffa/1.png\r\n\r\nb/1.png\n2.png\n{tmp_path}/other/3.png\n", encoding="utf-8")
    assert relatives(listing) == ["a/1.png", "b/1.png", "2.png", "3.png"]
    assert relatives("-", stdin=["2.png\n", "../other/3.png\n"]) == ["2.png", "3.png"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"2.png\nno\xff.png\n")))
    refs = find_images(["-"])
    assert [ref.error is None for ref in refs] == [True, False] and "no%FF.png" in str(refs[1].error)
    listing.write_text("")
    assert "names no images" in str(find_images([listing])[0].error)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    make(tmp_path, "1.png")
    (tmp_path / "list.txt").write_text("\ufeff1.png\n", encoding="utf-8")
    assert relatives(tmp_path / "list.txt") == ["1.png"]
    (ref,) = find_images(["-"], stdin=[f"\ufeff{tmp_path / '1.png'}\r\n"])
    assert ref.error is None and ref.path == tmp_path / "1.png"


def test_circular_links_end_and_linked_folders_are_followed(tmp_path: Path) -> None:
    make(tmp_path, "in/a.png", "far/b.png")
    (tmp_path / "in/again").symlink_to(tmp_path / "in")
    (tmp_path / "in/far").symlink_to(tmp_path / "far")
    (tmp_path / "far/back").symlink_to(tmp_path / "in")
    (tmp_path / "in/self").symlink_to("self")
    assert relatives(tmp_path / "in") == ["a.png", "far/b.png"]
    assert relatives(tmp_path / "in/**/*.png") == ["a.png", "far/b.png"]


def test_a_broken_link_is_listed_so_that_reading_reports_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("gone.png")
    refs = find_images([tmp_path])
    assert [ref.relative.name for ref in refs] == ["a.png"]


def test_the_same_file_appears_once(tmp_path: Path) -> None:
    make(tmp_path, "s/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "s")
    inputs = [tmp_path / "s/a.png", tmp_path / "s", tmp_path / "s/../s/a.png", tmp_path / "link"]
    assert len([ref for ref in find_images(inputs) if ref.error is None]) == 1


def test_equal_names_grow_by_their_folders(tmp_path: Path) -> None:
    make(tmp_path, "bottle/test/good/0.png", "cable/test/good/0.png", "cable/test/bad/1.png")
    assert relatives(tmp_path / "bottle/test", tmp_path / "cable/test") == [
        "bottle/test/good/0.png",
        "cable/test/bad/1.png",
        "cable/test/good/0.png",
    ]
    assert relatives(tmp_path / "bottle/test/good/0.png", tmp_path / "cable/test/bad/1.png") == [
        "0.png",
        "1.png",
    ]


def test_names_that_differ_by_ending_only_stay_apart(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "a.jpg", "a_png.bmp", "scan.001", "scan.002")
    names = relatives(tmp_path, tmp_path / "scan.001", tmp_path / "scan.002")
    assert len({Path(name).with_suffix("") for name in names}) == len(names) == 5


def test_parent_steps_never_escape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/x.png", "b/x.png")
    monkeypatch.chdir(tmp_path / "a")
    names = relatives("x.png", "../b/x.png", "..")
    assert names == ["a/x.png", "b/x.png"]


def test_undecodable_names_get_printable_output_paths(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        Path(os.fsdecode(path)).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert relatives(tmp_path) == ["caf%E9.png"]


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from("abc"), max_size=3),
            st.lists(st.sampled_from("ab"), max_size=2),
            st.sampled_from(["1.png", "1.jpg", "1_jpg.png", "1", "1-2.png"]),
        ),
        max_size=12,
    )
)
def test_output_names_are_unique_and_inside(cases: list[tuple[list[str], list[str], str]]) -> None:
    pairs = {}
    for root, below, name in cases:
        folder = Path("/", *root)
        pairs.setdefault(Path(folder, *below, name), folder)
    names = _unique_names(list(pairs.items()))
    assert len({name.with_suffix("") for name in names}) == len(pairs)
    assert not any(name.is_absolute() or ".." in name.parts for name in names)
