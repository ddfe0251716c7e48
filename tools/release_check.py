"""Check that a release can be made: change log, source archive, wheel, and the wheel at work in a fresh environment.

    python tools/release_check.py               # or: make release-check
    python tools/release_check.py --reuse       # the packages that blemish needs are taken from this environment
    python tools/release_check.py --final       # the change log must have a date too

The archive is made of the last commit, the wheel of the unpacked archive. Every file of `src/blemish` must
be in the wheel, and nothing else. Then the wheel is installed into an empty environment, where `blemish predict`
scores an example picture without a network. Prints a line for each step; exit status 1 at the first that fails. The
two files stay in `dist/`.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 40_000_000
HEADING = re.compile(r"^## (\S+) \((unreleased|\d{4}-\d{2}-\d{2})\)$", re.M)
LEFT_OUT = ("tests/golden/", "docs/images/")
EXAMPLE = "examples/cookie_broken_1.jpg"


class Fault(Exception):
    """What keeps a release from being made, in one line."""


def version(root: Path = ROOT) -> str:
    """The package's version, as its source says."""
    text = (root / "src" / "blemish" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.M)
    if found is None:
        raise Fault('src/blemish/__init__.py has no line __version__ = "…"')
    return found[1]


def check_changelog(text: str, wanted: str, final: bool) -> str:
    """The heading of `wanted`, which must be the first, with entries below, and with a date when `final`."""
    found = HEADING.search(text)
    if found is None:
        raise Fault(f"CHANGELOG.md has no heading such as: ## {wanted} (unreleased)")
    if found[1] != wanted:
        raise Fault(
            f"CHANGELOG.md begins with {found[1]}, the package is {wanted}; add a heading or set the version"
        )
    if final and found[2] == "unreleased":
        raise Fault(f"CHANGELOG.md: put the date in place of (unreleased) behind {wanted}")
    following = HEADING.search(text, found.end())
    if not re.search(r"^- \S", text[found.end() : following.start() if following else None], re.M):
        raise Fault(f"CHANGELOG.md says nothing of {wanted}")
    return found[0]


def tracked(root: Path, *places: str) -> list[str]:
    """The files below `places` in the last commit, relative to `root`."""
    command = ["git", "ls-tree", "-r", "-z", "--name-only", "HEAD", *places]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name]


def committed(root: Path, tree: Path) -> None:
    """Write the last commit's files into the new folder `tree`; what is not committed is no part of a release."""
    packed = subprocess.run(
        ["git", "archive", "--format=tar", "HEAD"], cwd=root, check=True, capture_output=True
    )
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as content:
        content.extractall(tree, filter="data")


def check_wheel(wheel: Path, source_files: Iterable[str]) -> int:
    """How many files of the package a wheel has: those of `src/`, with licences and entry point, and nothing else."""
    wanted = {name.removeprefix("src/") for name in source_files}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    extra = {name for name in names if ".dist-info/" in name.partition("/")[0] + "/"}
    if missing := sorted(wanted - names):
        raise Fault(f"{wheel.name} lacks {missing[0]} and {len(missing) - 1} more")
    if surplus := sorted(names - extra - wanted):
        raise Fault(f"{wheel.name} has {surplus[0]} and {len(surplus) - 1} more that are not in git")
    for ending in ("METADATA", "RECORD", "entry_points.txt", "licenses/LICENSE", "licenses/NOTICE"):
        if not any(name.endswith(f".dist-info/{ending}") for name in extra):
            raise Fault(f"{wheel.name} has no {ending} in its .dist-info")
    return len(wanted)


def check_archive(archive: Path, source_files: Iterable[str]) -> int:
    """How many files a source archive has; those of `src/` must be among them, golden data and pictures not."""
    with tarfile.open(archive) as content:
        names = {member.name.partition("/")[2] for member in content if member.isfile()}
    if missing := sorted(set(source_files) - names):
        raise Fault(f"{archive.name} lacks {missing[0]} and {len(missing) - 1} more")
    if heavy := sorted(name for name in names if name.startswith(LEFT_OUT)):
        raise Fault(f"{archive.name} has {heavy[0]}; see [tool.hatch.build.targets.sdist] in pyproject.toml")
    return len(names)


