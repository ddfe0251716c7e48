"""Make the embedded backbone `tiny`: a small CLIP trained on generated pictures with captions.

    python tools/train_tiny.py backbone -o runs/tiny     # resumable: run the same line again after a stop
    python tools/train_tiny.py install -o runs/tiny      # its weights, as half precision, into src/blemish/clip/tiny
    python tools/train_tiny_methods.py                   # then the methods' own checkpoints

The image tower stands on a frozen ImageNet stem (`lite_stem.py`). Three things are learned at once: image-text
contrast over captions; the state of the whole image against normal and anomalous prompts; the state of every patch
(several depths, and the V-V stream that AnomalyCLIP reads) against the same prompts, inside and outside the masks.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blemish import synth
from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.model import CLIP
from blemish.clip.tokenizer import Tokenizer
from blemish.clip.weights import save_clip
from blemish.types import FeatureSpec
from lite_stem import load_stem

VOCABULARY = 2048
CONTEXT = 77
TEMPERATURE = 0.07
TINY = Path(__file__).parents[1] / "src/blemish/clip/tiny"
CONFIG = CLIPConfig(
    embed_dim=128,
    vision=VisionConfig(
        width=256, layers=6, heads=4, patch_size=16, image_size=224, mlp_width=1024, stem="lite"
    ),
    text=TextConfig(
        width=128,
        layers=6,
        heads=2,
        mlp_width=512,
        context_length=CONTEXT,
        vocab_size=VOCABULARY,
        tokenizer="own",
    ),
    activation="gelu",
    source="blemish",
    name="tiny",
    mean=(127 / 255, 127 / 255, 127 / 255),
    std=(128 / 255, 128 / 255, 128 / 255),
)
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


@dataclass(frozen=True)
class Phase:
    """Train until `pictures` have been seen in all, on pictures of `size` pixels."""

    pictures: int
    size: int
    batch: int
    lr: float
    final_lr: float


# constant rate on small pictures first, full size last, then a decay
RECIPE = (
    Phase(16_000, 160, 48, 6e-4, 6e-4),
    Phase(25_000, 224, 48, 6e-4, 4e-4),
    Phase(31_000, 256, 48, 4e-4, 2e-6),
)


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


def draw_worker(queue: Any, seed: int, size: Any, batch: int) -> None:
    """Draw batches for ever; the wanted picture size is read from the shared value before each batch."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    while True:
        side = int(size.value)
        pictures = [synth.draw(rng, side) for _ in range(batch)]
        captions = [synth.captions(p, rng, 2) for p in pictures]
        queue.put(
            (
                side,
                np.stack([p.image for p in pictures]),
                np.stack([p.mask for p in pictures]),
                captions,
                [p.shape for p in pictures],
                [p.defect_type for p in pictures],
            )
        )


def batches(seed: int, size: Any, batch: int, workers: int) -> Iterator[tuple[Any, ...]]:
    """Batches of the wanted size from background processes; stale sizes are dropped."""
    context = mp.get_context("spawn")
    queue = context.Queue(4)
    for i in range(workers):
        context.Process(target=draw_worker, args=(queue, seed + i, size, batch), daemon=True).start()
    while True:
        item = queue.get()
        if item[0] == int(size.value):
            yield item


def normalise(images: np.ndarray, config: CLIPConfig = CONFIG) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W)."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (config.mean, config.std))
    return (x - mean) / std


def encode(clip: CLIP, texts: list[str]) -> Tensor:
    """Unit text features (len(texts), D)."""
    assert clip.tokenizer is not None
    return F.normalize(clip.encode_text(clip.tokenizer(texts, CONTEXT)), dim=-1)


def build_clip(folder: Path) -> CLIP:
    """The untrained backbone with its frozen stem and a tokenizer trained on generated captions."""
    torch.manual_seed(0)
    clip = CLIP(CONFIG).reset_parameters()
    load_stem(clip.visual.stem)
    for name, parameter in clip.visual.stem.named_parameters():
        parameter.requires_grad_(name.startswith("proj"))
    path = folder / "tokenizer.json"
    if not path.exists():
        train_tokenizer(path)
    clip.tokenizer = Tokenizer.from_file(path)
    return clip


