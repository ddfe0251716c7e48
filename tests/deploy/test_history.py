"""The history: SQLite and PostgreSQL alike, through the service, after a restart, and as thresholds."""

from __future__ import annotations

import contextlib
import csv
import io
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from blemish.deploy.history import Filter, History, Inspection, parse_time, utc
from blemish.deploy.history_databases import open_database
from blemish.deploy.rates import rates
from blemish.errors import BadOption, OutputError, UnknownName
from serving import Running, StubPredictor, png, running

ONE = Inspection(
    "2026-11-22T06:00:00.000000Z", "a.png", "00", 4, 3, 0.75, 0.0, 1.0, 0.5, None, True, "m", None
)


@pytest.fixture
def history(place: str) -> Iterator[History]:
    with contextlib.closing(History(open_database(place))) as found:
        yield found


def test_records_come_back(history: History) -> None:
    other = replace(
        ONE, name="ä '; DROP TABLE inspections; -- %s :name", is_anomalous=None, threshold=None, kept="k"
    )
    assert history.add([ONE, other]) == [1, 2] and history.add([ONE]) == [3]
    first, second = history.get(1), history.get(2)
    assert first is not None and second is not None
    assert first["score"] == 0.75 and first["is_anomalous"] is True and first["verdict"] is None
    assert second["name"] == other.name and second["is_anomalous"] is None and second["threshold"] is None
    assert history.get(4) is None and history.get(0) is None and history.get(2**70) is None


def test_filters_and_pages(history: History) -> None:
    for hour in range(5):
        time = f"2026-11-2{hour}T06:00:00.000000Z"
        history.add([replace(ONE, time=time, name=f"Part_{hour}%.png", is_anomalous=hour % 2 == 0)])
    history.judge(1, "confirmed")
    history.judge(2, "missed")

    def ids(**wanted: str) -> list[int]:
        return [item["id"] for item in history.page(Filter(**wanted), 10)]

    assert ids() == [5, 4, 3, 2, 1] and [i["id"] for i in history.all(Filter())] == [5, 4, 3, 2, 1]
    assert ids(since=parse_time("2026-11-22"), until=parse_time("2026-11-23", end=True)) == [4, 3]
    assert ids(decision="anomalous") == [5, 3, 1] and ids(decision="normal") == [4, 2]
    assert ids(verdict="missed") == [2] and ids(verdict="none") == [5, 4, 3]
    assert ids(q="part_3") == [4] and ids(q="%") == [5, 4, 3, 2, 1] and ids(q="_%") == [] and ids(q="'") == []
    assert [i["id"] for i in history.page(Filter(), 2, before=4)] == [3, 2]


def test_verdicts(history: History) -> None:
    history.add([ONE])
    judged = history.judge(1, "confirmed")
    assert judged is not None and judged["verdict"] == "confirmed" and judged["verdict_time"] > ONE.time
    taken_back = history.judge(1, None)
    assert taken_back is not None and taken_back["verdict"] is None and taken_back["verdict_time"] is None
    assert history.judge(9, "confirmed") is None


def test_rates(history: History) -> None:
    times = ("2026-11-14T23:59", "2026-11-15T00:00", "2026-11-16T10:00", "2026-11-16T11:00")
    for number, time in enumerate(times, start=1):
        history.add([replace(ONE, time=f"{time}:00.000000Z", is_anomalous=number != 2)])
    for number, verdict in enumerate(("confirmed", "missed", "false_alarm"), start=1):
        history.judge(number, verdict)
    days = rates(history, "day")
    assert [(d["start"], d["count"], d["anomalous"]) for d in days] == [
        ("2026-11-14T00:00:00Z", 1, 1),
        ("2026-11-15T00:00:00Z", 1, 0),
        ("2026-11-16T00:00:00Z", 2, 2),
    ]
    assert [(d["confirmed"], d["missed"], d["false_alarm"], d["correct"]) for d in days] == [
        (1, 0, 0, 0),
        (0, 1, 0, 0),
        (0, 0, 1, 0),
    ]
    # The 14th and 15th of November 2026 are a Saturday and a Sunday.
    assert [(w["start"][:10], w["count"]) for w in rates(history, "week")] == [
        ("2026-11-09", 2),
        ("2026-11-16", 2),
    ]
    hours = rates(history, "hour", since=parse_time("2026-11-16"))
    assert [h["start"] for h in hours] == ["2026-11-16T10:00:00Z", "2026-11-16T11:00:00Z"]
    assert [d["start"][:10] for d in rates(history, "day", limit=2)] == ["2026-11-15", "2026-11-16"]
    with pytest.raises(UnknownName, match="month"):
        rates(history, "month")


def test_models_and_versions(history: History, place: str) -> None:
    history.add_model("m", {"method": "clip"})
    history.add_model("m", {"method": "other"})
    assert history.models() == {"m": {"method": "clip"}}
    history.database.run([("UPDATE blemish_history SET version = 99", {})])
    with pytest.raises(BadOption, match="version 99"), contextlib.closing(open_database(place)) as database:
        History(database)