def check_size(file: Path) -> str:
    """Megabytes of a file, which must be below the limit."""
    size = file.stat().st_size
    if size >= LARGEST:
        raise Fault(f"{file.name} has {size / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f}")
    return f"{size / 1e6:.1f} MB"


def run(command: Sequence[str | Path], place: Path, **environment: str) -> str:
    """Standard output of a command that must end with status 0."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=place,
        env=own | environment,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
        raise Fault(f"{' '.join(map(str, command[1:4]))} … ended with status {done.returncode}: {last[0]}")
    return done.stdout


def environment(place: Path, reuse: bool) -> Path:
    """The Python of a new empty environment. reuse: the packages of this one can be imported there, ours cannot."""
    venv.create(place, with_pip=not reuse, symlinks=os.name != "nt")
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if reuse:
        purelib = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], place).strip()
        # A path file's folders are searched, yet path files in them, such as that of an editable install, are not read.
        Path(purelib, "reused.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def build(place: Path, out: Path) -> tuple[Path, Path]:
    """Make the source archive of the last commit, and the wheel of the unpacked archive; (archive, wheel)."""
    tree = place / "tree"
    committed(ROOT, tree)
    python = environment(place / "build", reuse=False)
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "hatchling>=1.24"], place)
    made = place / "made"
    run([python, "-m", "hatchling", "build", "-t", "sdist", "-d", made], tree)
    archive = next(made.glob("*.tar.gz"))
    with tarfile.open(archive) as content:
        content.extractall(place / "unpacked", filter="data")
    run([python, "-m", "hatchling", "build", "-t", "wheel", "-d", made], next((place / "unpacked").iterdir()))
    out.mkdir(exist_ok=True)
    return tuple(Path(shutil.copy2(file, out)) for file in (archive, next(made.glob("*.whl"))))  # type: ignore[return-value]


def install_and_predict(place: Path, wheel: Path, wanted: str, reuse: bool) -> float:
    """Install the wheel into a fresh environment, score an example there without a network; the score."""
    python = environment(place / "fresh", reuse)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        python,
        "install",
        "--quiet",
    ]
    run([*pip, *(["--no-deps"] if reuse else ["-c", ROOT / "constraints.txt"]), wheel], place)
    told = run([python, "-c", "import blemish; print(blemish.__version__, blemish.__file__)"], place).split()
    if told[0] != wanted or not Path(told[1]).is_relative_to(place / "fresh"):
        raise Fault(f"the fresh environment imports blemish {told[0]} from {told[1]}")
    program = python.with_name("blemish.exe" if os.name == "nt" else "blemish")
    run([program, "predict", ROOT / EXAMPLE, "-o", place / "out"], place, HF_HUB_OFFLINE="1")
    lines = (place / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    score = json.loads(lines[0]).get("score") if len(lines) == 1 else None
    if not isinstance(score, float) or not math.isfinite(score):
        raise Fault(f"blemish predict wrote {lines[:1]} for {EXAMPLE}")
    return score


def main() -> None:
    """Print a line for each step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reuse", action="store_true", help="take the needed packages from this environment")
    parser.add_argument(
        "--final", action="store_true", help="the change log must have the date of the release"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the two files")
    given = parser.parse_args()
    try:
        if subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=ROOT, check=False).returncode:
            print("note: changes that are not committed are no part of this", flush=True)
        wanted = version()
        heading = check_changelog((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), wanted, given.final)
        print(f"change log: {heading}", flush=True)
        files = tracked(ROOT, "src/blemish")
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder).resolve()
            archive, wheel = build(place, given.out)
            print(f"{archive.name}: {check_archive(archive, files)} files, {check_size(archive)}", flush=True)
            print(f"{wheel.name}: {check_wheel(wheel, files)} files, {check_size(wheel)}", flush=True)
            score = install_and_predict(place, wheel, wanted, given.reuse)
            print(f"fresh environment: {Path(EXAMPLE).name} has score {score:.4f}", flush=True)
    except Fault as fault:
        sys.exit(f"no release: {fault}")
    print(f"{wanted} can be released")


if __name__ == "__main__":
    main()
