"""Image and pixel thresholds from scored pictures: best F1, or a false-alarm rate on normal images.

Decisions are those of `Result`: an image is anomalous when its score is at or above the image threshold, a pixel
when its map value is above the pixel threshold. Every rate given here is what these decisions yield.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from blemish.errors import BadImage, BadOption

CONFIDENCE = 0.95
# An image threshold stands up to this share of its size above what it must exclude: scores of one picture differ
# by less between machines and batch sizes.
CLEARANCE = 1e-6
DROPPED_BITS = 8  # of a float32, so that bins are 3e-5 of a value wide
UPPER = 1 << (32 - DROPPED_BITS)  # number from which bins are those of the upper half
OCTAVE_BITS = 15  # bins of a halving of the value range, as a power of two
BLOCK = 1 << 14  # pixels counted at a time: work arrays that stay in the cache
NORMAL, AROUND, ANOMALOUS = range(
    3
)  # pixels: of normal images, of anomalous images outside and inside the mask


@dataclass(frozen=True)
class Rate:
    """A share of images, with the interval that holds the true one with 95 % confidence.

    value: the rate to expect. count, total: the images it rests on, as the thresholds judge them.
    """

    value: float
    low: float
    high: float
    count: int
    total: int


@dataclass(frozen=True)
class Thresholds:
    """Thresholds, and what they do on the images they were found with.

    image, pixel: None when the images do not determine it, `notes` says why. how: "best F1" or "false-alarm rate
    R". normal, anomalous, masks: images seen, and how many of the anomalous ones were outlined.
    false_alarms: normal images at or above the image threshold. detections: the same of anomalous ones.
    region_alarms: normal images with any pixel above the pixel threshold. region_detections: outlined images with
    such a pixel inside the outline. pixel_false_alarms, pixel_detections: shares of normal and of anomalous
    pixels above it; without an interval, since pixels of one image are no independent witnesses.
    image_f1, pixel_f1: F1 at the thresholds. Rates without images to tell are None.
    """

    image: float | None
    pixel: float | None
    how: str
    normal: int
    anomalous: int
    masks: int
    false_alarms: Rate | None = None
    detections: Rate | None = None
    region_alarms: Rate | None = None
    region_detections: Rate | None = None
    pixel_false_alarms: float | None = None
    pixel_detections: float | None = None
    image_f1: float | None = None
    pixel_f1: float | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


class ThresholdFinder:
    """Gathers scores and maps picture by picture in bounded memory, then sets thresholds.

    Of each picture a few numbers are kept; its pixels are counted in bins (some tens of megabytes that do not grow
    with the number of pictures). Bins are bounded by float32 values, so the counts on either side of a threshold
    are exact; only its place is known to 3e-5 of its distance to the nearer end of the range.
    """

    def __init__(self, map_range: tuple[float, float] = (0.0, 1.0)) -> None:
        """map_range: the method's; a pixel threshold that no map can exceed is remarked upon."""
        self.map_range = map_range
        self._scores: tuple[list[float], list[float]] = ([], [])  # of normal, of anomalous images
        self._peaks: tuple[list[float], list[float]] = ([], [])  # of normal images, of outlined anomalies
        self._pixels = _Histogram(3, map_range[1])

    @property
    def counts(self) -> tuple[int, int, int]:
        """Normal images, anomalous images, and how many of the latter were outlined."""
        return len(self._scores[0]), len(self._scores[1]), len(self._peaks[1])

    def update_score(self, score: float, label: int) -> None:
        """Add one picture of which only the score is known; no pixel threshold can be found then.

        score: finite. label: 1 anomalous, 0 normal.
        """
        if label not in (0, 1) or not math.isfinite(score):
            raise BadImage(f"score {score!r} with label {label!r}; expected a finite one with 0 or 1")
        self._scores[label].append(float(score))

    def update(self, score: float, label: int, anomaly_map: np.ndarray, mask: np.ndarray | None) -> None:
        """Add one picture.

        score: finite. label: 1 anomalous, 0 normal. anomaly_map: (H, W), finite, taken as float32. mask: (H, W),
        non-zero where anomalous; of normal pictures it is ignored, all their pixels are normal; None for an
        anomalous picture leaves its pixels out. Raises BadImage for anything else; nothing is added then.
        """
        values = np.asarray(anomaly_map, dtype=np.float32)
        if label not in (0, 1):
            raise BadImage(f"label is {label!r}; expected 0 (normal) or 1 (anomalous)")
        if not math.isfinite(score) or not values.size or not np.isfinite(values).all():
            raise BadImage("score or map is not finite; thresholds need finite ones")
        if mask is not None and mask.shape != values.shape:
            raise BadImage(
                f"map is {values.shape} and its mask {mask.shape} (rows, columns); they must agree"
            )
        self._scores[label].append(float(score))
        if label == 0:
            self._peaks[0].append(float(values.max()))
            self._pixels.add(NORMAL, values.ravel())
        elif mask is not None:
            inside = np.asarray(mask) > 0
            if inside.any():
                self._peaks[1].append(float(values[inside].max()))
            self._pixels.add(ANOMALOUS, values[inside])
            self._pixels.add(AROUND, values[~inside])

    def best_f1(self) -> Thresholds:
        """The lowest thresholds with the largest F1, of images and of pixels.

        Within the gap between the values that they part they stand in the middle. None where one kind of image, or
        every mask, is missing.
        """
        normal, anomalous, masks = self.counts
        image = _best_image_threshold(*self._scores) if normal and anomalous else None
        pixel = self._best_pixel_threshold() if masks else None
        notes = []
        if image is None:
            missing = "normal" if anomalous else "anomalous"
            notes.append(f"no image threshold of best F1, there are no {missing} images")
        if pixel is None:
            notes.append("no pixel threshold of best F1, there are no anomalous images with masks")
        return self._judged(image, pixel, "best F1", notes)

    def at_false_alarm_rate(self, rate: float, pixel_rate: float | None = None) -> Thresholds:
        """Thresholds from the normal images alone, so that new ones like them seldom raise an alarm.

        rate: probability, in (0, 1), of a new normal image being called anomalous, and of its map having any pixel
        above the pixel threshold; each at most this, on average over choices of the calibration images, when they
        were drawn as the new ones will be (split conformal prediction: with n images, the threshold is just above
        the k-th smallest score, k = ceil((n + 1)(1 - rate))). Fewer than 1 / rate - 1 images cannot promise that:
        the thresholds are then just above everything seen, which promises 1 / (n + 1), and `notes` says so.
        pixel_rate: in place of that, the share of the normal images' pixels that may be above the pixel threshold.
        Raises BadOption for impossible rates and without normal images.
        """
        for name, value in (("false-alarm rate", rate), ("pixel false-alarm rate", pixel_rate)):
            if value is not None and not 0 < value < 1:
                raise BadOption(f"{name} is {value}; expected a share above 0 and below 1, such as 0.01")
        normal = self.counts[0]
        if not normal:
            raise BadOption("a false-alarm rate needs normal images, and there are none")
        # The tolerance keeps 100 images at 0.01 from becoming 0.99999 allowed ones.
        allowed = math.floor((normal + 1) * rate * (1 + 1e-12))
        notes = []
        if allowed < 1:
            needed = math.ceil(1 / rate - 1 - 1e-9)
            notes.append(
                f"{normal} normal images cannot promise a false-alarm rate of {rate:g}, that takes {needed}; the "
                f"thresholds are above everything seen, which promises {1 / (normal + 1):.2g}"
            )
            allowed = 1
        rank = normal + 1 - allowed
        image = _just_above(self._scores[0], rank)
        pixel = None
        if len(self._peaks[0]) < normal:
            notes.append("no pixel threshold, there are images without maps")
        elif pixel_rate is None:
            peak = np.float32(np.sort(self._peaks[0])[rank - 1])
            pixel = self._pixels.end_above(peak)
        else:
            pixel = self._pixel_threshold_at(pixel_rate)
        found = self._judged(image, pixel, f"false-alarm rate {rate:g}", notes)
        alarms = _promised(found.false_alarms, allowed, normal)
        regions = found.region_alarms if pixel_rate else _promised(found.region_alarms, allowed, normal)
        return dataclasses.replace(found, false_alarms=alarms, region_alarms=regions)

    def _best_pixel_threshold(self) -> float:
        numbers, counts = self._pixels.falling()
        best = _best_f1(counts[ANOMALOUS], counts[NORMAL] + counts[AROUND])
        lowest = self._pixels.bounds(int(numbers[best]))[0]
        below = self._pixels.bounds(int(numbers[best + 1]))[1] if best + 1 < len(numbers) else lowest
        middle = np.float32((float(below) + float(lowest)) / 2)
        # A pixel must be above the threshold, not at it. (Zero has two signs, hence no arithmetic on the bins.)
        return float(middle if below <= middle < lowest else np.nextafter(lowest, np.float32(-np.inf)))

    def _pixel_threshold_at(self, rate: float) -> float:
        """The lowest end of a bin with at most this share of the normal images' pixels above it."""
        numbers, counts = self._pixels.falling()
        above = np.cumsum(counts[NORMAL]) - counts[NORMAL]
        last = np.flatnonzero((above <= rate * counts[NORMAL].sum()) & (counts[NORMAL] > 0))[-1]
        return float(self._pixels.bounds(int(numbers[last]))[1])

    def _judged(self, image: float | None, pixel: float | None, how: str, notes: list[str]) -> Thresholds:
        """The thresholds with all that they do on the pictures gathered."""
        normal, anomalous, masks = self.counts
        found: dict[str, Any] = {}
        if image is not None:
            false, true = (int(np.count_nonzero(np.asarray(scores) >= image)) for scores in self._scores)
            found |= {"false_alarms": binomial_rate(false, normal)}
            found |= {"detections": binomial_rate(true, anomalous), "image_f1": _f1(true, false, anomalous)}
            if false == normal and true == anomalous:
                notes.append("every image is at or above the image threshold")
        if pixel is not None:
            level = np.float32(pixel)
            alarms, hits = (int(np.count_nonzero(np.asarray(p, np.float32) > level)) for p in self._peaks)
            found |= {"region_alarms": binomial_rate(alarms, normal)}
            found |= {"region_detections": binomial_rate(hits, masks)}
            found |= self._judged_pixels(pixel)
            if pixel >= self.map_range[1]:
                notes.append("normal maps reach the top of their range: no pixel can be above the threshold")
        return Thresholds(image, pixel, how, normal, anomalous, masks, **found, notes=tuple(notes))

    def _judged_pixels(self, pixel: float) -> dict[str, float | None]:
        above, total = self._pixels.above(pixel), self._pixels.totals
        true, positives = int(above[ANOMALOUS]), int(total[ANOMALOUS])
        false, negatives = (int(counts[NORMAL] + counts[AROUND]) for counts in (above, total))
        return {
            "pixel_false_alarms": false / negatives if negatives else None,
            "pixel_detections": true / positives if positives else None,
            "pixel_f1": _f1(true, false, positives),
        }


