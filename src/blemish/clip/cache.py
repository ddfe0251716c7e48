"""Features of a frozen image tower on disk, computed once for all methods, epochs and processes that share them."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..errors import BadImage, BadOption, OutputError, UnknownName
from ..files import printable_name, write_whole
from ..pipeline import ordered_map
from ..types import STREAMS, FeatureSpec, ImageFeatures
from .layers import resolve_layers
from .model import CLIP
from .quantise import STORAGES, Layout
from .shards import PAGE, Part, ShardStore
from .weights import fingerprint

VERSION = 1
DESCRIPTION_FILE = "cache.json"
SHARD_IMAGES = 32
DECODERS = 4
MARGIN = 256 * 2**20  # bytes of the disk that are left to others

Load = Callable[[int], np.ndarray]
Progress = Callable[[int, int], None]
Claimed = tuple[Part, str]

log = logging.getLogger(__name__)


def default_folder() -> Path:
    """Where features are kept unless another folder is named: blemish/features in the user's cache.

    That is XDG_CACHE_HOME, or ~/.cache, as for the hub's weights.
    """
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "blemish" / "features"


def image_key(source: str | Path, *extra: str) -> str:
    """32 hex digits for a picture: its file's content, not its name, and what was done to it, as text.

    extra: in order, whatever else decides the network's input, such as a box or the number of an augmented
    copy. Raises BadImage.
    """
    path = Path(source)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise BadImage(f"{printable_name(path)}: is not a regular file; expected a picture")
        with path.open("rb") as file:
            parts = [hashlib.file_digest(file, "sha256").hexdigest(), *extra]
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise BadImage(f"{printable_name(path)}: cannot be read ({cause})") from error
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


class FeatureCache:
    """The features that `clip` computes for `spec` from square inputs of `image_size` pixels.

    folder: of any number of caches; this one's own is named after all that decides the values: the backbone's
    fingerprint, the type it computes in, the size, the storage, and `spec` as it resolves for this backbone, so
    that methods whose specifications mean the same share one. It holds a `cache.json` that says what it is.
    storage: "fp16", "bf16", or "int8" with one scale per token; class features stay float32. Values beyond
    the range of fp16 are stored scaled, neither clamped nor infinite (see `quantise`).
    shard_images: images per file, and so what a kill can cost.

    Features are computed without autocast, in the type of `clip`'s weights. Processes and threads may use the
    same folder at once. Raises BadOption when `spec` must not be cached or `image_size` does not fit,
    UnknownName for another storage. Nothing is written before `build`.
    """

    def __init__(
        self,
        folder: str | Path,
        clip: CLIP,
        spec: FeatureSpec,
        image_size: int,
        *,
        storage: str = "fp16",
        shard_images: int = SHARD_IMAGES,
    ) -> None:
        if not spec.cacheable:
            raise BadOption(
                "these features change while the method learns inside the image tower, so they cannot be cached;"
                " train with the cache off"
            )
        if storage not in STORAGES:
            raise UnknownName("cache storage", storage, STORAGES)
        patch = clip.config.vision.patch_size
        if image_size < patch or image_size % patch:
            raise BadOption(f"image size is {image_size}; expected a multiple of the patch size {patch}")
        if shard_images < 1:
            raise BadOption(f"shard_images is {shard_images}; expected at least 1")
        self.clip, self.spec, self.image_size, self.storage = clip, spec, image_size, storage
        self.shard_images = shard_images
        self.stored = resolved_spec(spec, clip)
        self._layout = Layout(_shapes(clip, self.stored, image_size), storage, PAGE)
        blocks = resolve_layers(spec.layers, clip.config.vision.layers)
        order = tuple(self.stored.layers.index(block) for block in blocks) if spec.streams else ()
        self._order = dict.fromkeys(spec.streams, order)
        self._identity = self._describe()
        digest = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:16]
        name = re.sub(r"[^\w.-]+", "_", clip.config.name) or "clip"
        self.folder = Path(folder).expanduser() / f"{name}-{image_size}-{storage}-{digest}"
        self._store = ShardStore(self.folder, digest, self._layout.record)
        self._announced = 0

    @property
    def bytes_per_image(self) -> int:
        """What an image takes on the disk."""
        return self._layout.record

    def missing(self, keys: Sequence[str]) -> list[int]:
        """Indices of the keys that are not stored yet, or whose file is damaged."""
        absent = set(self._store.absent(dict.fromkeys(keys)))
        return [index for index, key in enumerate(keys) if key in absent]

    def require_room(self, count: int) -> None:
        """Announce (as a log line) what `count` images will take. Raises OutputError when the disk lacks room."""
        needed = count * self.bytes_per_image
        free = _free(self.folder)
        where = printable_name(self.folder)
        if needed + MARGIN > free:
            smaller = "" if self.storage == "int8" else "store int8, "
            raise OutputError(
                f"no room for the features of {count} images in {where}: {_bytes(needed)} needed and"
                f" {_bytes(MARGIN)} to spare, {_bytes(free)} free;"
                f" make room, choose another cache folder, {smaller}or go on without a cache"
            )
        if count != self._announced:
            log.info(
                "features of %d images take %s (%s free) in %s", count, _bytes(needed), _bytes(free), where
            )
        self._announced = count

    def build(
        self, keys: Sequence[str], load: Load, *, batch_size: int = 8, on_progress: Progress | None = None
    ) -> None:
        """Compute and store what is missing; what other processes are computing meanwhile is waited for.

        load: the network's input of keys[i], float32 (3, S, S), called in threads ahead of the network; not
        called for what is stored. on_progress receives (images done, images that were missing).
        Whatever ends it, finished images are kept. Raises OutputError for a disk that is full or refuses,
        BadImage when features are not finite, and what `load` raises.
        """
        if batch_size < 1:
            raise BadOption(f"batch_size is {batch_size}; expected at least 1")
        where = {key: index for index, key in reversed(list(enumerate(keys)))}
        # Files hold fixed runs of the list, so that after a kill images are batched, and thus rounded, as before.
        unique = list(dict.fromkeys(keys))
        runs = [unique[i : i + self.shard_images] for i in range(0, len(unique), self.shard_images)]
        absent = self._store.absent(unique)
        total = len(absent)
        if total:
            self.require_room(total)
            self._write_description()
        while absent:
            built = 0
            with closing(self._build_unclaimed(runs, where, load, batch_size)) as batches:
                for count in batches:
                    built += count
                    if on_progress:
                        on_progress(total - len(absent) + built, total)
            if not built:
                self._store.wait(absent)
            left = self._store.absent(unique)
            if built and len(left) >= len(absent):
                raise OutputError(
                    f"what was written to {printable_name(self.folder)} does not read back as it was;"
                    " check the disk, choose another cache folder, or go on without a cache"
                )
            absent = left
        if on_progress:
            on_progress(total, total)

    def read(self, keys: Sequence[str]) -> ImageFeatures:
        """Features of a batch as `clip.encode_image(images, spec)` gives them, in its type and on its device.

        Raises OutputError when one of them is not, or no longer, stored whole.
        """
        if not keys:
            raise ValueError("no keys; name at least one image")
        try:
            places = self._store.locate(keys)
        except KeyError as error:
            raise OutputError(
                f"the feature cache {printable_name(self.folder)} does not hold image {error.args[0]} (never "
                "built, deleted or damaged); run again to compute what is missing"
            ) from error
        return self._layout.unpack(places, self._order, self.clip.dtype, self.clip.device)

    def _build_unclaimed(
        self, runs: Sequence[Sequence[str]], where: dict[str, int], load: Load, batch_size: int
    ) -> Generator[int, None, None]:
        """Compute what is neither stored nor being made elsewhere; yields the size of each batch done."""
        parts: list[Part] = []
        jobs = self._claims(runs, parts)
        decoded = ordered_map(
            lambda job: load(where[job[1]]), jobs, workers=DECODERS, ahead=max(2 * batch_size, DECODERS)
        )
        try:
            with closing(decoded):
                for part, members in itertools.groupby(decoded, key=lambda item: item[0][0]):
                    while batch := list(itertools.islice(members, batch_size)):
                        self._encode(batch, part)
                        yield len(batch)
                    part.close()
        finally:
            for part in parts:
                part.close()

    def _claims(self, runs: Sequence[Sequence[str]], parts: list[Part]) -> Iterator[Claimed]:
        """Images to compute, claimed one file at a time and just ahead of the network."""
        for run in runs:
            part = self._store.claim(run)
            if part is not None:
                parts.append(part)
                yield from ((part, key) for key in part.keys)

    def _encode(self, batch: Sequence[tuple[Claimed, Future[np.ndarray]]], part: Part) -> None:
        images = np.stack([future.result() for _, future in batch])
        expected = (3, self.image_size, self.image_size)
        if images.shape[1:] != expected:
            raise ValueError(f"load returned an array of shape {images.shape[1:]}; expected {expected}")
        device = self.clip.device
        # Autocast of the caller would give other values under the same name.
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            features = self.clip.encode_image(torch.from_numpy(images).to(device), self.stored)
        records = self._layout.pack(features)
        for (_, key), _ in batch:
            try:
                record = next(records)
            except ValueError as error:
                raise BadImage(
                    f"cannot store image {key}: {error}; check this picture, or compute in fp32"
                ) from error
            part.append(record)

    def _write_description(self) -> None:
        file = self.folder / DESCRIPTION_FILE
        if not file.exists():
            made = {
                "blemish": __version__,
                "torch": torch.__version__,
                "bytes_per_image": self.bytes_per_image,
            }
            write_whole(file, (json.dumps({**self._identity, **made}, indent=2) + "\n").encode())

    def _describe(self) -> dict[str, Any]:
        """All that decides the stored values, fit for JSON and for people."""
        clip = self.clip
        return {
            "format": "blemish-features",
            "version": VERSION,
            "backbone": clip.config.name,
            "fingerprint": clip.fingerprint or fingerprint(clip.config, clip.state_dict()),
            "computed_in": str(clip.dtype).removeprefix("torch."),
            "image_size": self.image_size,
            "mean": list(clip.config.mean),
            "std": list(clip.config.std),
            "storage": self.storage,
            "spec": {name: value for name, value in asdict(self.stored).items() if name != "cacheable"},
        }


def resolved_spec(spec: FeatureSpec, clip: CLIP) -> FeatureSpec:
    """One specification for all that make `clip` compute the same tensors, in whatever order.

    Layers become block numbers and the native activation its name; both layers and streams are sorted, each
    once. Fields without effect on the wanted streams take fixed values.
    """
    depth = clip.config.vision.layers
    layers = tuple(sorted(set(resolve_layers(spec.layers, depth))))
    start = resolve_layers([spec.stream_start], depth)[0]
    ffn = spec.stream_ffn
    if not set(spec.streams) - {"qk"}:
        start, ffn = 1, False
    activation = clip.config.activation if spec.activation == "native" else spec.activation
    streams = tuple(stream for stream in STREAMS if stream in spec.streams)
    resolved = replace(
        spec, layers=layers, streams=streams, stream_start=start, stream_ffn=ffn, activation=activation
    )
    return resolved if streams else replace(resolved, layers=(depth,), projected=True)


def _shapes(clip: CLIP, spec: FeatureSpec, image_size: int) -> ImageFeatures:
    """What `clip` returns for one image, on the meta device: shapes only. From towers of one block, for speed."""
    config = clip.config
    shallow = replace(
        config, vision=replace(config.vision, layers=1), text=replace(config.text, layers=1, vocab_size=1)
    )
    with torch.device("meta"):
        model = CLIP(shallow)
        images = torch.empty(1, 3, image_size, image_size)
        return model.encode_image(images, replace(spec, layers=(1,) * len(spec.layers), stream_start=1))


def _free(folder: Path) -> int:
    """Free bytes where `folder` is or will be made."""
    for place in (folder, *folder.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return 0


def _bytes(count: int) -> str:
    """The number, and the same in a unit that people read: 1234567890 bytes (1.2 GB)."""
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{count} bytes" if unit == "bytes" else f"{count} bytes ({value:.1f} {unit})"
