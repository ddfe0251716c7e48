"""`blemish train`: learn a method's prompts and heads on an auxiliary dataset. The loop is `train`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from blemish.calibrate import ThresholdFinder, Thresholds
from blemish.checkpoint import CheckpointMeta, save_checkpoint
from blemish.clip.cache import FeatureCache, default_folder
from blemish.clip.weights import load_clip
from blemish.data.augment import AUGMENTATIONS
from blemish.data.auxiliary import Auxiliary
from blemish.device import resolve_device
from blemish.errors import BadOption, BlemishError
from blemish.files import public_backbone
from blemish.methods import build, method_class
from blemish.metrics import ClassMetrics, MetricOptions
from blemish.run.batches import Batch, Batches
from blemish.run.processes import Processes
from blemish.run.recipe import Recipe, TrainOptions, autocast_type, complete
from blemish.run.stages import begin_with, earlier_stages, start_digest, with_stage_recipe
from blemish.run.train_data import Gathered, gather
from blemish.run.train_log import TrainLog
from blemish.run.train_state import restore_state, save_state
from blemish.types import Encodes, Method, Sample, Scaled, Target

if TYPE_CHECKING:
    from blemish.clip.model import CLIP

CHECKPOINT_FILE = "checkpoint.safetensors"
SAVE_SECONDS = 60.0
Show = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class TrainSummary:
    """How a training run ended. losses: mean of the total loss in each epoch this process has run."""

    checkpoint: Path
    steps: int
    losses: tuple[float, ...]
    thresholds: Thresholds | None
    warnings: tuple[str, ...]
    seconds: float


def train(
    options: TrainOptions,
    own: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    show: Show | None = None,
) -> TrainSummary:
    """Learn a method on auxiliary data and write its checkpoint; the last epoch is the result.

    A method that learns in stages goes through all of them, the earlier ones in folders of their names in `out`.

    own: the method's own options, or preset=. resume: go on after a kill; the weights are those of an
    uninterrupted run, bit for bit on a CPU. overwrite: start anew in a folder that holds a run. show receives
    each line of the log. Under `torchrun` every process calls this with the same arguments.

    Raises BlemishError: wrong options, data that cannot be learned from, no room, or a loss that is not finite.
    """
    started = time.perf_counter()
    options = _after_earlier_stages(options, own or {}, resume=resume, overwrite=overwrite, show=show)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)  # place 1 of 3: device
    processes = Processes.join(device)  # place 2 of 3: processes
    clip = load_clip(options.backbone, device=device, dtype=torch.float32).freeze()
    recipe = complete(options, clip)
    torch.manual_seed(recipe.seed)
    method = build(recipe.method, clip, **(own or {}))
    begin_with(recipe.init, method, recipe.method)
    gathered = gather(recipe, method_class(recipe.method).learns_without_masks)
    batches = _batches(recipe, clip, method, gathered.samples, processes)
    optimiser = _optimiser(recipe, method)
    settings = _settings(recipe, clip, method, gathered)
    log = TrainLog(Path(recipe.out), settings, processes, show, resume=resume, overwrite=overwrite)
    log.begin(gathered, recipe.tensorboard)
    batches.fill_cache(log.caching)
    held = _held_out(recipe, clip, method, gathered) if processes.leads else None
    processes.wait()
    done = restore_state(log.out, method, optimiser, log.settings) if resume else 0
    log.rewind(done)
    steps = batches.per_epoch * recipe.epochs
    rates = [group["lr"] for group in optimiser.param_groups]
    saved = time.monotonic()
    for epoch in range(done // batches.per_epoch, recipe.epochs):
        method.train()
        for batch in batches.epoch(epoch, first=done % batches.per_epoch):
            torch.manual_seed(_step_seed(recipe.seed, done, processes.rank))
            factor = _rate_factor(recipe, method, done, steps, epoch)
            _set_rates(optimiser, rates, factor)
            optimiser.zero_grad()
            terms = _backward(method, batch, autocast_type(recipe.precision))  # place 3 of 3: precision
            processes.add_gradients(method.parameters())
            optimiser.step()
            done += 1
            log.step(epoch, done, steps, terms, method, factor, recipe.batch_size)
            if processes.leads and time.monotonic() - saved > SAVE_SECONDS:
                save_state(log.out, method, optimiser, done, log.settings)
                saved = time.monotonic()
        if processes.leads:
            save_state(log.out, method, optimiser, done, log.settings)
            log.epoch(epoch, done, _validate(method, held))
    path, thresholds = log.out / CHECKPOINT_FILE, None
    if processes.leads:
        thresholds = _thresholds(method, batches.some(recipe.threshold_images))
        save_checkpoint(path, method, _meta(recipe, clip, method, gathered, thresholds))
    seconds = log.end(started, thresholds)
    processes.wait()
    return TrainSummary(path, done, log.losses, thresholds, gathered.warnings, seconds)


def _after_earlier_stages(
    options: TrainOptions, own: Mapping[str, Any], *, resume: bool, overwrite: bool, show: Show | None
) -> TrainOptions:
    """The options of the last stage, begun with what the earlier ones learned; each of those is a run by itself."""
    for earlier, its_own in earlier_stages(options, own):
        before = train(earlier, its_own, resume=resume, overwrite=overwrite, show=show)
        options = replace(options, init=str(before.checkpoint))
    return with_stage_recipe(options, own)


def loss_terms(method: nn.Module, batch: Batch, autocast: torch.dtype | None = None) -> dict[str, Tensor]:
    """This process's part of each loss term; over all processes they add up to those of the whole batch.

    Every term is a mean over images, so each part counts by its share of them. Images without a mask give the
    image-level terms only, those whose name begins with "image". autocast: number format of the products.
    """
    terms: dict[str, Tensor] = {}
    kind = batch.target.label.device.type
    for rows, outlined in ((batch.has_mask, True), (~batch.has_mask, False)):
        if not bool(rows.any()):
            continue
        features, target, names = batch.part(rows)
        with torch.autocast(kind, autocast, enabled=autocast is not None):
            found = method.loss(features, target if outlined else Target(target.label), names)  # type: ignore[operator]
        for name, value in found.items():
            share = len(names) / (batch.count if name.startswith("image") else batch.outlined)
            terms[name] = terms.get(name, 0.0) + value.float() * share
    return terms


def _backward(method: nn.Module, batch: Batch | None, autocast: torch.dtype | None) -> dict[str, Tensor]:
    """Gradients of this process's part of the loss. Raises BlemishError when the loss is not finite."""
    if batch is None:
        return {}
    terms = loss_terms(method, batch, autocast)
    total = torch.stack(list(terms.values())).sum()
    if not bool(torch.isfinite(total)):
        worst = next((name for name, term in terms.items() if not bool(torch.isfinite(term))), "their sum")
        raise BlemishError(
            f"the loss is not finite ({worst}); lower --learning-rate, or train in --precision fp32"
        )
    total.backward()
    return terms


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the random numbers of one step (dropout), so that a resumed run draws the same ones."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