def binomial_rate(count: int, total: int) -> Rate | None:
    """A share of independent images with its Clopper-Pearson interval; None without images."""
    from scipy.special import betaincinv

    if not total:
        return None
    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(count, total - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, total - count, 1 - tail)) if count < total else 1.0
    return Rate(count / total, low, high, count, total)


def _promised(observed: Rate | None, allowed: int, normal: int) -> Rate | None:
    """The rate to expect of new images when the threshold excludes all but `allowed` - 1 of `normal` ones.

    The share of all normal images above it is then distributed as Beta(allowed, normal + 1 - allowed).
    """
    from scipy.special import betaincinv

    if observed is None:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(betaincinv(allowed, normal + 1 - allowed, share)) for share in (tail, 1 - tail))
    return Rate(allowed / (normal + 1), low, high, observed.count, observed.total)


def _f1(true: int, false: int, positives: int) -> float | None:
    return 2 * true / (true + false + positives) if positives else None


def _best_f1(positives: np.ndarray, negatives: np.ndarray) -> int:
    """Which of the values, given by their counts from the highest down, is the lowest threshold of best F1."""
    true, false = np.cumsum(positives), np.cumsum(negatives)
    f1 = true / (true + false + true[-1])
    return len(f1) - 1 - int(np.argmax(f1[::-1]))