def train_tokenizer(path: Path) -> None:
    """A byte-level BPE of VOCABULARY entries, lower case, specials last."""
    from tokenizers import Tokenizer as Trained
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    rng = np.random.default_rng(0)
    texts = list(synth.vocabulary_texts())
    texts += [c for _ in range(3000) for c in synth.captions(synth.draw(rng, 64), rng, 3)]
    for _ in range(400):
        texts += [prompt for side in state_prompts(rng, 2) for prompt in side]
    trained = Trained(models.BPE(unk_token=None, end_of_word_suffix=""))
    trained.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    filler = VOCABULARY - 2 - trained.get_vocab_size()
    trained.add_tokens([f"<|unused{i}|>" for i in range(filler)])
    trained.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    path.parent.mkdir(parents=True, exist_ok=True)
    trained.save(str(path))


SPEC = FeatureSpec(
    layers=(0.25, 0.5, 0.75, 1.0),
    streams=("qk", "vv"),
    stream_start=0.25,
    projected=True,
    class_ln_post=False,
)


def patch_targets(mask: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """Share of each patch that is defective, tripled and cut at 1, so a third of a patch already counts: (B, N)."""
    cover = F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[:, None], grid)
    return (cover.flatten(1) * 3).clamp(max=1)


def step_losses(clip: CLIP, item: tuple[Any, ...], rng: np.random.Generator) -> dict[str, Tensor]:
    """The weighted terms of one batch."""
    _, images, masks, captions, shapes, defects = item
    mode = str(rng.choice(["bilinear", "bicubic", "bicubic_antialias"]))
    spec = FeatureSpec(**{**SPEC.__dict__, "position_resize": mode})
    features = clip.encode_image(normalise(images), spec)
    raw_class = F.normalize(features.class_feature, dim=-1)
    final = features.tokens["qk"][-1]
    normed_class = F.normalize(final[:, 0], dim=-1)

    nouns = tuple(dict.fromkeys([*NOUNS, *NOUNS, *shapes]))
    normal, abnormal = state_prompts(rng, 4, nouns)
    kinds = sorted({d for d in defects if d})
    texts = (
        [c[0] for c in captions]
        + [c[1] for c in captions]
        + normal
        + abnormal
        + [f"a {k.replace('_', ' ')}" for k in kinds]
    )
    unique = list(dict.fromkeys(texts))
    encoded = encode(clip, unique)
    text = encoded[[unique.index(t) for t in texts]]
    count = len(images)
    caption_text, rest = text[: 2 * count], text[2 * count :]
    state = rest[4:8] - rest[:4]
    kind_text = rest[8:]

    label = torch.from_numpy(masks.reshape(count, -1).any(1)).float()
    terms = {"caption": caption_loss(normed_class, caption_text, texts[: 2 * count], clip.logit_scale)}
    for name, cls in (("class", normed_class), ("class_raw", raw_class)):
        logits = cls @ state.T / TEMPERATURE
        terms[name] = 0.15 * F.binary_cross_entropy_with_logits(logits, label[:, None].expand_as(logits))
    target = patch_targets(masks, features.grid)
    weights = {("qk", 0): 0.1, ("qk", 1): 0.2, ("qk", 2): 0.4, ("qk", 3): 1.0, ("vv", 3): 0.6}
    for (stream, index), weight in weights.items():
        tokens = F.normalize(features.tokens[stream][index][:, 1:], dim=-1)
        logits = tokens @ state.T / TEMPERATURE
        goal = target[..., None].expand_as(logits)
        bce = F.binary_cross_entropy_with_logits(logits, goal, pos_weight=logits.new_tensor(2.0))
        terms[f"{stream}{index}"] = weight * bce
    if len(kinds) > 1:
        terms["kind"] = 0.2 * kind_loss(F.normalize(final[:, 1:], dim=-1), target, defects, kinds, kind_text)
    return terms


