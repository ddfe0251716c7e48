"""The options of `blemish evaluate`: how numbers are made, and what the command takes besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blemish.config import check_counts, check_engine, check_seed
from blemish.detector import Detector
from blemish.errors import BadOption, UnknownName
from blemish.metrics import MetricOptions
from blemish.run.scoring import Resolution
from blemish.score_rule import top_k

SAVED_KINDS = ("maps", "embeddings", "memory")


@dataclass(frozen=True)
class EvaluateOptions:
    """How numbers are made.

    resolution: side in pixels to which masks are resized as the papers do (and maps, where they differ), or
        "native": maps are resized to every image's own size and compared with masks as they are; None: the
        method's network input, as in the papers, or "native" for tiled images.
    protocol, fpr_limit, connectivity, strict_iou, mode: as in `blemish.metrics.MetricOptions`; mode "streaming"
        bounds the memory to under 50 MB a method, "exact" takes 4 bytes a pixel of a class.
    score_rule: "native" is the method's own image score; "max" and "topk:K" take it from the map.
    no_pixel: image-level metrics only; masks are not read.
    class_name: what methods are told that every image shows; None: the dataset's word for its class.
    classes: only these, as a tuple or separated by commas; empty: all.
    limit: at most so many images of a class, evenly from its list.
    normal: normal images for few-shot methods, of all classes or by class, see `run.normals.find_normals`.
    shots: only so many of them a class, drawn by `seed`.
    save: what to write besides the numbers, of "maps" (TIFF at every image's own size), "embeddings" (text
        features of every image by class, and a picture of them) and "memory" (of the normal images, by class).
    batch_size: images that go through the network together. seed: of every random number.
    """

    resolution: int | str | None = None
    protocol: str = "exact"
    fpr_limit: float = 0.3
    connectivity: int = 8
    strict_iou: bool = False
    mode: str = "exact"
    score_rule: str = "native"
    no_pixel: bool = False
    class_name: str | None = None
    classes: str | tuple[str, ...] = ()
    limit: int | None = None
    normal: str | None = None
    shots: int | None = None
    save: str | tuple[str, ...] = ()
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "batch_size", "limit")
        check_seed(self.seed)
        if self.resolution not in (None, "native") and not (
            isinstance(self.resolution, int) and self.resolution >= 1
        ):
            raise BadOption(
                f"resolution is {self.resolution!r}; expected a side in pixels such as 518, or native"
            )
        if self.normal is None and (self.shots is not None or "memory" in self.kinds):
            given = "shots" if self.shots is not None else "memory to save"
            raise BadOption(f"{given} without normal images to choose from; give some with --normal DIR")
        top_k(self.score_rule)
        self.metric_options((0.0, 1.0))
        for kind in self.kinds:
            if kind not in SAVED_KINDS:
                raise UnknownName("kind of result to save", kind, (*SAVED_KINDS, "none"))

    @property
    def kinds(self) -> tuple[str, ...]:
        """`save` as a tuple; "none" is nothing."""
        return tuple(kind for kind in _words(self.save) if kind != "none")

    @property
    def chosen_classes(self) -> tuple[str, ...]:
        """`classes` as a tuple."""
        return _words(self.classes)

    def metric_options(self, map_range: tuple[float, float]) -> MetricOptions:
        """The options of the metrics of a method whose maps lie in `map_range`."""
        return MetricOptions(
            self.mode, self.connectivity, map_range, self.protocol, self.fpr_limit, self.strict_iou
        )

    def resolution_of(self, detector: Detector) -> Resolution:
        """Where maps and masks of a detector meet."""
        if self.resolution is not None:
            return self.resolution
        return detector.setup.image_size if detector.setup.tile is None else "native"


@dataclass(frozen=True)
class EvaluateCommand(EvaluateOptions):
    """The keys of `blemish evaluate`, on the command line and in a --config file.

    data: the dataset's folder; dataset: its name or layout, when it is not to be recognised; split: "test",
    "train" or "all". method, checkpoint: see `load_detectors`, separated by commas or as lists. out: the folder
    that receives the results. class_names: a file of words for classes, see `config.read_class_names`. engine,
    workers, address: as in `config.PredictOptions`. The others are those of `blemish.load`.
    """

    data: str | None = None
    dataset: str | None = None
    split: str = "test"
    out: str = "blemish-eval"
    method: str | tuple[str, ...] = ()
    checkpoint: str | tuple[str, ...] = ()
    backbone: str | None = None
    device: str = "auto"
    precision: str = "auto"
    image_size: int | None = None
    threads: int | None = None
    tile: int | str | None = None
    overlap: float | None = None
    class_names: str | None = None
    engine: str = "local"
    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "workers")
        check_engine(self.engine, self.workers, self.address)

    @property
    def methods(self) -> tuple[str, ...]:
        """`method` as a tuple."""
        return _words(self.method)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """`checkpoint` as a tuple; a single text is one file, whose name may hold commas."""
        return (self.checkpoint,) if isinstance(self.checkpoint, str) else self.checkpoint

    @property
    def loading(self) -> dict[str, Any]:
        """What goes to `blemish.load`."""
        names = ("backbone", "device", "precision", "image_size", "threads", "tile", "overlap")
        return {name: getattr(self, name) for name in names}


def _words(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """A list from a text with commas, or as it is; without repetitions."""
    pieces = given.split(",") if isinstance(given, str) else given
    return tuple(dict.fromkeys(piece.strip() for piece in pieces if piece.strip()))
