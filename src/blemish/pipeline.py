"""Work in threads with results in order, a bounded look-ahead and a bounded cost of what is in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

DECODERS = 4
PIXELS_IN_FLIGHT = 64_000_000


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


def decoded_batches(
    decode: Callable[[T], R],
    items: Iterable[T],
    batch_size: int,
    *,
    cost: Callable[[T], int],
    is_full: Callable[[Sequence[R]], bool],
) -> Generator[list[R], None, None]:
    """`decode` every item in threads, ahead and with bounded pixels; yields the results in order, in batches.

    cost: pixels of an item. is_full: whether a batch should be handed out as it is. An exception of `decode` is
    raised after the batch of what came before it, one that is no Exception (such as KeyboardInterrupt) at once.
    Closing the generator ends the threads, as with `ordered_map`.
    """
    found = ordered_map(
        decode, items, workers=DECODERS, ahead=2 * batch_size, cost=cost, budget=PIXELS_IN_FLIGHT
    )
    batch: list[R] = []
    failure: BaseException | None = None
    with closing(found):
        for _, future in found:
            failure = future.exception()
            if failure is not None:
                break
            batch.append(future.result())
            if is_full(batch):
                yield batch
                batch = []
        if batch and (failure is None or isinstance(failure, Exception)):
            yield batch
    if failure is not None:
        raise failure
