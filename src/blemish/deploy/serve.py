"""The REST service: routes around a predictor. Needs the extra `serve` (FastAPI)."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi import Path as PathValue
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

import blemish
from blemish.deploy.history import (
    CALLED_ANOMALOUS,
    CALLED_NORMAL,
    DECISIONS,
    LARGEST_ID,
    VERDICTS,
    Filter,
    History,
    parse_time,
)
from blemish.deploy.limits import Disconnected, Refused, read_body
from blemish.deploy.rates import PERIODS, rates
from blemish.deploy.serve_docs import PREDICT_BODY, VERDICT_BODY, docs_page
from blemish.deploy.serve_guard import CLIENT_GONE, Guard, Refusal
from blemish.deploy.serve_metrics import CONTENT_TYPE
from blemish.deploy.serve_options import ServeOptions
from blemish.deploy.serve_results import KeptFiles, map_png, map_tiff
from blemish.deploy.serve_service import Service
from blemish.deploy.serve_uploads import check_choices, display_name, parse_object
from blemish.errors import OutputError

if TYPE_CHECKING:
    from blemish.predictor import Predictor

PAGE = Path(__file__).parent / "page"
INDEX = "index.html"
FILE_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
MAX_VERDICT_BYTES = 1000
CSV_COLUMNS = (
    *("id", "time", "name", "sha256", "width", "height", "score", "threshold", "pixel_threshold"),
    *("is_anomalous", "model", "verdict", "verdict_time"),
)
ABOUT = "Scores images for anomalies. With a token, every route but /healthz and the page needs it as a bearer token."
log = logging.getLogger(__name__)

Since = Annotated[str, Query(description="From this ISO 8601 time or day on.")]
Until = Annotated[str, Query(description="Before this ISO 8601 time, or to the end of this day.")]
Number = Annotated[str, PathValue(alias="id", description="The inspection's number.")]


def wanted_inspections(
    since: Since = "",
    until: Until = "",
    decision: Annotated[str, Query(description="anomalous or normal.")] = "",
    verdict: Annotated[str, Query(description=f"{', '.join(VERDICTS)} or none.")] = "",
    q: Annotated[str, Query(description="Part of the name.", max_length=200)] = "",
) -> Filter:
    """The filter that query parameters name; empty ones are none. Raises Refused (422)."""
    if decision:
        check_choices("decision", decision, tuple(DECISIONS))
    if verdict:
        check_choices("verdict", verdict, (*VERDICTS, "none"))
    times = _time("since", since), _time("until", until, end=True)
    return Filter(*times, decision or None, verdict or None, display_name(q) or None)


Wanted = Annotated[Filter, Depends(wanted_inspections)]


def make_app(predictor: Predictor, options: ServeOptions, checkpoint: Path | None = None) -> Guard:
    """The service as an ASGI application; its lifespan starts the inference thread and ends it.

    predictor: what `blemish.load` returns. options: host, token, limits, history; how to load is not looked at.
    checkpoint: the file the predictor was made from, where it is at hand. Raises BadOption or OutputError when the
    history or the folder of kept files cannot be had.
    """
    service = Service(predictor, options, checkpoint)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        try:
            yield
        finally:
            service.close()

    app = FastAPI(
        title="blemish",
        version=blemish.__version__,
        description=ABOUT,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # whose target would be the client's own Host header
    )
    files = _page_files()
    _add_errors(app)
    _add_state(app, service)
    _add_predict(app, service)
    _add_history(app, service)
    _add_kept(app, service)
    _add_page(app, files)
    return Guard(app, options, service.metrics, service.unread, frozenset(files))


def _page_files() -> dict[str, tuple[bytes, str]]:
    """URL path -> content and type of the page's files: what is not in here is not served."""
    found = {}
    for path in sorted(PAGE.iterdir()) if PAGE.is_dir() else []:
        if path.suffix in FILE_TYPES and path.is_file():
            found[f"/{path.name}"] = path.read_bytes(), FILE_TYPES[path.suffix]
    if f"/{INDEX}" in found:
        found["/"] = found[f"/{INDEX}"]
    return found