def _best_image_threshold(normal: list[float], anomalous: list[float]) -> float:
    values, where = np.unique([*normal, *anomalous], return_inverse=True)
    positives = np.bincount(where[len(normal) :], minlength=len(values))
    negatives = np.bincount(where[: len(normal)], minlength=len(values))
    best = len(values) - 1 - _best_f1(positives[::-1], negatives[::-1])
    lowest = float(values[best])
    if best == 0:
        return _between(-math.inf, lowest - CLEARANCE * abs(lowest), lowest)
    below = float(values[best - 1])
    return _between(below, (below + lowest) / 2, lowest)


def _just_above(values: list[float], rank: int) -> float:
    """A number above the `rank`-th smallest value (from 1), and not above the next larger one."""
    ordered = np.sort(values)
    value = float(ordered[rank - 1])
    following = float(min(ordered[ordered > value], default=math.inf))
    step = min(CLEARANCE * abs(value), (following - value) / 2)
    return _between(value, value + step, following)


def _between(low: float, wanted: float, high: float) -> float:
    """About `wanted`, above `low` and at most `high`.

    A float32 where there is one: scores of that type are then compared as exactly as Python's floats.
    """
    single = np.float32(wanted)
    if float(single) <= low:
        single = np.nextafter(single, np.float32(math.inf))
    if low < float(single) <= high:
        return float(single)
    return wanted if low < wanted <= high else math.nextafter(low, math.inf)


