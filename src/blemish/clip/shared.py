"""From images to the features that methods need: a pass of the image tower for one or for several."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..types import Encodes, FeatureSpec, ImageFeatures, Method
from .layers import ACTIVATION_FUNCTIONS
from .model import CLIP


def encode_for(clip: CLIP, method: Method, images: Tensor) -> ImageFeatures:
    """Features of B network inputs as a method needs them: its own `encode`'s, or those of the frozen tower."""
    if isinstance(method, Encodes):
        return method.encode(images)
    return clip.encode_image(images, method.needs)


def shared_passes(clip: CLIP, specs: Sequence[FeatureSpec], size: tuple[int, int]) -> list[list[int]]:
    """Which specifications one pass can serve: groups of their indices, each in the order given.

    Specifications part ways where the tower's first block does: at the activation, and at how positions are
    resized unless an input of `size` (H, W) has the tower's own grid. Layers, streams and projection are
    taken from one pass. Those that are not cacheable are alone: their methods change the tower's tokens.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, spec in enumerate(specs):
        alone = () if spec.cacheable else (str(index),)
        groups.setdefault((*_key(clip, spec, size), *alone), []).append(index)
    return list(groups.values())


def encode_shared(clip: CLIP, images: Tensor, specs: Sequence[FeatureSpec]) -> list[ImageFeatures]:
    """Features for several specifications, in their order, equal bit for bit to `encode_image` with each alone.

    images: (B, 3, H, W), normalised, sides multiples of the patch size. Specifications that agree in what the
    first block sees share one pass (`shared_passes`); their tokens may be the same tensors and must not be
    changed in place. Raises ValueError as `encode_image` does.
    """
    size = int(images.shape[-2]), int(images.shape[-1])
    found: dict[int, ImageFeatures] = {}
    for group in shared_passes(clip, specs, size):
        own = [specs[i] for i in group]
        activation = ACTIVATION_FUNCTIONS[_activation(clip, own[0])]
        found |= zip(group, clip.visual.forward_shared(images, own, activation), strict=True)
    for i, spec in enumerate(specs):
        found[i].plain_class_feature = clip.plain_class_feature(images, spec)
        found[i].view_class_features = clip.view_class_features(images, spec)
    return [found[i] for i in range(len(specs))]


def _key(clip: CLIP, spec: FeatureSpec, size: tuple[int, int]) -> tuple[str, str]:
    vision = clip.config.vision
    own_grid = size == (vision.grid * vision.patch_size,) * 2
    return _activation(clip, spec), "" if own_grid else spec.position_resize


def _activation(clip: CLIP, spec: FeatureSpec) -> str:
    return clip.config.activation if spec.activation == "native" else spec.activation
