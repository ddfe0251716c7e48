"""From samples of a dataset to the maps and scores of several methods: one decode, shared encoder passes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from blemish.clip.model import CLIP
from blemish.clip.shared import encode_for, encode_shared, shared_passes
from blemish.data.samples import load_mask, load_pixels
from blemish.data.transforms import SQUARES, Box, TileBlender, cut_boxes, map_to_size, preprocess, resize_mask
from blemish.detector import Detector
from blemish.device import is_out_of_memory
from blemish.errors import BadImage, BadOption
from blemish.pipeline import PIXELS_IN_FLIGHT
from blemish.score_rule import image_score
from blemish.types import Prediction, Sample, Surveys

TILE_BATCH = 8
Resolution = int | str  # side of square maps in pixels, or "native"


@dataclass(frozen=True)
class Group:
    """Detectors that see the same network input. passes: labels that one encoder pass serves."""

    clip: CLIP
    image_size: int
    tile: int | str | None
    overlap: float
    passes: tuple[tuple[str, ...], ...]

    def boxes(self, size: tuple[int, int]) -> tuple[Box, ...]:
        """Tiles of a picture of `size` (H, W); none when it is seen whole."""
        return cut_boxes(size, self.tile, self.overlap)

    def network_input(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) -> float32 (3, S, S)."""
        config = self.clip.config
        return preprocess(pixels, self.image_size, config.mean, config.std)


