"""The data that walk between the rooms: feature requests, features, targets, predictions, results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

STREAMS = ("qk", "vv", "qq", "kk", "vv_path")
POSITION_RESIZES = ("bilinear", "bicubic", "bicubic_antialias")
ACTIVATIONS = ("native", "quick_gelu", "gelu")


@dataclass(frozen=True)
class FeatureSpec:
    """What a method needs from the frozen image tower; one encoder pass can serve equal specifications.

    layers: blocks whose output tokens are wanted, counted from 1 (ints), or fractions of the depth in
        (0, 1] (floats): 0.25 is block 6 of 24.
    streams: which local features to return, from "qk" (the ordinary tokens), "vv", "qq", "kk" (parallel
        self-similar attention, AnomalyCLIP section 3 of its paper), "vv_path" (a path of its own from
        `stream_start` on, whose blocks attend value to value and pass the MLP, AA-CLIP).
    stream_start: first block of the parallel streams, as in `layers`.
    stream_ffn: the parallel stream also passes the block's MLP (a switch of AnomalyCLIP's code, off there).
    projected: tokens pass `ln_post` and the projection (joint width D); else raw block outputs (width W).
    class_ln_post: the class feature passes `ln_post` before the projection (CLIP) or not (AnomalyCLIP).
    position_resize: how the position table is resized to another grid, always from the original table.
    activation: "native" keeps the backbone's own MLP activation.
    cacheable: False for methods that learn inside the image tower (`Encodes`); no pass is shared with others.
    class_size: side in pixels of a second input from which the unmodified CLIP makes one more class feature;
        None for none.
    windows: sides k, in patches, of the windows of which class features are wanted (WinCLIP): all windows of
        k x k patches, one patch apart, each passed through the tower by itself with the class token.
    views: class features of transformed copies of the image are wanted too (AnoVL), each one more pass of the
        tower: `blemish.clip.views` says which.
    """

    layers: tuple[int | float, ...] = (1.0,)
    streams: tuple[str, ...] = ("qk",)
    stream_start: int | float = 0.25
    stream_ffn: bool = False
    projected: bool = True
    class_ln_post: bool = True
    position_resize: str = "bicubic"
    activation: str = "native"
    cacheable: bool = True
    class_size: int | None = None
    windows: tuple[int, ...] = ()
    views: bool = False

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("FeatureSpec.layers is empty; name at least one block, such as (24,) or (1.0,)")
        if self.class_size is not None and self.class_size < 1:
            raise ValueError(f"FeatureSpec.class_size is {self.class_size}; expected a side in pixels")
        if any(k < 1 for k in self.windows):
            raise ValueError(f"FeatureSpec.windows is {self.windows}; expected sides in patches, from 1")
        for name, value, choices in (
            ("position_resize", self.position_resize, POSITION_RESIZES),
            ("activation", self.activation, ACTIVATIONS),
            *(("streams", s, STREAMS) for s in self.streams),
        ):
            if value not in choices:
                raise ValueError(f"FeatureSpec.{name} is {value!r}; choose from {', '.join(choices)}")


@dataclass
class ImageFeatures:
    """What the image tower returns for B images.

    class_feature: (B, D), projected, not normalised.
    tokens: stream -> one tensor (B, 1+N, C) per requested layer, in the order requested; index 0 is the
        class token, then the patches row by row; C is D when projected and the tower's width W otherwise.
    grid: (rows, columns), N = rows * columns.
    image_size: (H, W) in pixels of the network input; maps are made at this size.
    plain_class_feature: (B, D), CLIP's own class feature at `FeatureSpec.class_size`, projected, not
        normalised; None when it was not asked for.
    windows: (B, M, D), class features of the windows, projected, not normalised: scale by scale as
        `FeatureSpec.windows` names them, row by row within each (`blemish.clip.windows.window_counts` says how
        many); None when none were asked for.
    view_class_features: (B, V, D), class features of the V copies that `blemish.clip.views` makes of each image,
        projected, not normalised; None when they were not asked for.
    """

    class_feature: Tensor
    tokens: dict[str, tuple[Tensor, ...]]
    grid: tuple[int, int]
    image_size: tuple[int, int]
    plain_class_feature: Tensor | None = None
    windows: Tensor | None = None
    view_class_features: Tensor | None = None

    def __len__(self) -> int:
        return int(self.class_feature.shape[0])

    @property
    def count(self) -> int:
        """B; unlike `len` it stays a symbol where a graph for any batch is traced."""
        return self.class_feature.shape[0]


@dataclass(frozen=True)
class Sample:
    """One picture of a dataset, as a reader of its layout found it.

    image: the file. label: 1 anomalous, 0 normal, None unknown. mask: file that outlines the anomaly; None for
    normal pictures and for anomalous ones that nobody has outlined. class_name: product or organ.
    defect: the layout's word for the kind of picture, such as "good" or "crack". split: "train" or "test".
    box: x0, y0, x1, y1 of the part that counts (KolektorSDD's halves); None is the whole picture.
    mask_rule: which stored mask values are anomalous: ">0" (the field's), ">127", "==2".
    """

    image: Path
    label: int | None
    mask: Path | None = None
    class_name: str = "object"
    defect: str = ""
    split: str = "test"
    box: tuple[int, int, int, int] | None = None
    mask_rule: str = ">0"


@dataclass
class Target:
    """Ground truth of B training images. mask: (B, H, W) in {0, 1}, or None; label: (B,) 1 = anomalous."""

    label: Tensor
    mask: Tensor | None = None


@dataclass
class Prediction:
    """What a method returns for B images; higher = more anomalous.

    map: (B, H, W) at network input size. score: (B,). details: intermediate tensors by name; those of every
    method that compares with texts hold "text_features", unit rows, normal before abnormal: (1 or B, 2, D), or
    (1 or B, layers, 2, D) where layers have texts of their own; 1 where no text depends on the image.
    """

    map: Tensor
    score: Tensor
    details: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Method(Protocol):
    """The contract between a method and everything else. Methods are `nn.Module`s built on a frozen CLIP.

    A method whose texts name the class says so in an attribute `uses_class_names = True` (missing: False); without
    names it falls back to "object", of which the detector and the evaluation warn its user once. One that cannot be
    exported as a graph says why in an attribute `exportable`, a sentence (missing or empty: it can). One that wants
    pictures which are not square cut into squares has `square_tiles = True` (`blemish.data.transforms.squares`).
    """

    config: Any
    needs: FeatureSpec
    map_range: tuple[float, float]
    score_range: tuple[float, float]

    def __call__(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction: ...


@runtime_checkable
class Encodes(Protocol):
    """Methods that learn inside the image tower, with `needs.cacheable` False: they make features themselves."""

    def encode(self, images: Tensor) -> ImageFeatures:
        """Features of B network inputs (B, 3, H, W); gradients reach the learned parts where they are recorded."""
        ...


@runtime_checkable
class Scaled(Protocol):
    """Methods that put raw values on a scale which the training images set: an optional ability."""

    def fit_scale(self, batches: Iterable[tuple[ImageFeatures, Sequence[str]]]) -> None:
        """Set the scale from all training images with their class names, after the last epoch."""
        ...


@runtime_checkable
class Attends(Protocol):
    """Methods whose texts attend to an image's patches: an optional ability, for explanations.

    attention_heads: heads of that attention; 0 where the method's options leave it out. blocks: the image
    tower's block of each layer.
    """

    blocks: tuple[int, ...]

    @property
    def attention_heads(self) -> int: ...

    def attention_maps(self, features: ImageFeatures) -> Tensor:
        """(B, layers, heads, 2, rows, columns), normal text first; every (rows, columns) adds up to 1."""
        ...


@runtime_checkable
class Surveys(Protocol):
    """Methods that may look at a class's test images before any is scored: an optional ability.

    surveys: whether the method's options ask for it. Scores then depend on the images surveyed (transductive).
    """

    @property
    def surveys(self) -> bool: ...

    def survey(self, features: ImageFeatures, class_names: Sequence[str]) -> None:
        """Look at B images of these classes; may be called for one batch after the other."""
        ...

    def forget_survey(self) -> None:
        """Begin anew, before another dataset."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """Methods that compare an image with a few normal ones (few-shot): an optional ability.

    The memory is made of the frozen CLIP's features alone, not of learned parts, and is in no checkpoint and no
    `state_dict`. With one, maps and scores are the few-shot ones; `map_range` and `score_range` may be others.
    """

    def remember(self, features: ImageFeatures) -> None:
        """Add B normal images, encoded as `needs` says; may be called for one batch after the other."""
        ...

    def memory(self) -> dict[str, Tensor]:
        """What is remembered, by name; empty without any normal image."""
        ...

    def recall(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember exactly what `memory` once gave; an empty mapping forgets everything.

        Raises ValueError when it does not fit the method's options or backbone.
        """
        ...


@dataclass(frozen=True)
class Region:
    """A connected region of the map above the pixel threshold. box: x0, y0, x1, y1; x1, y1 exclusive."""

    box: tuple[int, int, int, int]
    area: int
    peak: float


@dataclass(frozen=True)
class Result:
    """The outcome for one image, at the image's own size.

    score: image-level anomaly score, higher = more anomalous; finite.
    map: float32 (H, W), higher = more anomalous; finite.
    threshold: image score from which the image counts as anomalous; None when the checkpoint carries none.
    pixel_threshold: the same for map values.
    map_range: the range the method's maps can take, used as the fixed colour scale.
    path: where the image came from, when it came from a file.
    seconds: time spent on this image (its share of the batch).
    """

    score: float
    map: np.ndarray
    threshold: float | None = None
    pixel_threshold: float | None = None
    map_range: tuple[float, float] = (0.0, 1.0)
    path: str | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.map.ndim != 2 or self.map.dtype != np.float32:
            raise ValueError(f"Result.map must be float32 (H, W), got {self.map.dtype} {self.map.shape}")
        if not np.isfinite(self.score) or not np.isfinite(self.map).all():
            raise ValueError("the model returned NaN or infinity for this image")

    @property
    def is_anomalous(self) -> bool | None:
        """Score at or above the threshold; None when there is no threshold."""
        return None if self.threshold is None else bool(self.score >= self.threshold)

    @property
    def mask(self) -> np.ndarray | None:
        """bool (H, W): map above the pixel threshold; None when there is none."""
        return None if self.pixel_threshold is None else self.map > np.float32(self.pixel_threshold)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return int(self.map.shape[1]), int(self.map.shape[0])

    @property
    def regions(self) -> list[Region]:
        """Connected regions (8-neighbourhood) of `mask`, largest peak first; empty when there is no mask."""
        mask = self.mask
        if mask is None or not mask.any():
            return []
        from scipy import ndimage

        labels, _ = ndimage.label(mask, structure=np.ones((3, 3), dtype=bool))
        found = []
        # Box by box: passes over the whole map for every region take minutes on 100 megapixels.
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            inside = labels[rows, columns] == number
            peak = self.map[rows, columns].max(where=inside, initial=-np.inf)
            box = (columns.start, rows.start, columns.stop, rows.stop)
            found.append(Region(box, int(np.count_nonzero(inside)), float(peak)))
        return sorted(found, key=lambda r: -r.peak)
