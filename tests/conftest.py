"""What several test modules share: a small random CLIP on disk, checkpoints for it, and drawn pictures."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

# Test processes share the cores; threads of their own would wait for one another. Set before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def heard_warnings(caplog: pytest.LogCaptureFixture) -> None:
    """Warnings are heard in every test, whatever the commands, Ray or nncf set on its handlers in an earlier one."""
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    caplog.handler.setLevel(logging.NOTSET)
    for name in [n for n in root.manager.loggerDict if n.split(".")[0] == "blemish"]:
        logger = logging.getLogger(name)
        logger.setLevel(logging.NOTSET)
        logger.handlers.clear()
        logger.propagate, logger.disabled = True, False


@pytest.fixture(scope="session")
def small_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random CLIP of 4 blocks and patches of 8 pixels, made for 32-pixel inputs."""
    import torch

    from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
    from blemish.clip.model import CLIP
    from blemish.clip.weights import save_clip

    torch.manual_seed(0)
    vision = VisionConfig(width=32, layers=4, heads=2, patch_size=8, image_size=32, mlp_width=64)
    text = TextConfig(width=24, layers=3, heads=2, mlp_width=48)
    clip = CLIP(CLIPConfig(embed_dim=24, vision=vision, text=text, source="test", name="small"))
    folder = tmp_path_factory.mktemp("backbone")
    save_clip(clip.reset_parameters(), folder)
    return folder


@pytest.fixture(scope="session")
def small_checkpoint(small_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a checkpoint of a method on the small backbone, with thresholds unless given otherwise."""
    import dataclasses

    import torch

    from blemish.checkpoint import CheckpointMeta, save_checkpoint
    from blemish.clip.weights import load_clip
    from blemish.methods import build

    clip = load_clip(small_backbone)
    folder = tmp_path_factory.mktemp("checkpoints")

    def make(method: str = "anomaly_clip", options: dict | None = None, **meta: object) -> Path:
        torch.manual_seed(1)
        built = build(method, clip, **(options or {}))
        known = {
            "backbone": str(small_backbone),
            "backbone_fingerprint": clip.fingerprint,
            "backbone_config": clip.config.to_dict(),
            "options": dataclasses.asdict(built.config),
            "auxiliary": "drawn",
            "image_size": 48,
            "image_threshold": 0.5,
            "pixel_threshold": 0.5,
        }
        path = folder / f"{method}-{len(list(folder.iterdir()))}.safetensors"
        save_checkpoint(path, built, CheckpointMeta(method, **(known | meta)))
        return path

    return make


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., Path]:
    """Draw a picture of its own for every name into `tmp_path` and return its path."""

    def make(name: str, size: tuple[int, int] = (40, 30)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(name, size).save(path)
        return path

    return make


def picture(seed: str, size: tuple[int, int]) -> Image.Image:
    """Noise with a dark disc, the same for the same seed."""
    generator = np.random.default_rng(list(seed.encode()))
    image = Image.fromarray(generator.integers(90, 200, (size[1], size[0], 3), dtype=np.uint8))
    x, y = (int(generator.integers(0, side)) for side in size)
    ImageDraw.Draw(image).ellipse((x - 4, y - 4, x + 4, y + 4), fill=(10, 10, 10))
    return image
