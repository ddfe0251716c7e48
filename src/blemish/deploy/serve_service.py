"""What the service does with a request for predictions, from its body to the answer."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import blemish
from blemish.data.images import decode_image, pixel_count
from blemish.deploy.batching import Batcher, QueueFull, Ticket
from blemish.deploy.history import History
from blemish.deploy.history_databases import open_database
from blemish.deploy.history_models import describe_model, fingerprint
from blemish.deploy.limits import (
    ByteBudget,
    Disconnected,
    Receive,
    Refused,
    UnreadAnswers,
    read_body,
    too_many_pixels,
)
from blemish.deploy.serve_metrics import Metrics
from blemish.deploy.serve_options import ServeOptions
from blemish.deploy.serve_results import KeptFiles, answer_record, inspection, with_thresholds
from blemish.deploy.serve_uploads import PredictRequest, Upload, parse_request
from blemish.errors import BadImage, OutputError
from blemish.files import make_folder, public_backbone

if TYPE_CHECKING:
    from blemish.predictor import Predictor, Prepared, Raw

WORKERS = 4
# Bodies in memory at a time, and pixels accepted at a time, in requests of the largest size.
BODIES_AT_A_TIME, PIXELS_AT_A_TIME = 4, 2
ANSWER_BYTES = 6  # per pixel, of the largest answers: a float32 map in base64
T = TypeVar("T")
log = logging.getLogger(__name__)


class Service:
    """One predictor with its queue, history and counters; made before the server starts, closed after it stops."""

    def __init__(self, predictor: Predictor, options: ServeOptions, checkpoint: Path | None = None) -> None:
        """checkpoint: the file that the predictor was made from, where it is at hand.

        Raises BadOption or OutputError when the history or the folder of kept files cannot be had.
        """
        self.predictor, self.options = predictor, options
        self.metrics = Metrics()
        about = describe_model(predictor, checkpoint)
        self.model = fingerprint(about)
        self.history = None if options.db is None else History(open_database(options.db))
        if self.history is not None:
            self.history.add_model(self.model, about)
        self.kept = None if options.keep is None else KeptFiles(Path(options.keep).expanduser())
        if self.kept is not None:
            make_folder(self.kept.folder)
        self.budget = ByteBudget(BODIES_AT_A_TIME * options.max_bytes)
        self.unread = UnreadAnswers(PIXELS_AT_A_TIME * ANSWER_BYTES * options.max_pixels)
        self.batcher = Batcher(
            predictor,
            capacity=options.queue,
            pixels=PIXELS_AT_A_TIME * options.max_pixels,
            batch_size=options.batch_size,
            wait=options.batch_wait_ms / 1000,
            patience=options.timeout,
            on_batch=self.metrics.batch,
        )
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="request")
        predictor.warn_about_class_name()
        self.batcher.warm_up()

    def close(self) -> None:
        """Finish what was accepted, then let everything go."""
        self._workers.shutdown(wait=True)
        self.batcher.close()
        if self.history is not None:
            self.history.close()

    def about(self) -> dict[str, Any]:
        """The body of `GET /v1/methods`."""
        setup, options = self.predictor.setup, self.options
        loaded = {
            **{key: getattr(setup, key) for key in ("method", "checkpoint", "image_size", "runtime")},
            "backbone": public_backbone(setup.backbone),
            "threshold": setup.threshold,
            "pixel_threshold": setup.pixel_threshold,
            "map_range": list(self.predictor.map_range),
            "precision": self.predictor.precision,
            "model": self.model,
            "version": blemish.__version__,
        }
        limits = {key: getattr(options, key) for key in ("max_bytes", "max_pixels", "max_images", "queue")}
        return {
            "methods": list(blemish.methods()),
            "loaded": loaded,
            "limits": limits,
            "history": self.history is not None,
            "keep": self.kept is not None,
        }

    async def predict(
        self, receive: Receive, headers: Mapping[str, str], notes: dict[str, Any]
    ) -> tuple[int, bytes]:
        """Score the images of a request: status and JSON. notes: receives "count" and "bytes" for the log.

        Raises Refused, or Disconnected when nobody waits for the answer.
        """
        started = time.perf_counter()
        self._check_room()
        body = await read_body(
            receive,
            headers.get("content-length"),
            max_bytes=self.options.max_bytes,
            timeout=self.options.timeout,
            budget=self.budget,
        )
        size = len(body)
        notes["bytes"] = size
        try:
            request, pixels = await self.in_thread(self._parse, headers.get("content-type", ""), body)
            del body
            notes["count"] = len(request.uploads)
            tickets = self._admit(request.uploads, pixels)
            try:
                scored = await self._scored(tickets, receive)
                return await self.in_thread(self._answer, request, scored, started)
            finally:
                self.batcher.release(tickets)
        finally:
            self.budget.give(size)

    def _check_room(self) -> None:
        """Refuse at once what would be refused after its body was received."""
        if not self.batcher.is_alive:
            raise Refused(503, "the service is not ready", 1)
        if not self.batcher.has_room():
            raise _busy(self.batcher.retry_after)
        self.unread.check()

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, partial(work, *arguments))

    def _parse(self, content_type: str, body: bytes) -> tuple[PredictRequest, list[int]]:
        """The request and the pixels of its images, from their headers: nothing is decoded here."""
        request = parse_request(content_type, body, self.options.max_images)
        counts = [pixel_count(upload.data) for upload in request.uploads]
        total = 0
        for upload, count in zip(request.uploads, counts, strict=True):
            total += count
            if total > self.options.max_pixels:
                raise too_many_pixels(upload.name, total, self.options.max_pixels)
        return request, counts

    def _admit(self, uploads: Sequence[Upload], pixels: Sequence[int]) -> list[Ticket]:
        sources = [partial(_decode, upload, self.options.max_pixels) for upload in uploads]
        try:
            return self.batcher.admit(list(zip(sources, pixels, strict=True)))
        except QueueFull as error:
            raise _busy(error.retry_after) from error

    async def _scored(self, tickets: Sequence[Ticket], receive: Receive) -> list[tuple[Prepared, Raw] | str]:
        """What came of each ticket. Raises Refused (504) when it takes too long, Disconnected."""
        futures = [asyncio.wrap_future(ticket.future) for ticket in tickets]
        scored, gone = (asyncio.ensure_future(work) for work in (asyncio.wait(futures), _disconnect(receive)))
        waited: set[asyncio.Future[Any]] = {scored, gone}
        try:
            done, _ = await asyncio.wait(
                waited, timeout=self.options.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if scored in done:
                return [future.result() for future in futures]
            if gone in done:
                raise Disconnected
            raise Refused(504, f"not scored within {self.options.timeout:g} seconds; try again later", 1)
        finally:
            gone.cancel()
            scored.cancel()

    def _answer(
        self, request: PredictRequest, scored: Sequence[tuple[Prepared, Raw] | str], started: float
    ) -> tuple[int, bytes]:
        entries: list[dict[str, Any]] = []
        kept: list[str | None] = []
        for upload, outcome in zip(request.uploads, scored, strict=True):
            entry, path = self._entry(request, upload, outcome)
            entries.append(entry)
            kept.append(path)
        good = [entry for entry in entries if "error" not in entry]
        self.metrics.count(
            images=len(good),
            images_anomalous=sum(bool(entry["is_anomalous"]) for entry in good),
            images_failed=len(entries) - len(good),
        )
        self._note(entries, kept)
        answer = {"results": entries, "seconds": round(time.perf_counter() - started, 6)}
        return 200 if good else 422, json.dumps(answer, allow_nan=False).encode()

    def _entry(
        self, request: PredictRequest, upload: Upload, outcome: tuple[Prepared, Raw] | str
    ) -> tuple[dict[str, Any], str | None]:
        """An image's entry in the answer, and where it is kept."""
        if isinstance(outcome, str):
            return _failed(upload, outcome), None
        try:
            result = with_thresholds(self.predictor.finish(*outcome), request)
            entry = {"id": None} | answer_record(result, upload, request.map)
        except BadImage as error:
            return _failed(upload, str(error)), None
        except MemoryError:
            return _failed(upload, "not enough memory to write its results"), None
        if self.kept is None:
            return entry, None
        try:
            return entry, self.kept.save(upload.data, result.map)
        except OutputError as error:
            log.error("an image was not kept: %s", error)
            return entry, None

    def _note(self, entries: Sequence[dict[str, Any]], kept: Sequence[str | None]) -> None:
        """Write the good entries into the history and give them their numbers; without it they have none."""
        pairs = [(e, path) for e, path in zip(entries, kept, strict=True) if "error" not in e]
        if self.history is None or not pairs:
            return
        try:
            numbers = self.history.add([inspection(entry, self.model, path) for entry, path in pairs])
        except OutputError as error:
            # The scores are good all the same, and the client would only send the images again.
            log.error("inspections were not recorded: %s", error)
            self.metrics.count(history_errors=len(pairs))
            return
        for (entry, _), number in zip(pairs, numbers, strict=True):
            entry["id"] = number


def _decode(upload: Upload, max_pixels: int) -> Any:
    if upload.error:
        raise BadImage(upload.error)
    return decode_image(upload.data, upload.name, max_pixels)


def _failed(upload: Upload, cause: str) -> dict[str, Any]:
    return {"name": upload.name, "error": cause.removeprefix(f"{upload.name}: ")}


def _busy(retry_after: int) -> Refused:
    return Refused(429, f"the queue is full; try again in {retry_after} s", retry_after)


async def _disconnect(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
