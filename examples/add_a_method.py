"""A method in one file: two learned vectors that move CLIP's own texts on a normal and a damaged class.

python examples/add_a_method.py [DATASET] [RUN]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import blemish
from blemish.clip.layers import resolve_layers
from blemish.clip.model import CLIP
from blemish.errors import BadOption
from blemish.methods import METHODS, check_options, option
from blemish.parts.losses import dice, focal
from blemish.parts.maps import gaussian_blur, softmax_then_upsample
from blemish.parts.prompt_bank import BankTexts, PromptBank
from blemish.parts.scores import cosine_logits, maximum
from blemish.types import FeatureSpec, ImageFeatures, Prediction, Target


# 1. The options: a frozen dataclass whose fields explain themselves.
@dataclass(frozen=True)
class TextShiftConfig:
    """Options of `text_shift`."""

    layer: int | float = option(1.0, "image block of the patches: number from 1, or fraction of the depth")
    temperature: float = option(0.07, "divisor of the cosine similarities")
    sigma: float = option(4.0, "standard deviation of the map's smoothing, in pixels", least=0)

    def __post_init__(self) -> None:
        check_options(self)
        if not self.temperature > 0:
            raise BadOption(f"option temperature is {self.temperature}; expected a number above 0")


# 2. The method: what it needs from the image tower, what it learns, its forward pass and its loss.
class TextShift(nn.Module):
    """Learned shifts (2, D) of the texts "a photo of a good / damaged <class>.", D being the joint width."""

    about: ClassVar[str] = "CLIP's texts on good and damaged, each moved by a learned vector"
    config_class: ClassVar[type] = TextShiftConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {"middle": {"layer": 0.5}}
    recipe: ClassVar[dict[str, Any]] = {
        "epochs": 5,
        "batch_size": 8,
        "seed": 0,
        "augmentation": "none",
        "learning_rate": 1e-2,
    }
    learns_without_masks: ClassVar[bool] = False
    uses_class_names: ClassVar[bool] = True
    map_range = score_range = (0.0, 1.0)
    clip: CLIP

    def __init__(self, clip: CLIP, config: TextShiftConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TextShiftConfig()
        object.__setattr__(self, "clip", clip)  # frozen: no part of what is learned, moved or saved here
        self.blocks = resolve_layers((config.layer,), clip.config.vision.layers)
        self.needs = FeatureSpec(layers=(config.layer,))
        self.texts = BankTexts(clip, PromptBank(("a good {}",), ("a damaged {}",), ("a photo of {}.",)))
        self.shift = nn.Parameter(torch.empty(2, clip.config.embed_dim))
        self.reset()
        self.to(clip.device)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Begin close to CLIP's own texts, which are unit vectors."""
        nn.init.normal_(self.shift, std=0.01, generator=generator)

    def parameter_groups(self, learning_rate: float = 1e-2) -> list[dict[str, Any]]:
        """Groups for `torch.optim.Adam`."""
        return [{"params": [self.shift], "lr": learning_rate}]

    def _maps(self, features: ImageFeatures, names: Sequence[str] | None) -> tuple[Tensor, Tensor]:
        """Probabilities (B, 2, H, W), normal first, and the texts (1 or B, 2, D), unit rows."""
        text = F.normalize(self.texts.per_image(names, len(features)) + self.shift, dim=-1)
        patches = features.tokens["qk"][0][:, 1:]  # without the class token
        logits = cosine_logits(patches, text) / self.config.temperature
        return softmax_then_upsample(logits, features.grid, features.image_size), text

    def forward(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction:
        """Maps (B, H, W) and scores (B,), both in [0, 1]: a score is its map's largest value."""
        maps, text = self._maps(features, class_names)
        smooth = gaussian_blur(maps[:, 1], self.config.sigma)
        return Prediction(map=smooth, score=maximum(smooth), details={"text_features": text})

    def loss(
        self, features: ImageFeatures, target: Target, class_names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Terms whose sum is the total: "focal" and "dice". Raises ValueError without masks."""
        if target.mask is None:
            raise ValueError("text_shift learns from masks only; give Target.mask")
        maps, _ = self._maps(features, class_names)
        mask = target.mask.float()
        return {"focal": focal(maps, mask), "dice": dice(maps[:, 1], mask)}


# 3. The name: one line. From here on every command and `blemish.load` know it.
METHODS["text_shift"] = f"{__name__}:TextShift"


def main(dataset: Path | None = None, run: Path = Path("text_shift")) -> None:
    """Train it, on drawn pictures when there is no dataset, and use the checkpoint."""
    from blemish.cli import main as command
    from blemish.synth import write_dataset

    data = dataset or write_dataset(run / "pictures", 8, seed=5, size=96)
    small = ["--epochs=2", "--batch-size=4", "--image-size=160", "--cache=off"]
    status = command(["train", "text_shift", f"--data={data}", f"--out={run / 'run'}", "--overwrite", *small])
    if status:
        sys.exit(status)
    detector = blemish.load(checkpoint=run / "run" / "checkpoint.safetensors", class_name="part")
    for result in detector.predict_many(sorted(data.glob("*/test/*/*.png"))[:4]):
        print(f"{result.score:.3f} {result.path}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