class _Histogram:
    """Counts of float32 values of several kinds, in bins that follow the values' order.

    Bins are finest towards 0 and towards `high`, the upper end of the values' range: maps that saturate, as a
    softmax does, keep their order there. Memory is taken for those halvings of the distance to either end in which
    values occur, some hundred kilobytes each.
    """

    def __init__(self, kinds: int, high: float) -> None:
        self._high = np.float32(high)
        self._half = self._high / 2 if high > 0 else np.float32(np.inf)
        self._slots = np.full(2 * UPPER >> OCTAVE_BITS, -1, dtype=np.int64)
        self._counts = np.zeros((0, kinds, 1 << OCTAVE_BITS), dtype=np.int64)

    @property
    def totals(self) -> np.ndarray:
        """Values of each kind; int64 (kinds,)."""
        totals: np.ndarray = self._counts.sum(axis=(0, 2))
        return totals

    def add(self, kind: int, values: np.ndarray) -> None:
        """values: float32 (N,), finite."""
        for start in range(0, values.size, BLOCK):
            numbers = self._number(values[start : start + BLOCK])
            octaves = numbers >> OCTAVE_BITS
            slots = self._slots.take(octaves)
            if slots.min() < 0:
                self._make_room(np.unique(octaves[slots < 0]))
                slots = self._slots.take(octaves)
            numbers &= (1 << OCTAVE_BITS) - 1
            numbers += (slots * self._counts.shape[1] + kind) << OCTAVE_BITS
            np.add.at(self._counts.reshape(-1), numbers, 1)

    def _make_room(self, octaves: np.ndarray) -> None:
        self._slots[octaves] = len(self._counts) + np.arange(len(octaves))
        empty = np.zeros_like(self._counts, shape=(len(octaves), *self._counts.shape[1:]))
        self._counts = np.concatenate([self._counts, empty])

    def falling(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the bins in use, highest first (N,), and their counts (kinds, N)."""
        octaves = np.flatnonzero(self._slots >= 0)[::-1]
        counts = self._counts[self._slots[octaves], :, ::-1].transpose(1, 0, 2)
        counts = counts.reshape(self._counts.shape[1], -1)
        numbers = (octaves[:, None] << OCTAVE_BITS) + np.arange((1 << OCTAVE_BITS) - 1, -1, -1)
        used = np.flatnonzero(counts.any(axis=0))
        return numbers.ravel()[used], counts[:, used]

    def above(self, level: float) -> np.ndarray:
        """Values above `level` of each kind; exact when no value of its own bin is. int64 (kinds,)."""
        numbers, counts = self.falling()
        beyond = numbers > self._number(np.array([level], dtype=np.float32))
        above: np.ndarray = counts[:, beyond].sum(axis=1)
        return above

    def end_above(self, value: np.float32) -> float:
        """The largest value of the bin of the next float32 above `value`."""
        following = np.nextafter(value, np.float32(np.inf))
        return float(self.bounds(int(self._number(np.array([following]))[0]))[1])

    def bounds(self, number: int) -> tuple[np.float32, np.float32]:
        """Least and largest float32 value of a bin."""
        first = ((number % UPPER) << DROPPED_BITS) - (1 << 31)
        ordered = np.array([first, first + (1 << DROPPED_BITS) - 1]).astype(np.int32)
        low, high = (ordered ^ ((ordered >> 31) & np.int32(0x7FFF_FFFF))).view(np.float32)
        if number < UPPER:
            return low, high
        wanted = float(low) + float(self._high), float(high) + float(self._high)
        low, high = (np.float32(value) for value in wanted)
        return (
            low if low >= wanted[0] else np.nextafter(low, np.float32(np.inf)),
            high if high <= wanted[1] else np.nextafter(high, np.float32(-np.inf)),
        )

    def _number(self, values: np.ndarray) -> np.ndarray:
        """Number of the bin of each float32 value (N,); rises with the values. int64."""
        upper = values >= self._half
        # Of two floats within a factor of 2 the difference is exact.
        shifted = values - np.where(upper, self._high, np.float32(0))
        shifted += np.float32(0)  # makes -0 to 0
        bits = shifted.view(np.int32)
        # Negative floats have rising bits with falling values.
        ordered = bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFF_FFFF))
        numbers = (ordered >> np.int32(DROPPED_BITS)).astype(np.int64)
        numbers += np.where(upper, UPPER + UPPER // 2, UPPER // 2)
        return numbers