def test_an_error_undoes_all_of_a_request(history: History) -> None:
    with pytest.raises(OutputError, match="history"):
        history.add([ONE, replace(ONE, name=None)])  # type: ignore[arg-type]
    assert history.page(Filter(), 10) == [] and len(history.add([ONE])) == 1


def test_a_lost_server_connection_is_made_anew(postgres: str) -> None:
    import psycopg

    with contextlib.closing(History(open_database(postgres))) as history:
        before = history.add([ONE])[0]
        with psycopg.connect(postgres, autocommit=True) as other:
            sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            other.execute(sql)
        assert history.add([ONE])[0] > before


def test_services_that_start_together_make_one_history(place: str) -> None:
    count = 6
    together = threading.Barrier(count)

    def start() -> dict[str, object]:
        with contextlib.closing(open_database(place)) as database:
            together.wait(60)
            history = History(database)
            history.add_model("m", {"method": "clip"})
            return history.models()

    with ThreadPoolExecutor(count) as pool:
        found = [future.result(60) for future in [pool.submit(start) for _ in range(count)]]
    assert found == [{"m": {"method": "clip"}}] * count
    with contextlib.closing(open_database(place)) as database:
        assert database.run([("SELECT version FROM blemish_history", {})]) == [[(1,)]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("mysql://x/y", "expected a file for SQLite, or postgresql"),
        ("postgresql://u:hush@127.0.0.1:1/x", "cannot open the history at postgresql://127.0.0.1:1/x"),
        # the driver's own words on these would tell the password
        ("postgresql://u:a%zzhush@127.0.0.1:1/x", "cannot be read; expected postgresql://USER:PASSWORD@HOST"),
        ("postgresql://u:a hush@127.0.0.1:1/x", "cannot be read"),
        ("postgresql://u:a@hush:1@127.0.0.1:1/x", "an @ is %40"),
        ("postgresql://u:hush@[127.0.0.1/x", "cannot be read"),
    ],
)
def test_places_that_are_none(given: str, words: str) -> None:
    with pytest.raises(BadOption, match=words) as error:
        open_database(given)
    assert "hush" not in str(error.value)


def test_files_that_are_no_history(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"something else entirely, and long enough to be taken for a file" * 30)
    with pytest.raises(BadOption, match="not a database"):
        open_database(path)
    with pytest.raises(BadOption, match="no history"):
        open_database(tmp_path / "missing.db", create=False)
    with pytest.raises(BadOption, match="cannot open"):
        open_database(tmp_path)


def test_reading_makes_nothing(place: str, tmp_path: Path) -> None:
    for _ in range(2):
        with (
            pytest.raises(BadOption, match="no history"),
            contextlib.closing(open_database(place, create=False)) as database,
        ):
            History(database, create=False)
    with contextlib.closing(History(open_database(place))) as made:
        made.add([ONE])
        with contextlib.closing(History(open_database(place, create=False), create=False)) as read:
            assert len(read.page(Filter(), 10)) == 1
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as connection, connection:
        connection.execute("CREATE TABLE mine (x)")
    before = other.read_bytes()
    with (
        pytest.raises(BadOption, match="holds no history"),
        contextlib.closing(open_database(other, create=False)) as database,
    ):
        History(database, create=False)
    assert other.read_bytes() == before and not other.with_name("other.db-wal").exists()


def test_times() -> None:
    assert parse_time("2026-11-22") == "2026-11-22T00:00:00.000000Z"
    assert parse_time("2026-11-22", end=True) == "2026-11-23T00:00:00.000000Z"
    assert parse_time("2026-11-22T08:00+02:00") == "2026-11-22T06:00:00.000000Z"
    assert len(utc()) == len(ONE.time)
    for text in ("yesterday", "2026-13-01", ""):
        with pytest.raises(ValueError, match=r".*"):
            parse_time(text)
    with pytest.raises(ValueError, match="9999"):
        parse_time("9999-12-31", end=True)


def inspect(service: Running, *levels: int) -> list[int]:
    """Numbers of inspections of grey pictures."""
    answer = service.predict(*((f"{level}.png", png(level)) for level in levels))
    assert answer.status == 200
    return [entry["id"] for entry in answer.json["results"]]


