"""The record of inspections: what was scored, what was decided, and what the operator said about it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from blemish.deploy.history_databases import Database, Row
from blemish.errors import BadOption, OutputError

VERSION = 1
CALLED_ANOMALOUS, CALLED_NORMAL = ("confirmed", "false_alarm"), ("missed", "correct")
VERDICTS = (*CALLED_ANOMALOUS, *CALLED_NORMAL)
TRUTH = {"confirmed": 1, "missed": 1, "false_alarm": 0, "correct": 0}
DECISIONS = {"anomalous": 1, "normal": 0}
COLUMNS = (
    *("id", "time", "name", "sha256", "width", "height", "score", "map_low", "map_high"),
    *("threshold", "pixel_threshold", "is_anomalous", "model", "verdict", "verdict_time", "kept"),
)
PAGE = 500
LARGEST_ID = 2**63 - 1


@dataclass(frozen=True)
class Inspection:
    """One image scored.

    time: UTC, ISO 8601. name: the client's label. map_low, map_high: range of the map's values. model: fingerprint,
    see `history_models`. kept: path below the folder of kept files, None when there is none.
    """

    time: str
    name: str
    sha256: str
    width: int
    height: int
    score: float
    map_low: float
    map_high: float
    threshold: float | None
    pixel_threshold: float | None
    is_anomalous: bool | None
    model: str
    kept: str | None = None


@dataclass(frozen=True)
class Filter:
    """Which inspections; None: any. since, until: times as `utc` writes them, the latter exclusive. q: in the name.

    verdict: one of `VERDICTS`, or "none" for those not judged.
    """

    since: str | None = None
    until: str | None = None
    decision: str | None = None
    verdict: str | None = None
    q: str | None = None

    def sql(self) -> tuple[str, dict[str, Any]]:
        """Conditions, each beginning with AND, and their values."""
        parts: list[str] = []
        values: dict[str, Any] = {}
        for name, condition, value in (
            ("since", "time >= :since", self.since),
            ("until", "time < :until", self.until),
            ("decision", "is_anomalous = :decision", DECISIONS.get(self.decision or "")),
            ("verdict", "verdict = :verdict", None if self.verdict == "none" else self.verdict),
            ("q", "lower(name) LIKE lower(:q) ESCAPE '!'", _pattern(self.q)),
        ):
            if value is not None:
                parts.append(f" AND {condition}")
                values[name] = value
        if self.verdict == "none":
            parts.append(" AND verdict IS NULL")
        return "".join(parts), values


class History:
    """Inspections in a database; safe to use from several threads."""

    def __init__(self, database: Database, create: bool = True) -> None:
        """create: make the tables where they are missing. Raises BadOption without them, or for a newer version's."""
        self.database = database
        if create:
            self._make_tables()
        try:
            version = database.run([("SELECT max(version) FROM blemish_history", {})])[0][0][0]
        except OutputError as error:
            if create:
                raise
            raise BadOption(
                "that database holds no history; expected the one given to blemish serve --db"
            ) from error
        if version != VERSION:
            raise BadOption(
                f"the history has version {version}, this program reads {VERSION}; update blemish, or name another "
                f"with --db"
            )

    def _make_tables(self) -> None:
        database, text = self.database, self.database.text
        database.run(
            [
                (database.alone, {}),
                ("CREATE TABLE IF NOT EXISTS blemish_history (version INTEGER NOT NULL)", {}),
                (
                    f"CREATE TABLE IF NOT EXISTS inspection_models "
                    f"(fingerprint {text} PRIMARY KEY, about TEXT NOT NULL)",
                    {},
                ),
                (
                    f"CREATE TABLE IF NOT EXISTS inspections (id {database.identity}, time {text} NOT NULL, "
                    f"name TEXT NOT NULL, sha256 {text} NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL, "
                    f"score DOUBLE PRECISION NOT NULL, map_low DOUBLE PRECISION NOT NULL, "
                    f"map_high DOUBLE PRECISION NOT NULL, threshold DOUBLE PRECISION, "
                    f"pixel_threshold DOUBLE PRECISION, is_anomalous INTEGER, model {text} NOT NULL, "
                    f"verdict {text}, verdict_time {text}, kept {text})",
                    {},
                ),
                ("CREATE INDEX IF NOT EXISTS inspections_by_time ON inspections (time)", {}),
                (
                    "INSERT INTO blemish_history SELECT :version "
                    "WHERE NOT EXISTS (SELECT 1 FROM blemish_history)",
                    {"version": VERSION},
                ),
            ]
        )

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def add_model(self, fingerprint: str, about: Mapping[str, Any]) -> None:
        """Remember what a model is, unless that is known."""
        sql = (
            "INSERT INTO inspection_models (fingerprint, about) VALUES (:fingerprint, :about) "
            "ON CONFLICT (fingerprint) DO NOTHING"
        )
        self.database.run([(sql, {"fingerprint": fingerprint, "about": json.dumps(about, sort_keys=True)})])

    def models(self) -> dict[str, dict[str, Any]]:
        """fingerprint -> what the model is."""
        rows = self.database.run([("SELECT fingerprint, about FROM inspection_models", {})])[0]
        return {fingerprint: json.loads(about) for fingerprint, about in rows}

    def add(self, inspections: Sequence[Inspection]) -> list[int]:
        """Record inspections, all or none, and return their numbers. Raises OutputError."""
        names = ("time", *COLUMNS[2:13], "kept")
        places = ", ".join(f":{name}" for name in names)
        sql = f"INSERT INTO inspections ({', '.join(names)}) VALUES ({places}) RETURNING id"
        found = self.database.run([(sql, _values(inspection)) for inspection in inspections])
        return [int(rows[0][0]) for rows in found]

    def get(self, number: int) -> dict[str, Any] | None:
        """One inspection by its number; None when there is none."""
        if not 0 < number <= LARGEST_ID:
            return None
        rows = self.database.run([(f"{_SELECT} WHERE id = :id", {"id": number})])[0]
        return _item(rows[0]) if rows else None

    def page(self, wanted: Filter, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """Inspections, newest first, at most `limit`; before: only those with a smaller number."""
        conditions, values = wanted.sql()
        if before is not None:
            conditions += " AND id < :before"
            values["before"] = min(before, LARGEST_ID)
        sql = f"{_SELECT} WHERE id > 0{conditions} ORDER BY id DESC LIMIT :limit"
        return [_item(row) for row in self.database.run([(sql, values | {"limit": limit})])[0]]

    def all(self, wanted: Filter) -> Iterator[dict[str, Any]]:
        """All inspections, newest first, read in pages."""
        before: int | None = None
        while found := self.page(wanted, PAGE, before):
            yield from found
            before = found[-1]["id"]

    def judge(self, number: int, verdict: str | None) -> dict[str, Any] | None:
        """Set or take back the operator's verdict; the inspection as it is then, None when there is none."""
        if not 0 < number <= LARGEST_ID:
            return None
        values = {"verdict": verdict, "time": None if verdict is None else utc(), "id": number}
        sql = "UPDATE inspections SET verdict = :verdict, verdict_time = :time WHERE id = :id"
        rows = self.database.run([(sql, values), (f"{_SELECT} WHERE id = :id", {"id": number})])[1]
        return _item(rows[0]) if rows else None


def utc(time: datetime | None = None) -> str:
    """A time, by default now, as the history writes it: UTC, ISO 8601 with microseconds, always equally long."""
    return (time or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str, end: bool = False) -> str:
    """A date or time in ISO 8601 as the history writes it; without a zone it is UTC.

    end: of a date take the end of that day. Raises ValueError.
    """
    try:
        day = date.fromisoformat(text)
    except ValueError:
        time = datetime.fromisoformat(text)
        return utc(time if time.tzinfo else time.replace(tzinfo=UTC))
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    try:
        return utc(start + timedelta(days=1) if end else start)
    except OverflowError as error:
        raise ValueError(text) from error


_SELECT = f"SELECT {', '.join(COLUMNS)} FROM inspections"


def _values(inspection: Inspection) -> dict[str, Any]:
    values = asdict(inspection)
    if inspection.is_anomalous is not None:
        values["is_anomalous"] = int(inspection.is_anomalous)
    return values


def _item(row: Row) -> dict[str, Any]:
    item = dict(zip(COLUMNS, row, strict=True))
    if item["is_anomalous"] is not None:
        item["is_anomalous"] = bool(item["is_anomalous"])
    return item


def _pattern(text: str | None) -> str | None:
    if not text:
        return None
    for special in "!%_":
        text = text.replace(special, f"!{special}")
    return f"%{text}%"
