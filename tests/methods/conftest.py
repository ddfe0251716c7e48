"""The backbone that the tests of the methods share; makes the helpers here and `golden_data` importable."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from small_clip import CONFIG, make_clip  # noqa: E402

from blemish.clip.model import CLIP  # noqa: E402


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return make_clip(CONFIG)