def _rate_factor(recipe: Recipe, method: Method, step: int, steps: int, epoch: int) -> float:
    """Factor of the learning rates after `step` of all steps, in an epoch counted from 0.

    "auto" is the method's own `rate_factor(progress, epoch, step)`, progress being a share of all steps, 0..1.
    """
    progress = step / steps
    if recipe.schedule == "auto":
        return float(method.rate_factor(progress, epoch, step))  # type: ignore[attr-defined]
    if recipe.schedule == "linear":
        return 1 - progress
    return (1 + math.cos(math.pi * progress)) / 2 if recipe.schedule == "cosine" else 1.0


def _set_rates(optimiser: torch.optim.Optimizer, rates: Sequence[float], factor: float) -> None:
    """Learning rates of the parameter groups: those they began with, times `factor`."""
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        group["lr"] = rate * factor


def _optimiser(recipe: Recipe, method: Method) -> torch.optim.Optimizer:
    """The method's own `optimiser(learning_rate)`, or Adam on its parameter groups.

    Raises BadOption for betas that no part of it knows.
    """
    if hasattr(method, "optimiser"):
        made: torch.optim.Optimizer = method.optimiser(recipe.learning_rate)
    else:
        made = torch.optim.Adam(method.parameter_groups(recipe.learning_rate))  # type: ignore[attr-defined]
    with_betas = [group for group in made.param_groups if "betas" in group]
    if recipe.betas is not None and not with_betas:
        raise BadOption(
            f"{recipe.method} learns with {type(made).__name__}, which has no betas; leave it out"
        )
    for group in with_betas if recipe.betas is not None else []:
        group["betas"] = recipe.betas
    for group in made.param_groups if recipe.weight_decay is not None else []:
        group["weight_decay"] = recipe.weight_decay
    return made


def _batches(
    recipe: Recipe, clip: CLIP, method: Method, samples: Sequence[Sample], processes: Processes
) -> Batches:
    data = Auxiliary(
        samples=tuple(samples),
        size=recipe.image_size,
        map_size=recipe.map_size,
        mean=clip.config.mean,
        std=clip.config.std,
        augmentation=AUGMENTATIONS[recipe.augmentation],
        seed=recipe.seed,
    )
    cache = None
    if recipe.copies:
        if not method.needs.cacheable:
            raise BadOption(
                f"{recipe.method} learns inside the image tower, so nothing can be cached; --cache off"
            )
        folder = default_folder() if recipe.cache_dir is None else Path(recipe.cache_dir).expanduser()
        cache = FeatureCache(folder, clip, method.needs, recipe.image_size, storage=recipe.cache_storage)
    return Batches(
        data,
        clip,
        method.needs,
        recipe.batch_size,
        processes,
        cache=cache,
        copies=recipe.copies,
        autocast=autocast_type(recipe.precision),
        encoder=method.encode if isinstance(method, Encodes) else None,
    )


