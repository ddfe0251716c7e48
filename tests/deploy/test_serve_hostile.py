"""The service and clients that mean it no good: answers nobody reads, floods, bodies of any bytes."""

from __future__ import annotations

import contextlib
import hmac
import json
import re
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blemish.deploy import serve_http
from blemish.deploy.limits import Refused, UnreadAnswers
from blemish.deploy.serve_uploads import MARKS_OF_JSON, parse_request
from serving import Running, form, in_base64, png, running, until

LIMITS = {"max_bytes": 200_000, "max_pixels": 20_000, "max_images": 4}
ROUTES = ("/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/v1/methods", "/page.js")


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(**LIMITS) as found:
        yield found


# ---- answers that nobody reads

LARGE = png(100, size=(1500, 1000))  # its float32 map is 8 MB in base64, more than sockets hold


def silent_client(port: int, stack: contextlib.ExitStack) -> socket.socket:
    """One that asks for a large map and reads nothing."""
    body, kind = form((("a.png", LARGE),), {"map": "tiff"})
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"
    )
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(30)
    client.connect(("127.0.0.1", port))
    stack.callback(client.close)
    client.sendall(f"{head}\r\n\r\n".encode() + body)
    return client


def test_unread_answers_are_bounded() -> None:
    with running(max_pixels=1_500_000) as service:
        with contextlib.ExitStack() as stack:
            for count in (1, 2, 3):
                silent_client(service.port, stack)
                until(lambda n=count: service.metrics()["blemish_answer_bytes_held"] > n * 7_000_000)
            # Two answers of the largest size may wait for their clients.
            answer = service.predict(("b.png", png()))
            assert answer.status == 429 and int(answer.headers["retry-after"]) >= 1
            assert "not taken their answers" in answer.error
            assert service.ask("GET", "/healthz").status == 200
        until(lambda: service.metrics()["blemish_answer_bytes_held"] == 0)
        assert service.predict(("b.png", png())).status == 200


