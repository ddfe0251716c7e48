"""Dynamic batching: images of many requests through one network in one thread, with a bounded queue."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from blemish.errors import BadImage

if TYPE_CHECKING:
    from blemish.predictor import Predictor, Prepared, Raw

DECODERS = 2
INTERNAL = "could not be scored (internal error)"
RETRY_LIMIT = 60
PATIENCE_USED = 0.8  # what is estimated may take somewhat longer
SMOOTHING = 0.2  # weight of the newest batch in the mean seconds per image
log = logging.getLogger(__name__)


class QueueFull(Exception):
    """No room for more images. retry_after: whole seconds until there should be."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; room is expected in {retry_after} s")
        self.retry_after = retry_after


class Ticket:
    """An image accepted for scoring. future: (Prepared, Raw), or the cause why there is none."""

    def __init__(self, source: Callable[[], np.ndarray], pixels: int) -> None:
        self.source: Callable[[], np.ndarray] | None = source
        self.pixels = pixels
        self.future: Future[tuple[Prepared, Raw] | str] = Future()

    def answer(self, value: tuple[Prepared, Raw] | str) -> None:
        """Set the outcome, unless nobody waits for it any more."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(value)


class Batcher:
    """Decodes in a small thread pool and scores in one thread, several images at a time.

    The score of an image does not depend on what else is in its batch. At most `capacity` images, and `pixels`
    pixels (or a single request), are accepted and not yet released; that bounds the memory.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        capacity: int,
        pixels: int,
        batch_size: int = 8,
        wait: float = 0.005,
        patience: float = math.inf,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        """wait: seconds for which an unfull batch waits for more. patience: seconds that requests wait for their
        images; those that would have to wait longer at the present rate are not accepted behind others. on_batch: told
        the size of every batch.
        """
        self.predictor, self.capacity, self.pixel_capacity = predictor, capacity, pixels
        self.batch_size, self.wait, self._on_batch = batch_size, wait, on_batch
        self._patience = PATIENCE_USED * patience
        self._changed = threading.Condition()
        self._ready: deque[tuple[Ticket, Prepared]] = deque()
        self._images = self._pixels = 0
        self._closing = False
        self._seconds = 0.0
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self._thread = threading.Thread(target=self._run, name="infer", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether images are being scored: started and not closing."""
        return self._thread.is_alive() and not self._closing

    @property
    def length(self) -> int:
        """Images accepted and not yet released."""
        return self._images

    def warm_up(self) -> None:
        """Let the network see one grey image, so that the first request is no slower than others."""
        grey = np.full((32, 32, 3), 127, dtype=np.uint8)
        list(self.predictor.infer_each([self.predictor.prepare(grey)]))

    def start(self) -> None:
        """Begin to score."""
        self._thread.start()

    def close(self) -> None:
        """Finish what was accepted, then stop."""
        self._decoders.shutdown(wait=True)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def has_room(self, images: int = 1, pixels: int = 0) -> bool:
        """Whether so many more images would be accepted now."""
        total = self._images + images
        if not self._images:
            return total <= self.capacity
        in_time = total * self._seconds <= self._patience
        return total <= self.capacity and self._pixels + pixels <= self.pixel_capacity and in_time

    @property
    def retry_after(self) -> int:
        """Seconds, 1 to 60, in which half of the queue should be done at the present rate."""
        return max(1, min(RETRY_LIMIT, math.ceil(self._seconds * self._images / 2)))

    def admit(self, images: Sequence[tuple[Callable[[], np.ndarray], int]]) -> list[Ticket]:
        """Accept the images of a request, all or none, and begin to decode them.

        images: a function that decodes it to uint8 (H, W, 3) or raises BadImage, and its number of pixels. The
        caller must `release` the tickets. Raises QueueFull.
        """
        tickets = [Ticket(source, pixels) for source, pixels in images]
        pixels = sum(ticket.pixels for ticket in tickets)
        with self._changed:
            if not self.has_room(len(tickets), pixels):
                raise QueueFull(self.retry_after)
            self._images += len(tickets)
            self._pixels += pixels
        for ticket in tickets:
            self._decoders.submit(self._decode, ticket)
        return tickets

    def release(self, tickets: Sequence[Ticket]) -> None:
        """Say that nobody needs these tickets any more: those not yet seen by the network are dropped."""
        for ticket in tickets:
            if ticket.future.cancel():
                ticket.source = None  # the file's bytes, which the pool's queue would hold on to
            ticket.future.add_done_callback(partial(self._leave, ticket.pixels))

    def _leave(self, pixels: int, _: object) -> None:
        with self._changed:
            self._images -= 1
            self._pixels -= pixels

    def _decode(self, ticket: Ticket) -> None:
        source, ticket.source = ticket.source, None
        if source is None or ticket.future.cancelled():
            return
        try:
            prepared = self.predictor.prepare(source())
        except BadImage as error:
            ticket.answer(str(error))
        except MemoryError:
            ticket.answer("not enough memory to decode it")
        except Exception:
            log.exception("an image could not be prepared")
            ticket.answer(INTERNAL)
        else:
            with self._changed:
                self._ready.append((ticket, prepared))
                self._changed.notify_all()

    def _run(self) -> None:
        while batch := self._next_batch():
            started = time.perf_counter()
            self._score(batch)
            seconds = (time.perf_counter() - started) / len(batch)
            self._seconds += (seconds - self._seconds) * (SMOOTHING if self._seconds else 1)

    def _next_batch(self) -> list[tuple[Ticket, Prepared]]:
        """The next images, at least one; none when closing."""
        batch: list[tuple[Ticket, Prepared]] = []
        deadline = math.inf
        with self._changed:
            while True:
                while self._ready and not self._is_full(batch):
                    ticket, prepared = self._ready.popleft()
                    if ticket.future.set_running_or_notify_cancel():
                        batch.append((ticket, prepared))
                if self._closing or (batch and self._is_full(batch)):
                    return batch
                now = time.monotonic()
                if batch and deadline == math.inf:
                    deadline = now + self.wait
                if now >= deadline:
                    return batch
                self._changed.wait(None if deadline == math.inf else deadline - now)

    def _is_full(self, batch: Sequence[tuple[Ticket, Prepared]]) -> bool:
        return bool(batch) and self.predictor.is_full([prepared for _, prepared in batch], self.batch_size)

    def _score(self, batch: Sequence[tuple[Ticket, Prepared]]) -> None:
        if self._on_batch is not None:
            self._on_batch(len(batch))
        try:
            raws = list(self.predictor.infer_each([prepared for _, prepared in batch]))
        except Exception:
            # One image must not cost others theirs.
            if len(batch) > 1:
                for one in batch:
                    self._score([one])
                return
            log.exception("an image could not be scored")
            raws = [INTERNAL]
        for (ticket, prepared), raw in zip(batch, raws, strict=True):
            ticket.answer(raw if isinstance(raw, str) else (prepared, raw))