def test_through_the_service_and_a_restart(place: str, tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    with running(db=place, keep=str(keep)) as service:
        assert inspect(service, 204, 51, 229) == [1, 2, 3]
        assert service.put_verdict(1, "confirmed").json["verdict"] == "confirmed"
        assert service.put_verdict(2, "missed").json["kept"] is True
        for number, verdict, status, words in (
            (2, "confirmed", 422, "called normal; its verdict is missed or correct"),
            (1, "correct", 422, "called anomalous"),
            (1, "perhaps", 422, "perhaps"),
            (99, "missed", 404, "no such"),
            ("x", "missed", 404, "no such"),
        ):
            answer = service.put_verdict(number, verdict)
            assert answer.status == status and words in answer.error
        for body, status in (
            (b"{", 400),
            (b"[]", 422),
            (b"{}", 422),
            (b"x" * 2000, 413),
            (b'{"verdict": []}', 422),
        ):
            assert service.ask("PUT", "/v1/history/1/verdict", body).status == status
    with running(db=place, keep=str(keep)) as service:
        answer = service.ask("GET", "/v1/history?limit=2").json
        assert [item["id"] for item in answer["items"]] == [3, 2] and answer["next"] == 2
        answer = service.ask("GET", "/v1/history?limit=2&before=2").json
        assert answer["next"] is None
        (first,) = answer["items"]
        assert first["name"] == "204.png" and first["verdict"] == "confirmed" and first["kept"] is True
        assert first["map_range"] == [0.0, 1.0] and first["is_anomalous"] is True
        assert (
            service.ask("GET", "/v1/history?decision=normal&verdict=missed&q=51").json["items"][0]["id"] == 2
        )
        image = service.ask("GET", "/v1/history/1/image")
        assert image.headers["content-type"] == "image/png" and image.body == png(204)
        sixteen, floats = (service.ask("GET", f"/v1/history/1/map{x}") for x in ("", "?format=tiff"))
        assert sixteen.headers["x-map-range"] == "0.0,1.0" and floats.headers["content-type"] == "image/tiff"
        assert np.asarray(Image.open(io.BytesIO(sixteen.body))).max() == round(0.8 * 65535)
        assert tifffile.imread(io.BytesIO(floats.body)).shape == (12, 20)
        (period,) = service.ask("GET", "/v1/rates?by=day").json["periods"]
        assert (period["count"], period["anomalous"], period["confirmed"], period["missed"]) == (3, 2, 1, 1)
        assert inspect(service, 10) == [4]


def test_bad_queries(tmp_path: Path) -> None:
    with running(db=str(tmp_path / "h.db")) as service:
        for query in (
            "limit=0",
            "limit=x",
            "before=-1",
            f"before={2**80}",
            "since=soon",
            "decision=odd",
            "verdict=x",
        ):
            answer = service.ask("GET", f"/v1/history?{query}")
            assert answer.status == 422 and query.split("=")[0] in answer.error
        assert service.ask("GET", "/v1/rates?by=month").status == 422
        assert service.ask("GET", "/v1/history?since=&q=").json == {"items": [], "next": None}
        inspect(service, 50)
        assert service.ask("GET", "/v1/history/1/image").status == 404  # not kept
        assert service.ask("GET", "/v1/history").json["items"][0]["kept"] is False


def test_table(tmp_path: Path) -> None:
    with running(db=str(tmp_path / "h.db")) as service:
        service.predict(('=1+1,"x".png'.replace('"', "'"), png(204)), ("b.png", png(51)))
        answer = service.ask("GET", "/v1/history.csv?decision=anomalous")
    assert (
        answer.headers["content-type"].startswith("text/csv")
        and "attachment" in answer.headers["content-disposition"]
    )
    (row,) = csv.DictReader(io.StringIO(answer.body.decode()))
    assert row["name"] == "'=1+1,'x'.png" and row["is_anomalous"] == "true" and float(row["score"]) > 0.79


def test_kept_paths_lead_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    database = tmp_path / "h.db"
    with running(db=str(database), keep=str(tmp_path / "kept")) as service:
        inspect(service, 204)
        with contextlib.closing(sqlite3.connect(database)) as other, other:
            other.execute("UPDATE inspections SET kept = '../secret.png'")
        assert service.ask("GET", "/v1/history/1/image").status == 404
        assert service.ask("GET", "/v1/history/1/map").status == 404
        service.predict(("../../escape.png", png()))
    assert {path.name for path in tmp_path.iterdir()} <= {
        "secret.png",
        "h.db",
        "kept",
        "h.db-wal",
        "h.db-shm",
    }


def test_scores_survive_a_history_that_does_not(tmp_path: Path) -> None:
    database, keep = tmp_path / "h.db", tmp_path / "kept"
    with running(db=str(database), keep=str(keep)) as service:
        with contextlib.closing(sqlite3.connect(database)) as other, other:
            other.execute("DROP TABLE inspections")
        shutil.rmtree(keep)
        keep.write_text("in the way")
        answer = service.predict(("a.png", png()))
        assert answer.status == 200 and answer.json["results"][0]["id"] is None
        assert service.metrics()["blemish_history_errors_total"] == 1
        answer = service.ask("GET", "/v1/history")
        assert answer.status == 503 and answer.headers["retry-after"] and "tmp" not in answer.error
        assert service.ask("GET", "/healthz").status == 200


def test_inspections_name_their_model(tmp_path: Path) -> None:
    names = set()
    stub = StubPredictor()
    for setup in (
        stub.setup,
        replace(stub.setup, threshold=0.9, checkpoint="renamed"),
        replace(stub.setup, options={"k": 2}),
    ):
        with running(StubPredictor(setup), db=str(tmp_path / "h.db")) as service:
            inspect(service, 50)
            names.add(service.ask("GET", "/v1/history?limit=1").json["items"][0]["model"])
    assert len(names) == 2 and all(name.startswith("clip/tiny/") for name in names)
