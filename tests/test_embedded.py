"""What travels inside the package: small, whole, and able to find drawn defects it was not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

import blemish
from blemish import synth
from blemish.clip.weights import load_clip
from blemish.data.transforms import preprocess
from blemish.loading import EMBEDDED

EXAMPLES = Path(__file__).parents[1] / "examples"
SEED = 7_654_321


@pytest.fixture(scope="module")
def pictures() -> list[synth.Picture]:
    rng = np.random.default_rng(SEED)
    return [synth.draw(rng, 224, defect=bool(i % 2)) for i in range(56)]


def test_files_stay_small() -> None:
    sizes = {f.name: f.stat().st_size for f in EMBEDDED.iterdir()}
    assert sizes["model.safetensors"] + sizes["tokenizer.json"] <= 16_000_000
    assert sum(sizes.values()) <= 20_000_000


def test_backbone_is_a_whole_clip() -> None:
    clip = load_clip("tiny")
    assert clip.config.vision.layers >= 6
    assert clip.config.text.layers >= 1
    assert not any(p.requires_grad for p in clip.parameters())
    assert all(torch.isfinite(p).all() for p in clip.parameters())


@pytest.mark.parametrize("method", sorted({p.stem for p in EMBEDDED.glob("*.safetensors")} - {"model"}))
def test_each_embedded_checkpoint_finds_drawn_defects(method: str, pictures: list[synth.Picture]) -> None:
    # Smaller than by default: half the time, and the checkpoints stand it.
    detector = blemish.load(method, image_size=224)
    results = list(detector.predict_many(p.image for p in pictures))
    labels = [p.mask.any() for p in pictures]
    assert roc_auc_score(labels, [r.score for r in results]) > 0.65
    maps = np.concatenate([r.map[::4, ::4].ravel() for r in results])
    masks = np.concatenate([p.mask[::4, ::4].ravel() for p in pictures])
    assert roc_auc_score(masks, maps) > 0.8
    assert all(r.threshold is not None and r.mask is not None for r in results)


@pytest.mark.parametrize(
    "method", ["clip_ac", "anomaly_clip", "vcp_clip", "vcp_clip_plus", "vip2_clip", "gen_clip"]
)
def test_half_precision_keeps_maps_and_scores(method: str, pictures: list[synth.Picture]) -> None:
    exact, rough = (blemish.load(method, device="cpu", precision=name) for name in ("fp32", "bf16"))
    assert {p.dtype for p in rough.clip.visual.transformer.parameters()} == {torch.bfloat16}
    for picture in pictures[:4]:
        mine, other = rough.predict(picture.image), exact.predict(picture.image)
        assert np.corrcoef(mine.map.ravel(), other.map.ravel())[0, 1] > 0.999
        assert abs(mine.score - other.score) < 0.02


def test_prompts_mean_something(pictures: list[synth.Picture]) -> None:
    """Plain zero-shot CLIP with two prompts tells damaged from good pictures."""
    clip = load_clip("tiny")
    assert clip.tokenizer is not None
    with torch.inference_mode():
        text = clip.encode_text(clip.tokenizer(["a photo of a good object", "a photo of a damaged object"]))
        size = clip.config.vision.image_size
        inputs = [preprocess(p.image, size, clip.config.mean, clip.config.std) for p in pictures]
        image = clip.encode_image(torch.from_numpy(np.stack(inputs))).class_feature
        logits = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    assert roc_auc_score([p.mask.any() for p in pictures], logits[:, 1] - logits[:, 0]) > 0.7


def test_the_pits_of_the_example_stand_out() -> None:
    result = blemish.load().predict(EXAMPLES / "spindle_pitting_1.jpg")
    y, x = np.unravel_index(result.map.argmax(), result.map.shape)
    assert (480 < x < 620) and (110 < y < 180)