def caption_loss(image: Tensor, text: Tensor, texts: list[str], scale: Tensor) -> Tensor:
    """Symmetric contrast of B images with 2B captions; equal texts count as equally right. (B, D), (2B, D)."""
    logits = scale.exp().clamp(max=100) * image @ text.T
    count = len(image)
    same = torch.tensor([[a == b for b in texts] for a in texts], dtype=torch.float32)
    goal = torch.maximum(same[:count], same[count:])
    by_image = -(goal / goal.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    by_text = -(goal / goal.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return 0.3 * (by_image + by_text) / 2


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


def rate(seen: int, warmup: int = 3000) -> tuple[Phase, float]:
    """The phase that `seen` pictures fall in, and the learning rate there."""
    start = 0
    for phase in RECIPE:
        if seen < phase.pictures:
            along = (seen - start) / (phase.pictures - start)
            return phase, (phase.lr + (phase.final_lr - phase.lr) * along) * min(1.0, (seen + 48) / warmup)
        start = phase.pictures
    return RECIPE[-1], 0.0


def train_backbone(folder: Path, workers: int, threads: int) -> None:
    """Walk through RECIPE, saving every few minutes; started again, it goes on where it was."""
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    clip = build_clip(folder)
    learned = [p for p in clip.parameters() if p.requires_grad]
    decay = [p for p in learned if p.ndim > 1]
    plain = [p for p in learned if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    state_file, seen, seconds = folder / "state.pt", 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, map_location="cpu", weights_only=True)
        clip.load_state_dict(state["clip"])
        optimiser.load_state_dict(state["optimiser"])
        seen, seconds = state["seen"], state["seconds"]
    size = mp.get_context("spawn").Value("i", rate(seen)[0].size)
    stream = batches(1_000_000 + seen, size, RECIPE[0].batch, workers)
    rng = np.random.default_rng(seen)
    mean: dict[str, float] = {}
    clip.train()
    started = saved = time.time()
    step = 0
    while seen < RECIPE[-1].pictures:
        phase, lr = rate(seen)
        size.value = phase.size
        item = next(stream)
        for group in optimiser.param_groups:
            group["lr"] = lr
        terms = step_losses(clip, item, rng)
        loss = torch.stack(list(terms.values())).sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        seen += len(item[1])
        step += 1
        for name, value in terms.items():
            mean[name] = 0.97 * mean.get(name, float(value.detach())) + 0.03 * float(value.detach())
        if step % 25 == 0:
            spent = seconds + time.time() - started
            line = {
                "seen": seen,
                "size": phase.size,
                "lr": lr,
                "seconds": round(spent, 1),
                "loss": sum(mean.values()),
            }
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps({**line, **mean}) + "\n")
        if time.time() - saved > 120 or seen >= RECIPE[-1].pictures:
            saved = time.time()
            save_state(state_file, clip, optimiser, seen, seconds + saved - started)


def save_state(path: Path, clip: CLIP, optimiser: torch.optim.Optimizer, seen: int, seconds: float) -> None:
    """Everything needed to go on, written whole."""
    state = {"clip": clip.state_dict(), "optimiser": optimiser.state_dict(), "seen": seen, "seconds": seconds}
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def install(folder: Path, target: Path) -> None:
    """Write the backbone in half precision, with its configuration and tokenizer, into `target`."""
    clip = CLIP(CONFIG)
    clip.load_state_dict(torch.load(folder / "state.pt", map_location="cpu", weights_only=True)["clip"])
    clip.tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    save_clip(clip.half(), target)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["backbone", "install"])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--to", type=Path, default=TINY)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    if given.stage == "backbone":
        train_backbone(given.out, given.workers, given.threads)
    else:
        install(given.out, given.to)


if __name__ == "__main__":
    main()