def read_answer(client: socket.socket) -> tuple[int, bytes]:
    """The length that an answer says it has, and what comes of it."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while block := client.recv(65536):
            found += block
            head, _, body = found.partition(b"\r\n\r\n")
            length = int((re.search(rb"content-length: (\d+)", head) or [b"", b"0"])[1])
            if len(body) >= length > 0:
                break
    return length, body


def test_an_answer_that_nobody_takes_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_http, "TAKE_SECONDS", 0.5)
    with running(max_pixels=1_500_000) as service, contextlib.ExitStack() as stack:
        client = silent_client(service.port, stack)
        done = 'blemish_requests_total{route="/v1/predict",status="200"}'
        until(lambda: service.metrics().get(done) == 1)
        length, body = read_answer(client)
        assert length > 7_000_000 > len(body)
        assert service.metrics()["blemish_answer_bytes_held"] == 0


def test_a_slow_reader_gets_all_of_its_answer() -> None:
    with running(max_pixels=1_500_000) as service, contextlib.ExitStack() as stack:
        client = silent_client(service.port, stack)
        until(lambda: service.metrics()["blemish_answer_bytes_held"] > 0)
        length, body = read_answer(client)
        assert len(body) == length and json.loads(body)["results"][0]["width"] == 1500
        until(lambda: service.metrics()["blemish_answer_bytes_held"] == 0)


def test_a_client_that_takes_something_is_waited_for() -> None:
    protocol = serve_http.PatientProtocol.__new__(serve_http.PatientProtocol)
    size, aborted, timers = [5], [], []
    protocol.transport = SimpleNamespace(
        get_write_buffer_size=lambda: size[0], abort=lambda: aborted.append(True)
    )
    protocol.loop = SimpleNamespace(call_later=lambda seconds, *work: timers.append(work))
    protocol._watch_taking()
    for left in (4, 3):
        size[0] = left
        check, before = timers.pop()
        check(before)
        assert not aborted and timers
    check, before = timers.pop()
    check(before)  # nothing more was taken
    assert aborted and not timers


def test_small_answers_do_not_count() -> None:
    unread = UnreadAnswers(10)
    unread.check()
    unread.held = 11
    with pytest.raises(Refused, match="not taken") as error:
        unread.check()
    assert error.value.status == 429 and error.value.retry_after == 1


# ---- floods


def test_connections_beyond_the_limit_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_http, "CONNECTIONS", 5)
    with running() as service:
        clients = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(5)]
        until(lambda: len(service.server.server_state.connections) == 5)
        answer = service.ask("GET", "/healthz")
        assert answer.status == 503 and "too many connections" in answer.error
        assert answer.headers["retry-after"] == "5"
        for client in clients:
            client.close()
        until(lambda: not service.server.server_state.connections)
        assert service.ask("GET", "/healthz").status == 200


# ---- JSON


@pytest.mark.parametrize("one", ["[]", "{}", "0", '{"data":""}'])
def test_json_of_very_many_values(service: Running, one: str) -> None:
    text = f'{{"images":[{",".join([one] * (MARKS_OF_JSON + 1))}]}}'.encode()
    with pytest.raises(Refused, match="too many values") as error:
        parse_request("application/json", text, max_images=4)
    assert error.value.status == 413


def test_json_of_the_most_images_is_read(service: Running) -> None:
    images = [in_base64(f"a,[{{,{i}.png", png(seed=str(i))) for i in range(4)]
    assert service.predict_json({"images": images}).status == 200


# ---- HEAD, tokens, counts


def test_head_is_get_without_its_body(service: Running) -> None:
    for path in ROUTES:
        got, head = (service.ask(method, path) for method in ("GET", "HEAD"))
        assert (head.status, head.body) == (got.status, b"") == (200, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
        if path != "/metrics":
            assert head.headers["content-length"] == str(len(got.body))
    assert service.ask("HEAD", "/nowhere").status == 404
    answer = service.ask("HEAD", "/v1/predict")
    assert answer.status == 405 and answer.headers["allow"] == "POST"


def test_head_is_logged_as_such(service: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="blemish.serve"):
        service.ask("HEAD", "/healthz")
        until(lambda: caplog.records)
    assert caplog.records[0].fields["method"] == "HEAD"  # type: ignore[attr-defined]


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def noted(given: bytes, wanted: bytes) -> bool:
        compared.append((given, wanted))
        return compare(given, wanted)

    with running(token="s3cret") as service:
        monkeypatch.setattr(hmac, "compare_digest", noted)
        assert service.ask("GET", "/v1/methods", Authorization="Bearer s3creT").status == 401
        assert service.ask("GET", "/v1/methods", Authorization="").status == 401
        assert service.ask("GET", "/v1/methods").status == 200
    assert compared == [(b"s3creT", b"s3cret"), (b"", b"s3cret"), (b"s3cret", b"s3cret")]


SAMPLE = re.compile(r'([a-z_]+)(\{[a-z_]+="[^"\\\n]*"(?:,[a-z_]+="[^"\\\n]*")*\})? (-?[0-9.e+-]+|\+Inf|NaN)')


def test_metrics_are_prometheus_text(service: Running) -> None:
    service.predict(("a.png", png()))
    service.ask("GET", '/a"b\\c%0Ad')
    answer = service.ask("GET", "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = answer.body.decode()
    assert text.endswith("\n") and "\n\n" not in text
    kinds: dict[str, str] = {}
    seen: set[str] = set()
    for line in text.splitlines():
        if line.startswith("#"):
            _, word, name, about = line.split(" ", 3)
            assert word in ("HELP", "TYPE") and about
            if word == "TYPE":
                assert name not in kinds and about in ("counter", "gauge", "histogram")
                kinds[name] = about
            continue
        found = SAMPLE.fullmatch(line)
        assert found, line
        family = found[1]
        if family not in kinds:
            family = re.sub("_(bucket|sum|count)$", "", family)
            assert kinds[family] == "histogram"
        assert (family.endswith("_total")) == (kinds[family] == "counter")
        series = found[1] + (found[2] or "")
        assert series not in seen, "a series twice"
        seen.add(series)
    for name in (name for name, kind in kinds.items() if kind == "histogram"):
        buckets = [int(n) for n in re.findall(rf'{name}_bucket{{le="[^"]+"}} (\d+)', text)]
        assert buckets == sorted(buckets) and f'{name}_bucket{{le="+Inf"}} {buckets[-1]}' in text
        assert f"{name}_count {buckets[-1]}" in text


def test_large_gauges_keep_all_their_digits() -> None:
    from blemish.deploy.serve_metrics import Metrics

    assert "blemish_x 123456789\n" in Metrics().text({"x": ("Bytes.", 123_456_789)})


# ---- bodies of any bytes

GOOD_FORM, FORM_TYPE = form((("a.png", png()),), {"map": "png"})
PIECES = st.sampled_from(
    [
        *(
            b"--B",
            b"--B\r\n",
            b"--B--",
            b"\r\n",
            b"\r\n\r\n",
            b"\r",
            b"--",
            b":",
            b";",
            b"=",
            b'"',
            b"\0",
            b"\xff",
        ),
        *(b"Content-Disposition: form-data", b'; name="images"', b'; name="map"', b'; filename="a"', b"png"),
        *(b"Content-Transfer-Encoding: base64\r\n", b"filename*=utf-8''%ff", GOOD_FORM, png()),
    ]
)
FORMS = st.lists(PIECES | st.binary(max_size=20), max_size=14).map(b"".join)
FIELD = st.sampled_from(["images", "map", "threshold", "pixel_threshold", "data", "name"]) | st.text(
    max_size=5
)
LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["png", "tiff", "none", "A", "AAAA", "1e999"])
)
VALUES = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(FIELD, inner, max_size=5), max_leaves=12
)
OBJECTS = st.dictionaries(FIELD, VALUES, max_size=5).map(lambda value: json.dumps(value).encode())


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A good body with a part cut out and some bytes put in."""
    start = draw(st.integers(0, len(whole)))
    end = draw(st.integers(start, min(len(whole), start + 60)))
    return whole[:start] + draw(st.binary(max_size=6)) + whole[end:]


