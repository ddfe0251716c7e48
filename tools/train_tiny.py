"""Make the embedded backbone `tiny`: a small CLIP trained on generated pictures with captions.

    python tools/train_tiny.py backbone -o runs/tiny     # resumable: run the same line again after a stop
    python tools/train_tiny.py install -o runs/tiny      # its weights, blended and halved, into src/blemish/clip/tiny
    python tools/make_checkpoints.py -o runs/embedded    # then the methods' own checkpoints

The image tower stands on an ImageNet stem (`lite_stem.py`), frozen for the first phases. Three things are learned at
once (`tiny_losses.py`): image-text contrast over captions; the state of the whole image against normal and anomalous
prompts; the state of every patch (several depths, and the V-V stream that AnomalyCLIP reads) against the same prompts,
inside and outside the masks. RUN/log.jsonl holds the losses, and the figures on pictures of held-out families.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from blemish import synth
from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.model import CLIP
from blemish.clip.tokenizer import Tokenizer
from blemish.clip.weights import save_clip
from blemish.machine import keep_freed_memory
from lite_stem import load_stem
from tiny_losses import NOUNS, SPEC, Losses, encode, normalise, state_prompts
from tiny_pictures import FAMILIES, batches

VOCABULARY = 2048
CONTEXT = 77
TINY = Path(__file__).parents[1] / "src/blemish/clip/tiny"
CONFIG = CLIPConfig(
    embed_dim=128,
    vision=VisionConfig(
        width=192, layers=6, heads=3, patch_size=16, image_size=224, mlp_width=768, stem="lite"
    ),
    text=TextConfig(
        width=128,
        layers=4,
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
VALIDATION = 192
SAVE_SECONDS, LOG_STEPS, VALIDATE_PICTURES = 120, 25, 4800


@dataclass(frozen=True)
class Phase:
    """Train until `pictures` have been seen in all, on pictures of `least` to `most` pixels, more of them small.

    patches: of a batch. families: of the generator, one of FAMILIES. stem: how many of the stem's last blocks learn
    too, at a tenth of the rate.
    """

    pictures: int
    least: int
    most: int
    patches: int
    lr: float
    final_lr: float
    families: str = "training"
    stem: int = 0


# Constant rate on small pictures first, larger ones later, then a decay; then all of it once more at all sizes. The
# held-out families, which judge the first phases, join in the third.
RECIPE = (
    Phase(36_000, 128, 192, 4800, 8e-4, 8e-4),
    Phase(66_000, 160, 256, 6400, 8e-4, 6e-4),
    Phase(85_000, 192, 512, 7200, 6e-4, 2e-6, families="all", stem=3),
    Phase(140_000, 192, 512, 7200, 6e-4, 2e-6, families="all", stem=3),
)

BLENDED, BLEND = 3, 0.2
"""What is installed: the stem as it is at the end, and towers that are BLEND of the end's and for the rest those of the
end of phase BLENDED. Phase 4 is better on generated pictures, its towers worse on some real ones (docs/tiny.md)."""


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


def rate(seen: int, warmup: int = 3000) -> tuple[Phase, float]:
    """The phase that `seen` pictures fall in, and the learning rate there."""
    start = 0
    for phase in RECIPE:
        if seen < phase.pictures:
            along = (seen - start) / (phase.pictures - start)
            return phase, (phase.lr + (phase.final_lr - phase.lr) * along) * min(1.0, (seen + 48) / warmup)
        start = phase.pictures
    return RECIPE[-1], 0.0


def parameter_groups(clip: CLIP) -> list[dict[str, Any]]:
    """Weights with decay, vectors without, and the stem's blocks (learned late) at a tenth of the rate."""
    stem = {id(p): p for block in clip.visual.stem.blocks for p in block.parameters()}
    rest = [p for p in clip.parameters() if p.requires_grad and id(p) not in stem]
    return [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.05, "scale": 1.0},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0, "scale": 1.0},
        {"params": list(stem.values()), "weight_decay": 0.0, "scale": 0.1},
    ]


def begin_phase(clip: CLIP, phase: Phase, wanted: Any) -> None:
    """Tell the drawing processes the sizes, and thaw what learns from now on."""
    wanted[:] = [phase.least, phase.most, phase.patches, list(FAMILIES).index(phase.families)]
    blocks = list(clip.visual.stem.blocks)
    for block in blocks[len(blocks) - phase.stem :]:
        block.requires_grad_(True)