def _add_errors(app: FastAPI) -> None:
    """Every error is {"error": one line}."""

    @app.exception_handler(Refused)
    async def _refused(request: Request, error: Refused) -> Response:
        return Refusal(error)

    @app.exception_handler(Disconnected)
    async def _gone(request: Request, error: Disconnected) -> Response:
        return Response(status_code=CLIENT_GONE)  # which nobody is there to read

    @app.exception_handler(Exception)
    async def _failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "internal error; the service's log names it"}, 500)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        text = {404: "no such page", 405: "this page does not take that method"}.get(error.status_code)
        return JSONResponse({"error": text or str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse({"error": display_name(f"{place}: {first['msg']}")}, 422)

    @app.exception_handler(OutputError)
    async def _unavailable(request: Request, error: OutputError) -> Response:
        log.error("%s", error)
        return JSONResponse(
            {"error": "the history cannot be reached; try again later"}, 503, {"Retry-After": "5"}
        )


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", summary="Whether the process answers.")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", summary="Whether images would be scored now; 503 while starting or stopping.")
    async def readyz() -> Response:
        ready = service.batcher.is_alive
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    @app.get("/metrics", summary="Counts in Prometheus' text format.")
    async def metrics() -> Response:
        batcher = service.batcher
        gauges = {
            "queue_length": ("Images accepted and not yet answered.", batcher.length),
            "queue_capacity": ("Images accepted at most.", batcher.capacity),
            "received_bytes_held": ("Bytes of request bodies in memory.", service.budget.held),
            "answer_bytes_held": ("Bytes of large answers that clients have not taken.", service.unread.held),
        }
        return Response(service.metrics.text(gauges), media_type=CONTENT_TYPE)

    @app.get("/v1/methods", summary="What can be loaded, what is loaded, and the limits of a request.")
    async def methods() -> Response:
        return JSONResponse(service.about())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page(app.openapi()))


def _add_predict(app: FastAPI, service: Service) -> None:
    @app.post("/v1/predict", summary="Score one or more images.", openapi_extra=PREDICT_BODY)
    async def predict(request: Request) -> Response:
        """Score one or more images: score, decision, regions, and on demand the map.

        An image that cannot be scored has an "error" in place of results; 422 when none could be. Other errors: 400,
        401, 408, 413, 415, 429 (with Retry-After), 503, 504.
        """
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refused(415, "compressed bodies are not taken; send it plain")
        status, body = await service.predict(request.receive, request.headers, request.scope["blemish"])
        return Response(body, status, media_type="application/json")


def _add_history(app: FastAPI, service: Service) -> None:
    # Plain functions: they run in threads, since databases make them wait.
    @app.get("/v1/history", summary="Inspections, newest first.")
    def history(
        wanted: Wanted,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        before: Annotated[
            int | None, Query(ge=0, le=LARGEST_ID, description='The last answer\'s "next".')
        ] = None,
    ) -> Response:
        found = _history(service).page(wanted, limit + 1, before)
        following = found[limit - 1]["id"] if len(found) > limit else None
        return JSONResponse({"items": [_shown(item) for item in found[:limit]], "next": following})

    @app.get("/v1/history.csv", summary="The same as a table.")
    def history_csv(wanted: Wanted) -> Response:
        lines = _csv_lines(_history(service), wanted)
        headers = {"Content-Disposition": 'attachment; filename="history.csv"'}
        return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)

    @app.get("/v1/rates", summary="Images, alarms and verdicts in each hour, day or week.")
    def rates_table(
        by: Annotated[str, Query(description=f"{', '.join(PERIODS)}.")] = "day",
        since: Since = "",
        limit: Annotated[int, Query(ge=1, le=400, description="Periods at most, the last ones.")] = 90,
    ) -> Response:
        check_choices("by", by, tuple(PERIODS))
        return JSONResponse({"periods": rates(_history(service), by, _time("since", since), limit)})


