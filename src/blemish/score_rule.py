"""How an image score comes from a map, whatever method made it: plain rules that need no torch."""

from __future__ import annotations

import numpy as np

from blemish.errors import BadOption

NATIVE = "native"


def image_score(rule: str, anomaly_map: np.ndarray, native: float) -> float:
    """The image score by a rule: "native" (the method's own), "max", or "topk:K", the mean of the K largest map values.

    anomaly_map: (H, W). native: what the method says. K above H*W takes them all. Raises BadOption for another rule.
    """
    k = top_k(rule)
    if k is None:
        return native
    if k == 1:
        return float(anomaly_map.max())
    values = anomaly_map.reshape(-1)
    if k < values.size:
        values = np.partition(values, values.size - k)[-k:]
    return float(values.mean(dtype=np.float64))


def top_k(rule: str) -> int | None:
    """How many map values a score rule averages: 1 for "max", None for "native". Raises BadOption."""
    if rule == "native":
        return None
    if rule == "max":
        return 1
    name, _, number = rule.partition(":")
    if name == "topk" and number.isascii() and number.isdecimal() and int(number) >= 1:
        return int(number)
    raise BadOption(f"score_rule is {rule!r}; expected native, max, or topk:K such as topk:2000")
