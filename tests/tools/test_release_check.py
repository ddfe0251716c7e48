"""What the check of a release refuses; the whole of it builds and installs, and is run by `make release-check`."""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from release_check import (
    Fault,
    check_archive,
    check_changelog,
    check_size,
    check_wheel,
    environment,
    run,
    version,
)

FILES = ["src/blemish/__init__.py", "src/blemish/clip/tiny/model.safetensors"]
INFO = [
    f"blemish-0.1.0.dist-info/{name}"
    for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "licenses/NOTICE")
]
LOG = "# Changelog\n\n## 0.2.0 (unreleased)\n\n### Added\n- A thing.\n\n## 0.1.0 (2026-01-02)\n\n- First.\n"


def wheel_of(folder: Path, names: list[str]) -> Path:
    path = folder / "blemish-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return path


def test_the_version_is_that_of_the_package() -> None:
    import blemish

    assert version() == blemish.__version__


def test_the_change_log_of_this_repository_fits_the_version() -> None:
    text = (Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")
    assert version() in check_changelog(text, version(), final=False)


def test_a_change_log_that_fits() -> None:
    assert check_changelog(LOG, "0.2.0", final=False) == "## 0.2.0 (unreleased)"
    dated = LOG.replace("unreleased", "2026-03-04")
    assert check_changelog(dated, "0.2.0", final=True) == "## 0.2.0 (2026-03-04)"


@pytest.mark.parametrize(
    ("text", "wanted", "final", "words"),
    [
        (LOG, "0.3.0", False, "begins with 0.2.0"),
        (LOG, "0.1.0", False, "begins with 0.2.0"),
        (LOG, "0.2.0", True, "the date"),
        (LOG.replace("- A thing.", ""), "0.2.0", False, "says nothing of 0.2.0"),
        ("# Changelog\n", "0.2.0", False, "no heading"),
    ],
)
def test_a_change_log_that_does_not_fit(text: str, wanted: str, final: bool, words: str) -> None:
    with pytest.raises(Fault, match=words):
        check_changelog(text, wanted, final)


def test_wheels(tmp_path: Path) -> None:
    inside = [name.removeprefix("src/") for name in FILES]
    assert check_wheel(wheel_of(tmp_path, inside + INFO), FILES) == 2
    for names, words in (
        (inside[:1] + INFO, "lacks blemish/clip/tiny/model.safetensors"),
        ([*inside, "blemish/__pycache__/a.pyc", *INFO], "not in git"),
        ([*inside, "tests/test_a.py", *INFO], "not in git"),
        (inside + INFO[:-1], "no licenses/NOTICE"),
    ):
        with pytest.raises(Fault, match=words):
            check_wheel(wheel_of(tmp_path, names), FILES)


def test_archives(tmp_path: Path) -> None:
    for extra, words in (("docs/index.md", None), ("tests/golden/a/b.packed", "tests/golden")):
        path = tmp_path / "a.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name in [*FILES, extra]:
                archive.addfile(tarfile.TarInfo(f"blemish-0.1.0/{name}"), io.BytesIO())
        if words is None:
            assert check_archive(path, FILES) == 3
            with pytest.raises(Fault, match=r"lacks src/blemish/new\.py"):
                check_archive(path, [*FILES, "src/blemish/new.py"])
        else:
            with pytest.raises(Fault, match=words):
                check_archive(path, FILES)


def test_large_files(tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    path.write_bytes(b"x" * 1000)
    assert check_size(path) == "0.0 MB"
    with path.open("wb") as file:
        file.truncate(40_000_000)
    with pytest.raises(Fault, match=r"40\.0 MB"):
        check_size(path)


def test_a_failed_command_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(Fault, match=r"status 3: so it is$"):
        run([sys.executable, "-c", "import sys; print('so it is', file=sys.stderr); sys.exit(3)"], tmp_path)


@pytest.mark.slow
def test_a_reused_environment_has_the_packages_and_not_ours(tmp_path: Path) -> None:
    python = environment(tmp_path / "fresh", reuse=True)
    code = (
        "import importlib.util as u; print(u.find_spec('numpy') is not None, u.find_spec('blemish') is None)"
    )
    assert run([python, "-c", code], tmp_path).split() == ["True", "True"]