def _add_kept(app: FastAPI, service: Service) -> None:
    @app.put("/v1/history/{id}/verdict", summary="The operator's verdict.", openapi_extra=VERDICT_BODY)
    async def judge(number: Number, request: Request) -> Response:
        """Set the operator's verdict on an inspection, or take it back with null.

        Of images called anomalous: confirmed or false_alarm; of images called normal: missed or correct.
        """
        body = await read_body(
            request.receive,
            request.headers.get("content-length"),
            max_bytes=MAX_VERDICT_BYTES,
            timeout=service.options.timeout,
            budget=service.budget,
        )
        service.budget.give(len(body))
        values = parse_object(body)
        if "verdict" not in values:
            raise Refused(422, 'the body has no "verdict"')
        verdict = values["verdict"]
        check_choices("verdict", verdict, (*VERDICTS, None))
        return JSONResponse(await service.in_thread(_judge, _history(service), number, verdict))

    @app.get("/v1/history/{id}/image", summary="The image of an inspection, where it was kept.")
    def image(number: Number) -> Response:
        kept, item = _kept(service, number)
        data, kind = _found(kept.image, item["kept"])
        return Response(data, media_type=kind)

    @app.get("/v1/history/{id}/map", summary="The map of an inspection, where it was kept.")
    def anomaly_map(
        number: Number, format: Annotated[str, Query(description="png (16 bit) or tiff (float32).")] = "png"
    ) -> Response:
        """The map; of a PNG, the header X-Map-Range says which values its levels 0 and 65535 stand for."""
        check_choices("format", format, ("png", "tiff"))
        kept, item = _kept(service, number)
        values, span = _found(kept.map, item["kept"]), (item["map_low"], item["map_high"])
        data = map_png(values, span) if format == "png" else map_tiff(values)
        return Response(data, media_type=f"image/{format}", headers={"X-Map-Range": f"{span[0]},{span[1]}"})


def _add_page(app: FastAPI, files: dict[str, tuple[bytes, str]]) -> None:
    def serve(content: bytes, kind: str) -> Callable[[], Any]:
        async def file() -> Response:
            return Response(content, media_type=kind)

        return file

    for path, (content, kind) in files.items():
        app.add_api_route(path, serve(content, kind), methods=["GET"], include_in_schema=False)


def _history(service: Service) -> History:
    if service.history is None:
        raise Refused(404, "no history is kept; start the service with --db FILE")
    return service.history


def _kept(service: Service, number: str) -> tuple[KeptFiles, dict[str, Any]]:
    service.unread.check()
    item = _history(service).get(_number(number))
    if item is None or item["kept"] is None or service.kept is None:
        raise Refused(404, "no such inspection, or its files were not kept (--keep DIR)")
    return service.kept, item


def _found(read: Callable[[str], Any], name: str) -> Any:
    try:
        return read(name)
    except OSError as error:
        raise Refused(404, "the files of this inspection are no longer there") from error


def _number(text: str) -> int:
    """An inspection's number from a path; 0, which none has, for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _judge(history: History, number: str, verdict: str | None) -> dict[str, Any]:
    item = history.get(_number(number))
    if item is not None and verdict is not None and item["is_anomalous"] is not None:
        fitting = CALLED_ANOMALOUS if item["is_anomalous"] else CALLED_NORMAL
        if verdict not in fitting:
            called = "anomalous" if item["is_anomalous"] else "normal"
            raise Refused(
                422, f"it was called {called}; its verdict is {' or '.join(fitting)}, not {verdict}"
            )
    item = history.judge(_number(number), verdict)
    if item is None:
        raise Refused(404, "no such inspection")
    return _shown(item)


def _shown(item: dict[str, Any]) -> dict[str, Any]:
    """An inspection as the API shows it."""
    shown = {key: value for key, value in item.items() if key not in ("map_low", "map_high", "kept")}
    return shown | {"map_range": [item["map_low"], item["map_high"]], "kept": item["kept"] is not None}


def _time(name: str, text: str, end: bool = False) -> str | None:
    try:
        return parse_time(text, end) if text else None
    except (ValueError, OverflowError) as error:
        given = display_name(text)[:40]
        raise Refused(
            422, f"{name} is {given!r}; expected a time such as 2026-11-22 or 2026-11-22T06:30Z"
        ) from error


def _csv_lines(history: History, wanted: Filter) -> Iterator[str]:
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for item in history.all(wanted):
        item["name"] = _no_formula(item["name"])
        table.writerow({k: str(v).lower() if isinstance(v, bool) else v for k, v in item.items()})
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def _no_formula(name: str) -> str:
    """A name that spreadsheets take for text: it came from a client."""
    return f"'{name}" if name[:1] in ("=", "+", "-", "@", "\t") else name
