"""What the backbone `tiny` learns from a batch of generated pictures: captions, whole-image state, patch states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from blemish.clip.model import CLIP
from blemish.machine import has_fast_bf16
from blemish.types import FeatureSpec
from tiny_pictures import Batch

TEMPERATURE = 0.07
REMEMBERED = 1024
"""Captions of earlier batches that serve as further negatives."""
GREY = 0.15
PEAK_PATCHES = 3
STATES = {
    0: ("good", "normal", "perfect", "flawless", "intact", "undamaged"),
    1: ("damaged", "defective", "anomalous", "damaged", "defective", "faulty"),
}
FORMS = (
    "{s} {n}.",
    "a photo of a {s} {n}",
    "a photo of the {s} {n}.",
    "a {s} {n}",
    "a close-up photo of a {s} {n}.",
)
NOUNS = ("object", "surface", "part", "item", "texture", "material", "product")
NORMAL_FORMS = (
    "{n}.",
    "a photo of a {n} without defect",
    "a {n} without flaw",
    "a photo of a {n} without damage.",
)
ABNORMAL_FORMS = (
    "damaged {n}.",
    "a photo of a {n} with a defect",
    "a {n} with a flaw",
    "a photo of a {n} with damage.",
)
SPEC = FeatureSpec(
    layers=(0.25, 0.5, 0.75, 1.0),
    streams=("qk", "vv"),
    stream_start=0.25,
    projected=True,
    class_ln_post=False,
)
VALUES_SHARE = 0.5
"""Share of batches on which the V-V stream is computed and learned, with twice its weight there."""
PATCH_WEIGHTS = {("qk", 0): 0.1, ("qk", 1): 0.2, ("qk", 2): 0.4, ("qk", 3): 1.0, ("vv", 3): 0.6}


def state_prompts(
    rng: np.random.Generator, count: int, nouns: tuple[str, ...] = NOUNS
) -> tuple[list[str], list[str]]:
    """`count` normal and `count` anomalous prompts about a generic noun, in the forms the methods use."""
    pairs: tuple[list[str], list[str]] = ([], [])
    for _ in range(count):
        noun = str(rng.choice(nouns))
        if rng.random() < 0.3:
            pairs[0].append(str(rng.choice(NORMAL_FORMS)).format(n=noun))
            pairs[1].append(str(rng.choice(ABNORMAL_FORMS)).format(n=noun))
        else:
            form = str(rng.choice(FORMS))
            for state in (0, 1):
                pairs[state].append(form.format(s=rng.choice(STATES[state]), n=noun))
    return pairs


def normalise(images: np.ndarray, clip: CLIP) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W), as the backbone's preprocessing does."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (clip.config.mean, clip.config.std))
    return (x - mean) / std


@contextmanager
def fast_arithmetic() -> Iterator[None]:
    """bf16 products where this processor has them; there, attention by plain products is the faster one."""
    if not has_fast_bf16():
        yield
        return
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", dtype=torch.bfloat16):
        yield


def encode(clip: CLIP, texts: list[str]) -> Tensor:
    """Unit text features (len(texts), D); equal texts are encoded once."""
    assert clip.tokenizer is not None
    unique = list(dict.fromkeys(texts))
    ids = clip.tokenizer(unique, clip.config.text.context_length)
    place = {text: i for i, text in enumerate(unique)}
    with fast_arithmetic():
        found = clip.encode_text(ids)
    return F.normalize(found.float(), dim=-1)[[place[text] for text in texts]]


def patch_targets(mask: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """Share of each patch that is defective, tripled and cut at 1, so a third of a patch already counts: (B, N)."""
    cover = F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[:, None], grid)
    return (cover.flatten(1) * 3).clamp(max=1)


class Losses:
    """The weighted terms of one batch after the other; remembers the captions of the last ones."""

    def __init__(self, clip: CLIP, rng: np.random.Generator) -> None:
        self.clip, self.rng = clip, rng
        self.texts: list[str] = []
        self.features = torch.zeros(0, clip.config.embed_dim)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Terms by name, to be summed up."""
        rng, count = self.rng, len(batch)
        mode = str(rng.choice(["bilinear", "bicubic", "bicubic_antialias"]))
        images = normalise(batch.images, self.clip)
        grey = torch.from_numpy(rng.random(count) < GREY)
        images[grey] = images[grey].mean(dim=1, keepdim=True)
        streams = SPEC.streams if rng.random() < VALUES_SHARE else ("qk",)
        with fast_arithmetic():
            features = self.clip.encode_image(images, replace(SPEC, position_resize=mode, streams=streams))
        raw_class = F.normalize(features.class_feature.float(), dim=-1)
        final = features.tokens["qk"][-1].float()
        normed_class = F.normalize(final[:, 0], dim=-1)

        nouns = tuple(dict.fromkeys([*NOUNS, *NOUNS, *batch.shapes]))
        normal, abnormal = state_prompts(rng, 4, nouns)
        kinds = sorted({d for d in batch.defects if d})
        captions = [c[0] for c in batch.captions] + [c[1] for c in batch.captions]
        sizes = [2 * count, len(batch.wrong), 4, 4, len(kinds)]
        named = [f"a {k.replace('_', ' ')}" for k in kinds]
        text = encode(self.clip, [*captions, *batch.wrong, *normal, *abnormal, *named])
        true, wrong, good, bad, kind = text.split(sizes)
        state = bad - good

        label = torch.from_numpy(batch.masks.reshape(count, -1).any(1)).float()
        terms = {"caption": self._captions(normed_class, true, wrong, captions, batch.wrong)}
        for name, cls in (("class", normed_class), ("class_raw", raw_class)):
            terms[name] = 0.2 * state_loss(cls, state, label)
        target = patch_targets(batch.masks, features.grid)
        for (stream, index), share in PATCH_WEIGHTS.items():
            if stream not in streams:
                continue
            weight = share / VALUES_SHARE if stream == "vv" else share
            tokens = F.normalize(features.tokens[stream][index][:, 1:].float(), dim=-1)
            terms[f"{stream}{index}"] = weight * state_loss(tokens, state, target, 2.0)
            if index == 3:
                terms[f"{stream}_peak"] = 0.2 * peak_loss(tokens, state, label)
        if len(kinds) > 1:
            found = F.normalize(final[:, 1:], dim=-1)
            terms["kind"] = 0.2 * kind_loss(found, target, batch.defects, kinds, kind)
        return terms

    def _captions(
        self, image: Tensor, true: Tensor, wrong: Tensor, texts: list[str], false: list[str]
    ) -> Tensor:
        """0.3 times `caption_loss` against this batch's captions, its false ones and the remembered ones."""
        others = torch.cat([wrong, self.features])
        loss = caption_loss(image, true, texts, others, [*false, *self.texts], self.clip.logit_scale)
        self.features = torch.cat([true.detach(), self.features])[:REMEMBERED]
        self.texts = [*texts, *self.texts][:REMEMBERED]
        return 0.3 * loss


