"""Decisions and verdicts over time: how many images, alarms and errors in each hour, day or week."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from blemish.deploy.history import VERDICTS, Filter, History
from blemish.errors import UnknownName

# How much of a time's text names the period; a week is made of days.
PERIODS = {"hour": 13, "day": 10, "week": 10}
DAYS = 7
COUNTS = ("count", "anomalous", *VERDICTS)
PERIODS_AT_MOST = 400


def rates(
    history: History, by: str = "day", since: str | None = None, limit: int = 90
) -> list[dict[str, Any]]:
    """Counts of the last `limit` periods in which anything was inspected, oldest first.

    by: "hour", "day" or "week" (from Monday), of UTC. since: a time as `utc` writes it. Each has "start" (ISO 8601),
    "count" (images), "anomalous" (called so) and the number of each verdict. Raises UnknownName.
    """
    if by not in PERIODS:
        raise UnknownName("period", by, PERIODS)
    limit = min(limit, PERIODS_AT_MOST)
    conditions, values = Filter(since=since).sql()
    sums = ", ".join(f"sum(CASE WHEN verdict = '{verdict}' THEN 1 ELSE 0 END)" for verdict in VERDICTS)
    sql = (
        f"SELECT substr(time, 1, {PERIODS[by]}) AS start, count(*), "
        f"sum(CASE WHEN is_anomalous = 1 THEN 1 ELSE 0 END), {sums} FROM inspections WHERE id > 0{conditions} "
        f"GROUP BY 1 ORDER BY 1 DESC LIMIT :limit"
    )
    rows = history.database.run([(sql, values | {"limit": limit * (DAYS if by == "week" else 1)})])[0]
    found: dict[str, dict[str, Any]] = {}
    for start, *counts in reversed(rows):
        period = found.setdefault(_start(start, by), dict.fromkeys(COUNTS, 0))
        for name, count in zip(COUNTS, counts, strict=True):
            period[name] += int(count)
    return [{"start": start, **period} for start, period in found.items()][-limit:]


def _start(text: str, by: str) -> str:
    if by == "hour":
        return f"{text}:00:00Z"
    day = date.fromisoformat(text)
    if by == "week":
        day -= timedelta(days=day.weekday())
    return f"{day.isoformat()}T00:00:00Z"
