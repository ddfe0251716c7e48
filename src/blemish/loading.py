"""`blemish.load`: find the backbone, the method and its checkpoint, and see that they fit together."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from blemish.errors import BadCheckpoint, BadOption, UnknownName
from blemish.files import file_hash
from blemish.predictor import Predictor, Setup
from blemish.types import Method

if TYPE_CHECKING:
    import torch

    from blemish.checkpoint import CheckpointMeta
    from blemish.clip.config import CLIPConfig
    from blemish.clip.model import CLIP
    from blemish.detector import Detector

DEFAULT_BACKBONE = "tiny"
# `tiny` was trained with plain prompts: they find the most (chosen on generated pictures, see docs/tiny.md).
EMBEDDED_METHOD = "clip_ac"
OTHER_METHOD = "anomaly_clip"
OFFICIAL_BACKBONE = "ViT-L-14-336"
PAPERS_IMAGE_SIZE = 518
EMBEDDED_IMAGE_SIZE = 320
EMBEDDED = Path(__file__).parent / "clip" / "tiny"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A checkpoint file before the backbone is loaded: ours (with `meta`) or the authors' own form."""

    path: Path
    method: str
    backbone: str
    meta: CheckpointMeta
    official: bool = False


class Backbones:
    """CLIPs by name, device and precision: each is loaded once and serves all detectors made with this."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[str, str, str], CLIP] = {}

    def get(self, base: str, device: torch.device, precision: str) -> CLIP:
        """The frozen CLIP called `base`: a name, file, folder or hub repository."""
        key = base, str(device), precision
        if key not in self._loaded:
            self._loaded[key] = _load_backbone(base, device, precision)
        return self._loaded[key]


@overload
def load(
    method: str | None = None,
    backbone: str | Path | None = None,
    checkpoint: str | Path | None = None,
    *,
    runtime: None = None,
    **given: Any,
) -> Detector: ...


@overload
def load(*, runtime: str | Path | None, **given: Any) -> Predictor: ...


def load(
    method: str | None = None,
    backbone: str | Path | None = None,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    image_size: int | None = None,
    threads: int | None = None,
    tile: int | str | None = None,
    overlap: float | None = None,
    score_rule: str | None = None,
    class_name: str | None = None,
    threshold: float | None = None,
    pixel_threshold: float | None = None,
    normal: str | Path | Sequence[str | Path] | None = None,
    shots: int | None = None,
    normal_seed: int = 0,
    backbones: Backbones | None = None,
    compile: bool = False,
    runtime: str | Path | None = None,
    **options: Any,
) -> Predictor:
    """Make a detector; without arguments the embedded backbone and checkpoint, without network.

    method: a name from `blemish.methods()`; by default the checkpoint's, or `default_method`. backbone: a name
    from `blemish.backbones()`, a file, a folder or a hub repository; by default the checkpoint's, or "tiny".
    checkpoint: our safetensors file or the authors' own .pth, told apart by content; `tiny` has its own.
    device: auto, cpu, cuda, cuda:N, mps. precision: auto, fp32, bf16, fp16. image_size: side of the network
    input in pixels, a multiple of the patch size. threads: of the CPU. tile, overlap: cut larger pictures
    into tiles of that many pixels which share that part of their side (0.25); the score is the largest of the
    tiles'; "square" for the fewest squares that cover a picture, "none" for whole pictures; by default the
    checkpoint's. score_rule: "native" for the method's own image score, "max", or "topk:K" for the mean of the K
    largest map values; by default the checkpoint's, whose threshold holds for that alone. class_name: what the
    pictures show, for methods that use it. threshold, pixel_threshold: in place of the checkpoint's. normal: for
    few-shot methods 1 to 64 normal pictures (a folder, a file or a list), or the file that `Detector.save_memory`
    wrote; the checkpoint's thresholds do not hold then. shots: only so many of the pictures, drawn by
    `normal_seed`. backbones: for several detectors on one CLIP. compile: let torch.compile make the network faster,
    which takes minutes before the first image. runtime: a file that `blemish export` wrote, in place of method,
    backbone and checkpoint; it runs without torch, and of the other arguments takes those about thresholds, tiles,
    precision and threads. options: the method's own options, or preset=; they go before the checkpoint's, and those
    before the defaults. Raises a BlemishError that says what to change.
    """
    if runtime is not None:
        return _load_runtime(runtime, {k: v for k, v in locals().items() if k != "runtime"})
    import torch

    from blemish import few_shot
    from blemish.detector import Detector
    from blemish.device import resolve_device

    if threads is not None:
        if threads < 1:
            raise BadOption(f"threads is {threads}; expected at least 1")
        torch.set_num_threads(threads)
    place = resolve_device(device)
    _check_method(method)
    backbone = None if backbone is None else str(backbone)
    source = _find(method, backbone, checkpoint)
    name = source.method if source else method or default_method(backbone)
    own = _own_options(name, options)
    _check_normal(name, normal, shots)
    base = backbone or (source.backbone if source else DEFAULT_BACKBONE)
    clip = (backbones or Backbones()).get(base, place, precision)
    built, used = _build(name, base, clip, source, own)
    setup = _saved_setup(name, base, clip, source).with_asked(
        tile=tile,
        overlap=overlap,
        score_rule=score_rule,
        threshold=threshold,
        pixel_threshold=pixel_threshold,
    )
    size = setup.image_size if image_size is None else image_size
    setup = replace(setup, image_size=size, options=used, class_name=class_name)
    detector = Detector(clip, built, setup)
    if normal is not None:
        few_shot.fill(detector, normal, shots, normal_seed)
        detector.setup = replace(detector.setup, threshold=threshold, pixel_threshold=pixel_threshold)
    if compile:
        detector.compile()
    return detector


def _saved_setup(name: str, base: str, clip: CLIP, source: Source | None) -> Setup:
    """How pictures are looked at where nothing else is asked for: as the checkpoint says, or by default."""
    from blemish.checkpoint import CheckpointMeta

    meta = source.meta if source else CheckpointMeta(name)
    return Setup(
        method=name,
        backbone=base,
        image_size=default_image_size(clip.config) if meta.image_size is None else meta.image_size,
        checkpoint=source.path.name if source else "",
        checkpoint_sha256=file_hash(source.path) if source else "",
        backbone_fingerprint=clip.fingerprint,
        auxiliary=meta.auxiliary,
        threshold=meta.image_threshold,
        pixel_threshold=meta.pixel_threshold,
        tile=meta.tile,
        overlap=meta.overlap,
        score_rule=meta.score_rule,
    )


def _load_runtime(runtime: str | Path, given: Mapping[str, Any]) -> Predictor:
    """The predictor of an exported file; BadOption for arguments that were settled when it was exported."""
    from blemish.deploy.runtime import load_runtime

    settled = ("method", "backbone", "checkpoint", "image_size", "class_name", "normal", "shots", "compile")
    for name in (*(key for key in settled if given[key] not in (None, False)), *given["options"]):
        raise BadOption(
            f"{name} cannot be given with runtime {Path(runtime).name}: it was settled at export; leave it out, or "
            f"export anew with it"
        )
    taken = (
        "device",
        "precision",
        "threads",
        "tile",
        "overlap",
        "score_rule",
        "threshold",
        "pixel_threshold",
    )
    return load_runtime(Path(runtime).expanduser(), **{key: given[key] for key in taken})


def default_method(backbone: str | None) -> str:
    """The method where neither it nor a checkpoint is named: "clip_ac" on the embedded backbone, which was trained with
    plain prompts, "anomaly_clip" on others."""
    return EMBEDDED_METHOD if backbone in (None, DEFAULT_BACKBONE) else OTHER_METHOD


def method_of(checkpoint: str | Path) -> str:
    """The method that a checkpoint file is of, from its header. Raises BadCheckpoint."""
    source = _find(None, None, checkpoint)
    assert source is not None
    return source.method


def default_image_size(config: CLIPConfig) -> int:
    """Network input when nothing names one: the papers' 518 pixels for L/14@336, 320 for the embedded
    backbone, as its checkpoints have it, else the backbone's own."""
    vision = config.vision
    if config.name == DEFAULT_BACKBONE:
        return EMBEDDED_IMAGE_SIZE
    is_papers = (vision.patch_size, vision.image_size) == (14, 336)
    return PAPERS_IMAGE_SIZE if is_papers else vision.image_size