def state_loss(vectors: Tensor, state: Tensor, target: Tensor, positive: float = 1.0) -> Tensor:
    """Binary cross-entropy of unit vectors (..., D) on the directions `state` (P, D), target (...) in [0, 1]."""
    logits = vectors @ state.T / TEMPERATURE
    goal = target[..., None].expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, goal, pos_weight=logits.new_tensor(positive))


def peak_loss(tokens: Tensor, state: Tensor, label: Tensor) -> Tensor:
    """The same for the mean of an image's `PEAK_PATCHES` most anomalous patches: (B, N, D), (P, D), (B,)."""
    logits = (tokens @ state.T / TEMPERATURE).topk(PEAK_PATCHES, dim=1).values.mean(dim=1)
    return F.binary_cross_entropy_with_logits(logits, label[:, None].expand_as(logits))


def caption_loss(
    image: Tensor, text: Tensor, texts: list[str], others: Tensor, other_texts: list[str], scale: Tensor
) -> Tensor:
    """Symmetric contrast of B images with 2B captions; equal texts count as equally right. (B, D), (2B, D).

    others, other_texts: captions of no image here, further negatives of the images where the words differ.
    """
    count = len(image)
    logits = scale.exp().clamp(max=100) * image @ torch.cat([text, others]).T
    same = torch.tensor([[a == b for b in (*texts, *other_texts)] for a in texts], dtype=torch.float32)
    goal = torch.maximum(same[:count], same[count:])
    by_image = -(goal / goal.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    own, right = logits[:, : 2 * count], goal[:, : 2 * count]
    by_text = -(right / right.sum(0, keepdim=True) * own.log_softmax(0)).sum(0).mean()
    return (by_image + by_text) / 2


def kind_loss(
    tokens: Tensor, target: Tensor, defects: list[str | None], kinds: list[str], text: Tensor
) -> Tensor:
    """The mean token inside each mask against the names of the defect types in the batch."""
    rows = [i for i, d in enumerate(defects) if d and float(target[i].max()) > 0.3]
    if not rows:
        return tokens.sum() * 0
    inside = target[rows][..., None]
    pooled = F.normalize((tokens[rows] * inside).sum(1) / inside.sum(1), dim=-1)
    goal = torch.tensor([kinds.index(str(defects[i])) for i in rows])
    return F.cross_entropy(pooled @ text.T / TEMPERATURE, goal)