def _settings(recipe: Recipe, clip: CLIP, method: Method, gathered: Gathered) -> dict[str, Any]:
    """Everything that a resumed run must have in common with its beginning."""
    settings = asdict(recipe) | {"options": asdict(method.config), "samples": gathered.digest}
    for name in ("out", "data", "dataset", "threads", "device", "cache_dir", "tensorboard", "strict"):
        del settings[name]
    del settings["class_names"]  # a path; the words themselves are among the samples
    settings["init"] = start_digest(recipe.init)
    settings["backbone"] = public_backbone(recipe.backbone)
    plain: dict[str, Any] = json.loads(json.dumps(settings | {"backbone_fingerprint": clip.fingerprint}))
    return plain


def _held_out(recipe: Recipe, clip: CLIP, method: Method, gathered: Gathered) -> Batches | None:
    """Batches of the classes that are kept for validation; None without any."""
    if not gathered.held_out:
        return None
    plain = replace(recipe, augmentation="none", copies=min(recipe.copies, 1))
    held = _batches(plain, clip, method, gathered.held_out, Processes())
    held.fill_cache()
    return held


@torch.inference_mode()
def _validate(method: Method, held: Batches | None) -> dict[str, dict[str, float | None]]:
    """Image and pixel AUROC of the held-out classes; they choose nothing."""
    if held is None:
        return {}
    method.eval()  # type: ignore[attr-defined]
    found: dict[str, ClassMetrics] = {}
    for batch in held.in_order():
        prediction = method(batch.features, batch.class_names)
        for i, name in enumerate(batch.class_names):
            metrics = found.setdefault(name, ClassMetrics(MetricOptions(mode="streaming")))
            mask = batch.target.mask[i].cpu().numpy() if bool(batch.has_mask[i]) else None  # type: ignore[index]
            score, label = float(prediction.score[i]), int(batch.target.label[i])
            metrics.update(label, score, prediction.map[i].float().cpu().numpy(), mask)
    rows = {name: metrics.compute() for name, metrics in found.items()}
    wanted = ("image_auroc", "pixel_auroc", "pixel_ap")
    return {
        name: {key: row[key].value if row[key].defined else None for key in wanted}
        for name, row in rows.items()
    }


@torch.inference_mode()
def _thresholds(method: Method, batches: Batches) -> Thresholds:
    """Image and pixel threshold of best F1 on the auxiliary data, as it is stored."""
    method.eval()  # type: ignore[attr-defined]
    if isinstance(method, Scaled):
        method.fit_scale((batch.features, batch.class_names) for batch in batches.in_order())
    finder = ThresholdFinder(method.map_range)
    for batch in batches.in_order():
        prediction = method(batch.features, batch.class_names)
        maps = prediction.map.float().cpu().numpy()
        for i in range(len(batch.class_names)):
            mask = batch.target.mask[i].cpu().numpy() > 0 if bool(batch.has_mask[i]) else None  # type: ignore[index]
            finder.update(float(prediction.score[i]), int(batch.target.label[i]), maps[i], mask)
    return finder.best_f1()


def _meta(
    recipe: Recipe, clip: CLIP, method: Method, gathered: Gathered, thresholds: Thresholds
) -> CheckpointMeta:
    kept = "features encoded in every epoch"
    if recipe.copies:
        drawn = (
            f"{recipe.copies} drawings of each image" if recipe.augmentation != "none" else "each image once"
        )
        kept = f"features cached as {recipe.cache_storage}, {drawn}"
    return CheckpointMeta(
        method=recipe.method,
        options=asdict(method.config),
        backbone=recipe.backbone,
        backbone_fingerprint=clip.fingerprint,
        backbone_config=clip.config.to_dict(),
        auxiliary=gathered.name,
        image_size=recipe.image_size,
        image_threshold=thresholds.image,
        pixel_threshold=thresholds.pixel,
        notes=(
            f"blemish train: {recipe.epochs} epochs of batch {recipe.batch_size}, learning rate "
            f"{recipe.learning_rate:g} {recipe.schedule}, seed {recipe.seed}, augmentation "
            f"{recipe.augmentation}, {recipe.precision}; {kept}"
        ),
    )