GOOD_JSON = json.dumps({"images": [in_base64("a", png())], "map": "png", "threshold": 0.5}).encode()
TYPES = st.sampled_from(
    [
        *(FORM_TYPE, "application/json", "APPLICATION/JSON; charset=utf-16", "multipart/form-data", ""),
        *(
            "multipart/form-data; boundary=",
            'multipart/form-data; boundary="B',
            "multipart/mixed; boundary=B",
        ),
        *("multipart/form-data; boundary*=utf-8''B", "text/plain", ";", "a" * 300),
    ]
)
BODIES = FORMS | OBJECTS | damaged(GOOD_FORM) | damaged(GOOD_JSON) | st.binary(max_size=60)


@settings(max_examples=400, deadline=None)
@given(kind=TYPES, body=BODIES)
def test_any_body_is_read_or_refused(kind: str, body: bytes) -> None:
    try:
        found = parse_request(kind, body, max_images=4)
    except Refused as error:
        assert error.status in (400, 413, 415, 422) and error.text and error.text.isprintable()
        assert len(error.text) < 700
    else:
        assert 1 <= len(found.uploads) <= 4 and found.map in ("none", "png", "tiff")
        assert all(upload.name and upload.name.isprintable() for upload in found.uploads)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=TYPES, body=BODIES)
def test_the_service_lives_through_any_body(service: Running, kind: str, body: bytes) -> None:
    answer = service.ask("POST", "/v1/predict", body, Content_Type=kind)
    assert answer.status == 200 or 400 <= answer.status < 500, answer.body
    assert answer.json


REQUESTS = st.binary(max_size=80) | st.lists(
    st.sampled_from(
        [
            *(
                b"POST /v1/predict HTTP/1.1\r\n",
                b"GET /healthz HTTP/1.0\r\n",
                b"GET / HTTP/9.9\r\n",
                b"PRI * HTTP/2.0\r\n",
            ),
            *(b"Host: localhost\r\n", b"Host: \xff\r\n", b"Content-Length: 3\r\n", b"Content-Length: x\r\n"),
            *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"Expect: 100-continue\r\n"),
            *(
                b"\r\n",
                b"3\r\nabc\r\n",
                b"0\r\n\r\n",
                b"ffffffffffffffffffff\r\n",
                b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
            ),
        ]
    ),
    max_size=8,
).map(b"".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=REQUESTS)
def test_the_service_lives_through_any_http(service: Running, text: bytes) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as client:
        client.sendall(text)
        client.shutdown(socket.SHUT_WR)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while block := client.recv(65536):
                found += block
    for status in re.findall(rb"HTTP/1.1 (\d+)", found):
        assert int(status) < 500
    assert service.ask("GET", "/healthz").status == 200
