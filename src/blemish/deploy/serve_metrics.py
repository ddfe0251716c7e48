"""Counts of the service in Prometheus' text format."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """Counts of values up to each bound, cumulative in the text as Prometheus has them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        place = next((i for i, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[place] += 1
        self.total += value

    def lines(self, name: str) -> Iterator[str]:
        """The samples of a histogram called `name`."""
        running = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            yield f'{name}_bucket{{le="{bound}"}} {running}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {running}"


class Metrics:
    """What has happened since the start; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._counts = {
            "images": 0,
            "images_anomalous": 0,
            "images_failed": 0,
            "history_errors": 0,
        }
        self._seconds = Histogram(SECONDS)
        self._batches = Histogram(BATCHES)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request. route: its pattern, never the path given."""
        with self._lock:
            self._requests[route, status] += 1
            if route == "/v1/predict":
                self._seconds.add(seconds)

    def count(self, **numbers: int) -> None:
        """Add to the counters of these names."""
        with self._lock:
            for name, number in numbers.items():
                self._counts[name] += number

    def batch(self, size: int) -> None:
        """Count a batch that goes to the network."""
        with self._lock:
            self._batches.add(size)

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """All of it. gauges: name -> what it is, its present value."""
        with self._lock:
            return "\n".join(self._lines(gauges)) + "\n"

    def _lines(self, gauges: Mapping[str, tuple[str, float]]) -> Iterator[str]:
        yield from _head("blemish_requests_total", "Requests answered.", "counter")
        for (route, status), count in sorted(self._requests.items()):
            yield f'blemish_requests_total{{route="{route}",status="{status}"}} {count}'
        for name, what in (
            ("images", "Images scored."),
            ("images_anomalous", "Images called anomalous."),
            ("images_failed", "Images that could not be scored."),
            ("history_errors", "Inspections that could not be written to the history."),
        ):
            yield from _head(f"blemish_{name}_total", what, "counter")
            yield f"blemish_{name}_total {self._counts[name]}"
        for name, (what, value) in gauges.items():
            yield from _head(f"blemish_{name}", what, "gauge")
            yield f"blemish_{name} {value}"
        yield from _head("blemish_batch_size", "Images per network pass.", "histogram")
        yield from self._batches.lines("blemish_batch_size")
        yield from _head("blemish_predict_seconds", "Seconds to answer /v1/predict.", "histogram")
        yield from self._seconds.lines("blemish_predict_seconds")


def _head(name: str, what: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {what}", f"# TYPE {name} {kind}"
