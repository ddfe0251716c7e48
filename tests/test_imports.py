"""`import blemish` and `blemish --help` are light, and the public names are the promised ones."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "huggingface_hub",
    "scipy",
    "numpy",
    "PIL",
    "tifffile",
    "rich",
    "tokenizers",
)


def cpu_seconds(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    "code",
    [
        "import blemish",
        "import blemish; assert blemish.methods() and blemish.datasets()",
        "from blemish.cli import main; assert main(['--help']) == 0",
        "from blemish.cli import main; assert main(['predict', '--help']) == 0",
        "from blemish.cli import main; assert main(['--version']) == 0",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    check = f"{code}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("arguments", [["-c", "import blemish"], ["-m", "blemish", "--help"]])
def test_cpu_time_stays_below_the_limit(arguments: list[str]) -> None:
    # The least of several: the first run compiles, and other processes disturb.
    assert min(cpu_seconds(arguments) for _ in range(3)) < 0.4


def test_public_names() -> None:
    import blemish
    from blemish.methods import METHODS

    assert blemish.methods() == tuple(METHODS)
    assert len(blemish.datasets()) == 26 and {"mvtec", "tn3k", "folder"} <= set(blemish.datasets())
    assert "tiny" in blemish.backbones() and "ViT-L-14-336" in blemish.backbones()
    assert set(blemish.__all__) <= set(dir(blemish))
    assert blemish.load and blemish.Detector and blemish.Result
    with pytest.raises(AttributeError, match="lod"):
        blemish.lod  # noqa: B018


def test_methods_is_a_function_and_a_package() -> None:
    code = "import blemish.methods, blemish; from blemish.methods import METHODS; print(*blemish.methods())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "anomaly_clip" in done.stdout
