"""Normal images for few-shot methods: which ones, and the file that holds what was remembered of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from blemish.checkpoint import package_versions, read_fields
from blemish.clip.layers import resolve_layers
from blemish.data.find import find_images
from blemish.errors import BadCheckpoint, BadImage, BadOption
from blemish.files import printable_name, public_backbone, write_whole
from blemish.types import Remembers

if TYPE_CHECKING:
    from blemish.detector import Detector

FORMAT, FORMAT_VERSION = "blemish-memory", 1
LIMIT = 64
T = TypeVar("T")


@dataclass(frozen=True)
class MemoryMeta:
    """What a memory says about itself; it fits detectors of which all but `images` and `versions` are the same.

    backbone: its name, for people; backbone_fingerprint identifies its weights. tile, overlap: how images were cut.
    needs: the features it is made of (`FeatureSpec`, layers as block numbers). images: how many.
    """

    method: str
    backbone: str
    backbone_fingerprint: str
    image_size: int
    tile: int | str | None
    overlap: float
    needs: dict[str, Any]
    images: int
    versions: dict[str, str] = field(default_factory=package_versions)


def remembering(detector: Detector) -> Remembers:
    """A detector's method, which must be able to remember. Raises BadOption."""
    method = detector.method
    if not isinstance(method, Remembers):
        raise cannot_remember(detector.setup.method)
    return method


def cannot_remember(method: str) -> BadOption:
    """The error for a method that compares with no normal images."""
    able = [name for name in able_methods() if name != method]
    return BadOption(
        f"{method} cannot use normal images; leave out --normal, or take a method that can: {', '.join(able)}"
    )


def able_methods() -> list[str]:
    """Names of the methods that remember normal images."""
    from blemish.methods import METHODS, method_class

    return [name for name in METHODS if hasattr(method_class(name), "remember")]


def normal_images(
    source: str | Path | Sequence[str | Path], shots: int | None = None, seed: int = 0
) -> list[Path]:
    """The files of 1 to 64 normal images: a folder (searched below), a picture, a list of either, a .txt of paths.

    shots: only so many of them, drawn by `seed`. Raises BadOption for none and for too many, BadImage for a path
    that is not there.
    """
    given = [source] if isinstance(source, (str, Path)) else list(source)
    refs = find_images(given)
    for ref in refs:
        if ref.error is not None:
            raise BadImage(ref.error)
    where = printable_name(given[0]) if len(given) == 1 else "the list of normal images"
    return choose([ref.path for ref in refs], shots, seed, where)


def choose(items: Sequence[T], shots: int | None, seed: int, where: str) -> list[T]:
    """All items, or `shots` of them in their order. where: their place, for errors. Raises BadOption."""
    if shots is not None and not 1 <= shots <= LIMIT:
        raise BadOption(f"shots is {shots}; expected 1 to {LIMIT} normal images")
    if not items:
        raise BadOption(f"{where} has no images; --normal needs 1 to {LIMIT} normal ones")
    if shots is None and len(items) > LIMIT:
        raise BadOption(
            f"{where} has {len(items)} images; a memory takes 1 to {LIMIT}, choose some with --shots 16"
        )
    if shots is not None and shots > len(items):
        raise BadOption(f"--shots {shots} asks for more normal images than {where} has ({len(items)})")
    numbers = range(len(items)) if shots is None else random.Random(seed).sample(range(len(items)), shots)
    return [items[number] for number in sorted(numbers)]


def fill(
    detector: Detector, normal: str | Path | Sequence[str | Path], shots: int | None = None, seed: int = 0
) -> None:
    """Let a detector remember a memory file or images; see `normal_images` and `read_memory`."""
    if isinstance(normal, (str, Path)) and is_memory(Path(normal).expanduser()):
        if shots is not None:
            raise BadOption(f"{normal} is a memory already made; --shots chooses from images, leave it out")
        read_memory(detector, Path(normal).expanduser())
    else:
        detector.forget()
        detector.remember(normal_images(normal, shots, seed))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of what is remembered; empty for nothing."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name} {tuple(tensors[name].shape)} ".encode())
        found.update(tensors[name].contiguous().cpu().numpy().tobytes())
    return found.hexdigest() if tensors else ""