def _check_method(method: str | None) -> None:
    from blemish.methods import METHODS

    if method is not None and method not in METHODS:
        raise UnknownName("method", method, METHODS)


def _check_normal(method: str, normal: object, shots: int | None) -> None:
    """Refuse normal images for methods that cannot use them, before a backbone is loaded."""
    from blemish import few_shot
    from blemish.methods import method_class

    if normal is not None and not hasattr(method_class(method), "remember"):
        raise few_shot.cannot_remember(method)
    if normal is None and shots is not None:
        raise BadOption(f"shots is {shots}, and no normal images are given to choose from; pass --normal DIR")


def _find(method: str | None, backbone: str | None, checkpoint: str | Path | None) -> Source | None:
    """The checkpoint to use, read as far as its header; None for a method that learns nothing."""
    from blemish.checkpoint import CheckpointMeta, is_checkpoint, read_meta
    from blemish.methods import official

    if checkpoint is None:
        return _find_default(method or default_method(backbone), backbone or DEFAULT_BACKBONE)
    path = Path(checkpoint).expanduser()
    if path.is_file() and not is_checkpoint(path) and (info := official.recognise(path)) is not None:
        source = Source(
            path,
            info.method,
            info.backbone or OFFICIAL_BACKBONE,
            official=True,
            meta=CheckpointMeta(info.method),
        )
    else:
        meta = read_meta(path)
        source = Source(path, meta.method, meta.backbone or DEFAULT_BACKBONE, meta=meta)
    if method is not None and method != source.method:
        raise BadCheckpoint(
            f"{path} is a checkpoint of {source.method}, not of {method}; pass --method {source.method} "
            f"or another checkpoint"
        )
    _check_method(source.method)
    return source