class Validation:
    """Fixed pictures of one choice of families, and how well plain prompts find their defects."""

    def __init__(self, families: str, size: int = 256, seed: int = 987_654) -> None:
        rng = np.random.default_rng(seed)
        chosen = FAMILIES[families]
        self.pictures = [
            synth.draw(rng, size, defect=bool(i % 2), families=chosen) for i in range(VALIDATION)
        ]
        self.labels = np.array([p.mask.any() for p in self.pictures])

    @torch.inference_mode()
    def __call__(self, clip: CLIP) -> dict[str, float]:
        """Image AUROC of the class feature and of the map's peak, pixel AUROC of both streams' last layer."""
        texts = [f"a photo of a {s} {n}" for s in ("good", "damaged") for n in NOUNS]
        good, bad = encode(clip, texts).split(len(NOUNS))
        state = F.normalize(bad.mean(0) - good.mean(0), dim=-1)
        rows = [self._look(clip, i, state) for i in range(0, len(self.pictures), 16)]
        masks = np.stack([p.mask[::4, ::4] for p in self.pictures])
        found = {name: torch.cat([row[name] for row in rows]).numpy() for name in rows[0]}
        result = {"val_image": float(roc_auc_score(self.labels, found.pop("class")))}
        for stream, maps in found.items():
            peak = np.sort(maps.reshape(len(maps), -1))[:, -48:].mean(1)
            result[f"val_peak_{stream}"] = float(roc_auc_score(self.labels, peak))
            result[f"val_pixel_{stream}"] = float(roc_auc_score(masks.ravel(), maps.ravel()))
        return result

    def _look(self, clip: CLIP, first: int, state: Tensor) -> dict[str, Tensor]:
        pictures = self.pictures[first : first + 16]
        features = clip.encode_image(normalise(np.stack([p.image for p in pictures]), clip), SPEC)
        side = len(pictures[0].mask) // 4
        found = {"class": F.normalize(features.class_feature, dim=-1) @ state}
        for stream in ("qk", "vv"):
            tokens = F.normalize(features.tokens[stream][-1][:, 1:], dim=-1)
            grid = (tokens @ state).unflatten(1, features.grid)[:, None]
            found[stream] = F.interpolate(grid, size=(side, side), mode="bilinear")[:, 0]
        return found


class Log:
    """Running means of the terms, and the time spent over all sittings, into one file of JSON lines."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.before, self.started = path, seconds, time.time()
        self.mean: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        return self.before + time.time() - self.started

    def add(self, terms: dict[str, Tensor]) -> None:
        for name, term in terms.items():
            value = float(term.detach())
            self.mean[name] = 0.97 * self.mean.get(name, value) + 0.03 * value

    def write(self, **values: float) -> None:
        line = {"seconds": round(self.seconds, 1), **values}
        with self.path.open("a") as file:
            file.write(json.dumps({k: round(v, 6) for k, v in line.items()}) + "\n")


def train_backbone(folder: Path, workers: int, threads: int) -> None:
    """Walk through RECIPE, saving every few minutes; started again, it goes on where it was."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    folder.mkdir(parents=True, exist_ok=True)
    clip = build_clip(folder)
    optimiser = torch.optim.AdamW(parameter_groups(clip), betas=(0.9, 0.98))
    state_file, seen, seconds = folder / "state.pt", 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, map_location="cpu", weights_only=True)
        clip.load_state_dict(state["clip"])
        optimiser.load_state_dict(state["optimiser"])
        seen, seconds = state["seen"], state["seconds"]
    wanted = mp.get_context("spawn").Array("i", 4)
    begin_phase(clip, rate(seen)[0], wanted)
    stream = batches(1_000_000 + seen, wanted, workers)
    losses, log = Losses(clip.train(), np.random.default_rng(seen)), Log(folder / "log.jsonl", seconds)
    validation = Validation("held_out")
    saved, judged = time.time(), seen
    step = 0
    while seen < RECIPE[-1].pictures:
        phase, lr = rate(seen)
        begin_phase(clip, phase, wanted)
        batch = next(stream)
        log.add(update(clip, optimiser, losses(batch), lr))
        seen, step = seen + len(batch), step + 1
        if step % LOG_STEPS == 0:
            log.write(seen=seen, size=phase.most, lr=lr, loss=sum(log.mean.values()), **log.mean)
        ended = seen >= RECIPE[-1].pictures
        if seen - judged >= VALIDATE_PICTURES or ended:
            judged = seen
            log.write(seen=seen, **validation(clip.eval()))
            clip.train()
        if time.time() - saved > SAVE_SECONDS or ended:
            saved = time.time()
            save_state(state_file, clip, optimiser, seen, log.seconds)
        if rate(seen)[0] is not phase or ended:
            save_state(phase_file(folder, RECIPE.index(phase) + 1), clip, optimiser, seen, log.seconds)


def update(
    clip: CLIP, optimiser: torch.optim.Optimizer, terms: dict[str, Tensor], lr: float
) -> dict[str, Tensor]:
    """One step at the rate lr; returns the terms."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["scale"]
    optimiser.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    torch.nn.utils.clip_grad_norm_([p for p in clip.parameters() if p.requires_grad], 1.0)
    optimiser.step()
    return terms


def save_state(path: Path, clip: CLIP, optimiser: torch.optim.Optimizer, seen: int, seconds: float) -> None:
    """Everything needed to go on, written whole."""
    state = {"clip": clip.state_dict(), "optimiser": optimiser.state_dict(), "seen": seen, "seconds": seconds}
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def phase_file(folder: Path, number: int) -> Path:
    """The state at the end of a phase, counted from 1."""
    return folder / f"phase_{number}.pt"


def blended(folder: Path) -> dict[str, Tensor]:
    """Weights between those of two phases, as BLENDED and BLEND say."""
    first, last = (
        torch.load(phase_file(folder, number), map_location="cpu", weights_only=True)["clip"]
        for number in (BLENDED, len(RECIPE))
    )
    kept = [name for name in last if name.startswith("visual.stem.") and "proj" not in name]
    return {
        name: value
        if name in kept or not value.is_floating_point()
        else torch.lerp(first[name], value, BLEND)
        for name, value in last.items()
    }


def install(folder: Path, target: Path) -> None:
    """Write the blended backbone in half precision, with its configuration and tokenizer, into `target`."""
    clip = CLIP(CONFIG)
    clip.load_state_dict(blended(folder))
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
