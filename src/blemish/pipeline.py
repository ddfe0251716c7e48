"""Work in threads with results in order, a bounded look-ahead and a bounded cost of what is in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    workers: int,
    ahead: int,
    eager: bool = False,
    cost: Callable[[T], int] = lambda item: 0,
    budget: int = 0,
) -> Generator[tuple[T, Future[R]], None, None]:
    """Apply `function` to `items` in threads and yield (item, finished future) in the order of `items`.

    At most `ahead` items are in flight, and their `cost` together stays within `budget` unless a single item
    exceeds it, which then runs alone. eager: hand out finished results at once (for a last stage, so that
    work is recorded as it completes) instead of filling the look-ahead first (for a first stage, so that
    work goes on while the caller is busy). Closing the generator cancels what has not begun and waits for
    the rest.
    """
    pool = ThreadPoolExecutor(workers)
    pending: deque[tuple[T, int, Future[R]]] = deque()
    spent = 0
    try:
        for item in items:
            price = cost(item)
            while pending and (
                len(pending) >= ahead or spent + price > budget or (eager and pending[0][2].done())
            ):
                done, paid, future = pending.popleft()
                spent -= paid
                future.exception()
                yield done, future
            pending.append((item, price, pool.submit(function, item)))
            spent += price
            # Large items would otherwise live on in this frame until the next one arrives.
            del item
        while pending:
            done, _, future = pending.popleft()
            future.exception()
            yield done, future
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
