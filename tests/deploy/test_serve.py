"""The service's routes: answers, errors, what is never served, and that it lives on afterwards."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import tifffile
from PIL import Image

from serving import Running, form, in_base64, png, running, until

LIMITS = {"max_bytes": 200_000, "max_pixels": 20_000, "max_images": 4}


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(**LIMITS) as found:
        yield found


def test_one_image(service: Running) -> None:
    data = png(204)
    answer = service.predict(("part.png", data))
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    (found,) = answer.json["results"]
    assert answer.json["seconds"] >= found.pop("seconds") >= 0
    assert found.pop("regions") == [{"box": [0, 0, 20, 12], "area": 240, "peak": 0.8}]
    assert found.pop("score") == pytest.approx(0.8) and found.pop("map_max") == pytest.approx(0.8)
    assert found == {
        **{"id": None, "name": "part.png", "sha256": hashlib.sha256(data).hexdigest()},
        **{"width": 20, "height": 12, "threshold": 0.5, "is_anomalous": True},
        **{"map_range": [0.0, 1.0], "pixel_threshold": 0.6},
    }


def test_form_and_json_give_the_same(service: Running) -> None:
    images = [(f"{i}.png", png(seed=str(i))) for i in range(3)]
    one = service.predict(*images, map="png", threshold="0.1", pixel_threshold="1").json["results"]
    values = {"images": [in_base64(*image) for image in images], "map": "png"}
    two = service.predict_json(values | {"threshold": 0.1, "pixel_threshold": 1}).json["results"]
    for entry in (*one, *two):
        del entry["seconds"]
    assert one == two and [entry["name"] for entry in one] == ["0.png", "1.png", "2.png"]
    assert all(e["threshold"] == 0.1 and e["is_anomalous"] and e["regions"] == [] for e in one)


def test_maps(service: Running) -> None:
    data = png(seed="map", size=(31, 17))
    ((sixteen,), (floats,)) = (
        service.predict(("m.png", data), map=kind).json["results"] for kind in ("png", "tiff")
    )
    assert (sixteen["map_format"], floats["map_format"]) == ("png16", "tiff")
    exact = tifffile.imread(io.BytesIO(base64.b64decode(floats["map"])))
    picture = Image.open(io.BytesIO(base64.b64decode(sixteen["map"])))
    assert exact.dtype == np.float32 and exact.shape == (17, 31) and picture.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(picture), np.rint(exact.astype(float) * 65535))
    assert floats["map_max"] == pytest.approx(float(exact.max()))
    assert "map" not in service.predict(("m.png", data), map="none").json["results"][0]


def test_bad_images_are_errors_of_their_own(service: Running) -> None:
    answer = service.predict(
        ("good.png", png()), ("bad.png", b"no picture"), ("empty.png", b""), ("cut.png", png()[:60])
    )
    good, *bad = answer.json["results"]
    assert answer.status == 200 and "score" in good
    assert [sorted(entry) for entry in bad] == [["error", "name"]] * 3
    assert "not an image" in bad[0]["error"] and "empty" in bad[1]["error"]
    answer = service.predict_json({"images": [{"name": "x", "data": "???"}]})
    assert answer.status == 422 and "not base64" in answer.json["results"][0]["error"]


def test_an_image_the_network_fails_on_costs_only_itself(service: Running) -> None:
    answer = service.predict(("black.png", png(0)), ("good.png", png()))
    black, good = answer.json["results"]
    assert "internal error" in black["error"] and "score" in good
    assert service.predict(("good.png", png())).status == 200


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that unfolds to many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([("bomb.png", bomb(60_000, 60_000))], "bomb.png: with it the request has 3600 megapixels"),
        ([("a.png", png(size=(100, 150))), ("b.png", png(size=(100, 150)))], "b.png: with it"),
        ([(f"{i}.png", png()) for i in range(5)], "more than the 4 images"),
        ([("big.png", bytes(200_001))], "larger than the 0.2 MB"),
    ],
)
def test_413(service: Running, images: list[tuple[str, bytes]], words: str) -> None:
    answer = service.predict(*images)
    assert answer.status == 413 and words in answer.error
    assert service.ask("GET", "/healthz").json == {"status": "ok"}


def test_413_without_a_declared_length(service: Running) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(50):
            sent += 20_000
            yield bytes(20_000)

    answer = service.ask("POST", "/v1/predict", endless(), Content_Type="application/json")
    assert answer.status == 413 and sent <= 1_000_000


GOOD_BODY, GOOD_TYPE = form((("a.png", png()),), {})


@pytest.mark.parametrize(
    ("status", "kind", "body", "words"),
    [
        (400, "multipart/form-data", GOOD_BODY, "names no boundary"),
        (400, GOOD_TYPE, GOOD_BODY[:-10], "ends before"),
        (400, GOOD_TYPE, b"nothing of the kind", "malformed form"),
        (400, GOOD_TYPE, b"", "ends before"),
        (400, GOOD_TYPE, b"--B\r\nContent-Disposition: form-data\r\n\r\nx\r\n--B--\r\n", "with a name"),
        (400, GOOD_TYPE, b"--B\r\nnot a header at all\r\n\r\nx\r\n--B--\r\n", "malformed form"),
        (400, f"multipart/form-data; boundary={'B' * 300}", GOOD_BODY, "malformed form"),
        (400, "application/json", b'{"images": [', "malformed JSON"),
        (400, "application/json", b"\xff\xfe", "malformed JSON"),
        (400, "application/json", b"[" * 40_000, "malformed JSON"),
        (413, "application/json", b"[" * 100_000, "too many values"),
        (422, "application/json", b"[1]", "no JSON object"),
        (422, "application/json", b"{}", "no images"),
        (422, "application/json", b'{"images": "x"}', "no list"),
        (422, "application/json", b'{"images": [3]}', "image 1 is no object"),
        (422, "application/json", b'{"images": [{"data": "", "name": 3}]}', "name of image 1"),
        (422, "application/json", b'{"images": [], "imagse": 1}', "unknown field 'imagse'"),
        (422, "application/json", b'{"images": [{"data": "AA"}], "threshold": NaN}', "finite"),
        (422, "application/json", b'{"images": [{"data": "AA"}], "threshold": true}', "finite"),
        (422, "application/json", b'{"images": [{"data": "AA"}], "map": ["png"]}', "map is"),
        (415, "text/plain", b"x", "text/plain"),
        (415, "application/x-www-form-urlencoded", b"images=x", "expected multipart"),
        (415, "", b"x", "missing"),
    ],
)
def test_malformed_requests(service: Running, status: int, kind: str, body: bytes, words: str) -> None:
    answer = service.ask("POST", "/v1/predict", body, Content_Type=kind)
    assert (answer.status, words in answer.error) == (status, True), answer.body


def test_malformed_fields(service: Running) -> None:
    for fields, words in (
        ({"map": "gif"}, "map is 'gif'"),
        ({"threshold": "high"}, "threshold is 'high'"),
        ({"pixel_threshold": "inf"}, "pixel_threshold is 'inf'"),
        ({"threshold": "1" * 100}, "longer than"),
        ({f"x{i}": "" for i in range(20)}, "fields besides"),
    ):
        answer = service.predict(("a.png", png()), **fields)
        assert answer.status == 422 and words in answer.error
    assert service.predict().status == 422 and "no images" in service.predict().error
    compressed = service.ask("POST", "/v1/predict", b"x", Content_Type=GOOD_TYPE, Content_Encoding="gzip")
    assert compressed.status == 415


@pytest.mark.parametrize(
    "path",
    [
        *("/../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/page/../serve.py", "/serve.py", "/index.html/"),
        *("/%2e%2e/serve.py", "//etc/passwd", "/page/page.js", "/static/x", "/v1/history/..%2f..%2fx/image"),
        *("/v1/history/1/image", "/v1/history/-1/map", "/redoc", "/v1/history/1/../../../etc/passwd"),
    ],
)
def test_paths_that_are_not_there(service: Running, path: str) -> None:
    answer = service.ask("GET", path)
    assert answer.status == 404 and answer.error


def test_names_are_labels_only(service: Running) -> None:
    names = ["../../../tmp/x.png", "a\x1b[31m.png", "n" * 1000, ""]
    images = [in_base64(name, png()) for name in names]
    found = [entry["name"] for entry in service.predict_json({"images": images}).json["results"]]
    assert found == ["../../../tmp/x.png", "a\N{REPLACEMENT CHARACTER}[31m.png", "n" * 255, "image 4"]


def test_headers(service: Running) -> None:
    for path in ("/healthz", "/", "/v1/methods", "/nowhere"):
        headers = service.ask("GET", path, Origin=f"http://127.0.0.1:{service.port}").headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert not [name for name in headers if name.startswith("access-control")]
    assert service.ask("OPTIONS", "/v1/predict", Origin="http://else.where").status == 403
    assert service.ask("DELETE", "/v1/predict").status == 405


def test_other_sites_pages_are_refused(service: Running) -> None:
    body, kind = form((("a.png", png()),), {})
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}):
        answer = service.ask("POST", "/v1/predict", body, Content_Type=kind, **headers)
        assert answer.status == 403 and answer.error
    assert service.ask("GET", "/v1/methods", Host=f"localhost:{service.port}").status == 200
    with running(no_auth=True) as behind_a_proxy:
        assert behind_a_proxy.ask("GET", "/v1/methods", Host="parts.example").status == 200
        assert behind_a_proxy.ask("GET", "/v1/methods", Origin="http://evil.example").status == 403


def test_about(service: Running) -> None:
    found = service.ask("GET", "/v1/methods").json
    assert "anomaly_clip" in found["methods"] and found["limits"] == LIMITS | {"queue": 64}
    assert (found["history"], found["keep"]) == (False, False)
    loaded = found["loaded"]
    assert loaded["method"] == "clip" and loaded["map_range"] == [0.0, 1.0] and loaded["runtime"] == "torch"
    for method in ("GET", "HEAD"):
        assert service.ask(method, "/readyz").status == service.ask(method, "/healthz").status == 200
    for path in ("/v1/history", "/v1/rates", "/v1/history.csv"):
        assert service.ask("GET", path).status == 404 and "--db" in service.ask("GET", path).error


def test_description_of_the_api(service: Running) -> None:
    paths = service.ask("GET", "/openapi.json").json["paths"]
    assert {"/v1/predict", "/v1/history", "/v1/history/{id}/verdict", "/healthz"} <= set(paths)
    kinds = paths["/v1/predict"]["post"]["requestBody"]["content"]
    assert set(kinds) == {"multipart/form-data", "application/json"}
    page = service.ask("GET", "/docs")
    assert page.headers["content-type"].startswith("text/html") and b"/v1/rates" in page.body
    assert b"<script" not in page.body and b"http" not in page.body.replace(b"HTTP", b"")


def test_metrics(service: Running) -> None:
    before = service.metrics()
    service.predict(("a.png", png(204)), ("b.png", png(50)), ("c.png", b"no"))
    # Counted once the answer has been sent, so perhaps after the client has it.
    route = 'blemish_requests_total{route="/v1/predict",status="200"}'
    until(lambda: service.metrics()[route] > before.get(route, 0))
    after = service.metrics()

    def added(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert added(route) == 1
    assert added("blemish_images_total") == 2 and added("blemish_images_anomalous_total") == 1
    assert added("blemish_images_failed_total") == 1 and added("blemish_predict_seconds_count") == 1
    assert added('blemish_batch_size_bucket{le="+Inf"}') >= 1 and after["blemish_queue_length"] == 0
    service.ask("GET", "/some/path")
    until(lambda: service.metrics().get('blemish_requests_total{route="other",status="404"}', 0) >= 1)


def test_token() -> None:
    with running(token="s3cret", host="127.0.0.1") as service:
        for headers in (
            {"Authorization": ""},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer s3cre"},
            {"Authorization": "Basic s3cret"},
            {"Authorization": "Bearer \xe9"},
        ):
            for path in ("/v1/methods", "/readyz", "/metrics", "/docs", "/openapi.json", "/nowhere"):
                answer = service.ask("GET", path, **headers)
                assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
            body, kind = form((("a.png", png()),), {})
            assert service.ask("POST", "/v1/predict", body, Content_Type=kind, **headers).status == 401
            assert service.ask("GET", "/healthz", **headers).status == 200
        assert service.ask("GET", "/", Authorization="").status in (200, 404)
        assert service.predict(("a.png", png())).status == 200
        assert service.ask("GET", "/v1/methods", Authorization="bearer s3cret").status == 200


def test_logs_hold_no_content(service: Running, caplog: pytest.LogCaptureFixture) -> None:
    from blemish.deploy.serve_log import JsonLines

    with caplog.at_level("INFO", logger="blemish.serve"):
        service.predict(("secret-name.png", png()))
        until(lambda: caplog.records)
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    (line,) = [line for line in lines if line.get("route") == "/v1/predict"]
    assert line["status"] == 200 and line["count"] == 1 and line["bytes"] > 100 and line["ms"] > 0
    assert "secret-name" not in json.dumps(lines)