@dataclass(frozen=True)
class Picture:
    """One decoded sample, or why there is none.

    size: its (H, W). inputs: float32 (3, S, S) for each group, None where the group cuts tiles from `pixels`
    (uint8 (H, W, 3), kept only for that). truths: bool mask at each resolution; empty without a mask.
    """

    sample: Sample
    size: tuple[int, int] = (0, 0)
    inputs: tuple[np.ndarray | None, ...] = ()
    pixels: np.ndarray | None = None
    truths: dict[Resolution, np.ndarray] = field(default_factory=dict)
    error: str | None = None

    @property
    def cost(self) -> int:
        """Pixels held."""
        return sum(a.size // 3 for a in (*self.inputs, self.pixels) if a is not None)


@dataclass(frozen=True)
class Scored:
    """What a method said about one picture. map: float32, at network size (the picture's own when tiled).

    texts: its unit text features where they were asked for, float32 (2, D) or (layers, 2, D).
    """

    map: np.ndarray
    score: float
    texts: np.ndarray | None = None


@dataclass(frozen=True)
class Output:
    """What a method said about B network inputs: maps (B, S, S), scores (B,), texts (1 or B, [layers,] 2, D)."""

    maps: np.ndarray
    scores: np.ndarray
    texts: np.ndarray | None

    def row(self, number: int) -> Scored:
        """One of them."""
        texts = self.texts
        if texts is not None:
            texts = texts[number if len(texts) > 1 else 0]
        return Scored(self.maps[number], float(self.scores[number]), texts)


@dataclass
class Clock:
    """Seconds by label: of encoder passes that served it, and of the method itself."""

    encoder: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    method: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


Outcome = dict[str, Scored | str]  # label -> scored, or the cause of failure


class Scorer:
    """Runs several detectors over samples.

    detectors: by label. resolutions: label -> at which masks are needed; empty for no masks. name_of: what
    methods are told that a sample shows. texts: pictures seen whole get their text features too.
    """

    def __init__(
        self,
        detectors: Mapping[str, Detector],
        resolutions: Mapping[str, Resolution],
        name_of: Callable[[Sample], str],
        texts: bool = False,
    ) -> None:
        self.detectors, self.name_of, self.texts = detectors, name_of, texts
        self.groups = tuple(_groups(detectors))
        self.resolutions = tuple(dict.fromkeys(resolutions.values()))
        self.clock = Clock()

    @property
    def shared_by(self) -> dict[str, int]:
        """label -> how many methods its encoder passes serve."""
        return {label: len(labels) for group in self.groups for labels in group.passes for label in labels}

    def prepare(self, sample: Sample, with_mask: bool) -> Picture:
        """Decode a sample and make network inputs and masks; safe to call from several threads.

        with_mask: read its mask, when it has one or is normal.
        """
        try:
            pixels = load_pixels(sample)
            size = (pixels.shape[0], pixels.shape[1])
            mask = load_mask(sample, size) if with_mask and self.resolutions else None
            inputs = tuple(
                None if group.boxes(size) else group.network_input(pixels) for group in self.groups
            )
        except BadImage as error:
            return Picture(sample, error=str(error))
        except MemoryError:
            return Picture(sample, error="not enough memory to decode it")
        truths: dict[Resolution, np.ndarray] = {}
        if mask is not None:
            truths = {r: mask > 127 if isinstance(r, str) else resize_mask(mask, r) for r in self.resolutions}
        tiled = any(i is None for i in inputs)
        return Picture(sample, size, inputs, pixels if tiled else None, truths)

    @staticmethod
    def is_full(batch: Sequence[Picture], batch_size: int) -> bool:
        """Whether a batch should go to the network: enough pictures, or enough pixels held in memory."""
        return len(batch) >= batch_size or sum(p.cost for p in batch) >= PIXELS_IN_FLIGHT

    @property
    def surveyors(self) -> list[str]:
        """Labels of the methods that look at a class's images before any is scored."""
        found = {label: detector.method for label, detector in self.detectors.items()}
        return [label for label, method in found.items() if isinstance(method, Surveys) and method.surveys]

    @torch.inference_mode()
    def survey(self, batch: Sequence[Picture], first: bool) -> None:
        """Let these methods look at pictures. first: what they have seen before is another class's."""
        good = [picture for picture in batch if picture.error is None]
        asking = set(self.surveyors)
        for number, group in enumerate(self.groups):
            for label in (label for labels in group.passes for label in labels if label in asking):
                method = self.detectors[label].method
                assert isinstance(method, Surveys)
                if first:
                    method.forget_survey()
                if good:
                    inputs = np.stack([self._whole(picture, number) for picture in good])
                    images = torch.from_numpy(inputs).to(group.clip.device)
                    names = [self.name_of(picture.sample) for picture in good]
                    method.survey(encode_for(group.clip, method, images), names)

    def _whole(self, picture: Picture, number: int) -> np.ndarray:
        """A picture as one network input, also where it will be scored in tiles."""
        seen = picture.inputs[number]
        if seen is not None:
            return seen
        assert picture.pixels is not None
        return self.groups[number].network_input(picture.pixels)

    def score(self, batch: Sequence[Picture]) -> Iterator[tuple[Picture, Outcome]]:
        """Every picture with what each method said; one by one when memory is short for all together."""
        good = [picture for picture in batch if picture.error is None]
        try:
            found = iter(self._outcomes(good))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) > 1:
                for picture in batch:
                    yield from self.score([picture])
                return
            found = iter([self._failed("not enough memory to score it; try --tile")])
        for picture in batch:
            yield picture, self._failed(picture.error) if picture.error is not None else next(found)

    def _failed(self, cause: str) -> Outcome:
        return dict.fromkeys(self.detectors, cause)

    def _outcomes(self, pictures: Sequence[Picture]) -> list[Outcome]:
        outcomes: list[Outcome] = [{} for _ in pictures]
        for number, group in enumerate(self.groups):
            whole = [i for i, p in enumerate(pictures) if p.inputs[number] is not None]
            if whole:
                inputs = [x for i in whole if (x := pictures[i].inputs[number]) is not None]
                names = [self.name_of(pictures[i].sample) for i in whole]
                for label, output in self._forward(group, np.stack(inputs), names).items():
                    for row, i in enumerate(whole):
                        outcomes[i][label] = self._checked(label, output.row(row))
            for i, picture in enumerate(pictures):
                if picture.inputs[number] is None:
                    outcomes[i] |= self._tiled(group, picture)
        return outcomes

    def _tiled(self, group: Group, picture: Picture) -> Outcome:
        """Maps blended from tiles; the score is the largest of the tiles', as `Detector` has it."""
        assert picture.pixels is not None
        boxes, name = group.boxes(picture.size), self.name_of(picture.sample)
        labels = [label for one in group.passes for label in one]
        blenders = {label: TileBlender(*picture.size, even=group.tile == SQUARES) for label in labels}
        best: dict[str, list[float]] = {label: [] for label in labels}
        for first in range(0, len(boxes), TILE_BATCH):
            part = boxes[first : first + TILE_BATCH]
            inputs = [group.network_input(picture.pixels[y0:y1, x0:x1]) for x0, y0, x1, y1 in part]
            for label, output in self._forward(group, np.stack(inputs), [name] * len(part)).items():
                for box, tile_map in zip(part, output.maps, strict=True):
                    blenders[label].add(box, map_to_size(tile_map, (box.y1 - box.y0, box.x1 - box.x0)))
                best[label].extend(output.scores.tolist())
        return {
            label: self._checked(label, Scored(blenders[label].result(), float(np.max(best[label]))))
            for label in labels
        }

    def _checked(self, label: str, scored: Scored) -> Scored | str:
        if np.isfinite(scored.score) and np.isfinite(scored.map).all():
            return scored
        precision = self.detectors[label].precision
        hint = "" if precision == "fp32" else f"; {precision} may overflow, try --precision fp32"
        return f"{label} returned NaN or infinity for this image{hint}"

    @torch.inference_mode()
    def _forward(self, group: Group, inputs: np.ndarray, names: Sequence[str]) -> dict[str, Output]:
        """float32 (B, 3, S, S) -> what each method says, by label, in float32."""
        found = {}
        images = torch.from_numpy(inputs).to(group.clip.device)
        for labels in group.passes:
            started = _now(group.clip.device)
            methods = [self.detectors[label].method for label in labels]
            if len(methods) == 1:
                shared = [encode_for(group.clip, methods[0], images)]
            else:
                shared = encode_shared(group.clip, images, [method.needs for method in methods])
            encoded = _now(group.clip.device)
            for label, method, features in zip(labels, methods, shared, strict=True):
                begun = time.perf_counter()
                prediction = method(features, names)
                maps, scores = (t.float().cpu().numpy() for t in (prediction.map, prediction.score))
                rule = self.detectors[label].setup.score_rule
                scores = np.array([image_score(rule, *one) for one in zip(maps, scores, strict=True)])
                texts = self._texts(label, prediction)
                self.clock.method[label] += time.perf_counter() - begun
                self.clock.encoder[label] += encoded - started
                found[label] = Output(maps, scores, texts)
        return found

    def _texts(self, label: str, prediction: Prediction) -> np.ndarray | None:
        """The text features of a prediction where they are asked for; BadOption where the method has none."""
        if not self.texts:
            return None
        found = prediction.details.get("text_features")
        if found is None:
            raise BadOption(f"{label} compares images with no texts; leave --save embeddings out for it")
        values: np.ndarray = found.float().cpu().numpy()
        return values


def _now(device: torch.device) -> float:
    """The time when everything asked of the device so far is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _groups(detectors: Mapping[str, Detector]) -> Iterator[Group]:
    together: defaultdict[tuple[int, int, int | str | None, float], list[str]] = defaultdict(list)
    for label, detector in detectors.items():
        setup = detector.setup
        together[id(detector.clip), setup.image_size, setup.tile, setup.overlap].append(label)
    for (_, side, tile, overlap), labels in together.items():
        clip = detectors[labels[0]].clip
        passes = shared_passes(clip, [detectors[label].method.needs for label in labels], (side, side))
        yield Group(clip, side, tile, overlap, tuple(tuple(labels[i] for i in one) for one in passes))