def _find_default(method: str, backbone: str) -> Source | None:
    path = EMBEDDED / f"{method}.safetensors"
    if backbone == DEFAULT_BACKBONE and path.is_file():
        from blemish.checkpoint import read_meta

        return Source(path, method, DEFAULT_BACKBONE, meta=read_meta(path))
    if not learns(method):
        return None
    why = "none is embedded" if backbone == DEFAULT_BACKBONE else f"none comes with backbone {backbone}"
    raise BadCheckpoint(
        f"{method} needs a checkpoint and {why}; pass --checkpoint FILE (ours, or the authors' .pth)"
    )


def learns(method: str) -> bool:
    """Whether a method has learned parts: those have a loss, training-free methods have none."""
    from blemish.methods import method_class

    return hasattr(method_class(method), "loss")


def _own_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The given options, checked, with a preset written out below the options named singly."""
    from blemish.methods import make_config, presets

    given = dict(options)
    preset = given.pop("preset", None)
    # Only a check, made here since loading a backbone can take long: a configuration has the defaults too.
    make_config(name, preset, **given)
    return (presets(name)[preset] if preset is not None else {}) | given


def _load_backbone(base: str, device: torch.device, precision: str) -> CLIP:
    from blemish.clip.weights import load_clip
    from blemish.device import resolve_precision

    dtype = resolve_precision(precision, device, embedded=base == DEFAULT_BACKBONE)
    return load_clip(base, device=device, dtype=dtype, packed=True)


def _build(
    name: str, base: str, clip: CLIP, source: Source | None, options: Mapping[str, Any]
) -> tuple[Method, dict[str, Any]]:
    """The method with its learned parts in place, and the options it runs with."""
    from blemish.checkpoint import load_checkpoint, load_parts
    from blemish.methods import build, official

    if source is None:
        method = build(name, clip, **options)
    elif source.official:
        method = official.read_official(source.path, clip, **options)
    else:
        meta, tensors = load_checkpoint(source.path)
        _check_backbone(source.path, meta, base, clip)
        method = build(name, clip, **(meta.options | dict(options)))
        load_parts(method, name, tensors, source.path)
    method = method.to(clip.device).eval().requires_grad_(False)
    return method, asdict(method.config)


def _check_backbone(path: Path, meta: CheckpointMeta, base: str, clip: CLIP) -> None:
    """Refuse a backbone of other dimensions; only warn about other weights of the same dimensions."""
    then, now = _dimensions(meta.backbone_config), _dimensions(clip.config.to_dict())
    different = [key for key in now if key in then and then[key] != now[key]]
    if different:
        key = different[0]
        raise BadCheckpoint(
            f"{path} was made for backbone {meta.backbone or '?'} ({key} {then[key]}), but {base} has {key} "
            f"{now[key]}; pass --backbone {meta.backbone or 'NAME'}"
        )
    if meta.backbone_fingerprint and clip.fingerprint and meta.backbone_fingerprint != clip.fingerprint:
        log.warning(
            "%s was made with other weights of this shape (%s, here %s); scores may be wrong",
            path,
            meta.backbone_fingerprint,
            clip.fingerprint,
        )


def _dimensions(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {"joint width": config.get("embed_dim")}
    for tower in ("vision", "text"):
        for key in ("width", "layers"):
            found[f"{tower} {key}"] = config.get(tower, {}).get(key)
    return {key: value for key, value in found.items() if value is not None}