def _meta(detector: Detector) -> MemoryMeta:
    setup, needs = detector.setup, dataclasses.asdict(detector.method.needs)
    needs["layers"] = resolve_layers(needs["layers"], detector.clip.config.vision.layers)
    return MemoryMeta(
        method=setup.method,
        backbone=public_backbone(setup.backbone),
        backbone_fingerprint=setup.backbone_fingerprint,
        image_size=setup.image_size,
        tile=setup.tile,
        overlap=setup.overlap,
        needs=json.loads(json.dumps(needs)),
        images=setup.normal_images,
    )


def write_memory(detector: Detector, path: Path) -> None:
    """Write what a detector remembers as one safetensors file. Raises BadOption for nothing, OutputError."""
    tensors = remembering(detector).memory()
    if not tensors:
        raise BadOption(f"{detector.setup.method} remembers no normal images; give some with --normal")
    header = {"format": FORMAT, "format_version": str(FORMAT_VERSION)}
    header |= {key: json.dumps(value) for key, value in dataclasses.asdict(_meta(detector)).items()}
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_whole(path, save(plain, metadata=header))


def is_memory(path: Path) -> bool:
    """Whether a file is a memory of normal images (it may still be of a newer version)."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError, ValueError):
        return False


def describe_memory(path: Path) -> dict[str, Any]:
    """What a memory file says about itself, as plain values. Raises BadCheckpoint."""
    with safe_open(path, framework="pt") as file:
        return dataclasses.asdict(_read_meta(path, file.metadata()))


def read_memory(detector: Detector, path: Path) -> None:
    """Let a detector remember what a file holds, and nothing else; thresholds made without it are dropped.

    Raises BadCheckpoint for a file of another kind, or one made by another method, backbone or image size.
    """
    method = remembering(detector)
    if not is_memory(path):
        raise BadCheckpoint(
            f"{printable_name(path)} is no memory of normal images; `--save-memory` writes such"
        )
    with safe_open(path, framework="pt") as file:
        meta = _read_meta(path, file.metadata())
        _check(path, meta, _meta(detector))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    try:
        method.recall(tensors)
    except ValueError as error:
        raise BadCheckpoint(f"{printable_name(path)} does not fit: {error}; make it anew") from error
    detector.remembered(meta.images)


def _read_meta(path: Path, header: Mapping[str, str]) -> MemoryMeta:
    version = header.get("format_version")
    if version != str(FORMAT_VERSION):
        raise BadCheckpoint(
            f"{printable_name(path)} has memory version {repr(str(version)[:20])[1:-1]}, this program reads "
            f"{FORMAT_VERSION}; make it anew"
        )
    missing = [f.name for f in dataclasses.fields(MemoryMeta) if f.name not in header]
    if missing:
        raise BadCheckpoint(f"{printable_name(path)}: its header lacks {missing[0]}; make it anew")
    return MemoryMeta(**read_fields(path, MemoryMeta, header, quoted=True))


def _check(path: Path, made: MemoryMeta, here: MemoryMeta) -> None:
    """Raise BadCheckpoint for the first thing in which a memory and a detector differ."""
    then, now = _facts(made), _facts(here)
    different = next((key for key in now if then.get(key) != now[key]), None)
    if different is None:
        return
    shown = then.get(different), now[different]
    if different == "backbone":
        shown = f"{made.backbone} ({shown[0]})", f"{here.backbone} ({shown[1]})"
    raise BadCheckpoint(
        f"{printable_name(path)} was made with {different.replace('_', ' ')} {shown[0]}, here it is {shown[1]}; "
        f"make it anew from the normal images, or use the same settings"
    )


def _facts(meta: MemoryMeta) -> dict[str, Any]:
    """What two memories must have in common to be exchanged."""
    tiles = None if meta.tile is None else f"{meta.tile} with overlap {meta.overlap}"
    own = {"method": meta.method, "backbone": meta.backbone_fingerprint, "image_size": meta.image_size}
    return own | {"tile": tiles} | meta.needs
