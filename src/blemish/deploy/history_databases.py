"""SQLite and PostgreSQL behind one small face: the same SQL, values always bound, never put into the text."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from blemish.errors import BadOption, OutputError
from blemish.files import make_folder, printable_name

Row = tuple[Any, ...]
BUSY_SECONDS = 10.0
CONNECT_SECONDS = 10
SCHEMES = ("postgresql://", "postgres://")


class Database(Protocol):
    """A connection that several threads may use, one at a time. SQL names its values `:name`."""

    identity: str  # SQL of a column that numbers the rows
    text: str  # SQL type of text that is ordered by its characters' codes
    alone: str  # SQL that keeps others from making the same tables until the transaction ends

    def run(self, statements: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[Row]]:
        """The rows of each statement; all of them in one transaction. Raises OutputError."""
        ...

    def close(self) -> None: ...


def open_database(place: str | Path, create: bool = True) -> Database:
    """A database by the name of its file, or by a URL postgresql://.

    create: make a missing file, and prepare it for writing. Raises BadOption when it cannot be opened.
    """
    text = str(place)
    if text.startswith(SCHEMES):
        return PostgreSQL(text)
    if "://" in text:
        kind = text.split("://", 1)[0]
        raise BadOption(f"--db {kind}://...: expected a file for SQLite, or postgresql://...")
    return SQLite(Path(text).expanduser(), create)


class SQLite:
    """A file, with write-ahead logging: readers and a writer do not wait for one another."""

    identity = "INTEGER PRIMARY KEY AUTOINCREMENT"
    text = "TEXT"
    alone = "SELECT 1"  # a transaction that writes is alone from its beginning

    def __init__(self, path: Path, create: bool = True) -> None:
        """Raises BadOption when the file cannot be opened or is no database."""
        self._path, self._lock = path, threading.Lock()
        if not create and not path.is_file():
            raise BadOption(
                f"no history {printable_name(path)}; expected the file given to blemish serve --db"
            )
        make_folder(path.parent)
        connection: sqlite3.Connection | None = None
        try:
            connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None
            )
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1")  # raises where the file is no database
            if create:
                connection.execute("PRAGMA journal_mode=WAL")
                # With WAL this keeps the file whole whatever happens; a power cut may cost the last moments.
                connection.execute("PRAGMA synchronous=NORMAL")
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
            raise BadOption(
                f"cannot open the history {printable_name(path)}: {error}; name another file with --db"
            ) from error
        self._connection = connection

    def run(self, statements: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[Row]]:
        """See Database."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE" if _writes(statements) else "BEGIN")
                found = [self._connection.execute(sql, values).fetchall() for sql, values in statements]
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise OutputError(f"history {printable_name(self._path)}: {error}") from error
        return found

    def close(self) -> None:
        """Write everything into the file and let it go."""
        with self._lock:
            self._connection.close()


class PostgreSQL:
    """A server, by URL; a lost connection is made anew with the next statement."""

    identity = "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
    text = 'TEXT COLLATE "C"'
    alone = "SELECT pg_advisory_xact_lock(6273542166)"  # a number of our own

    def __init__(self, url: str) -> None:
        """Raises BadOption without the driver or the server."""
        try:
            import psycopg
        except ModuleNotFoundError as error:
            raise BadOption('--db postgresql://... needs psycopg: pip install "blemish[postgres]"') from error
        self._psycopg, self._url, self._lock = psycopg, url, threading.Lock()
        self._check_url()
        try:
            self._connection = self._connect()
        except (psycopg.Error, UnicodeError) as error:
            raise BadOption(
                f"cannot open the history at {_without_password(url)}: {_one_line(error)}; is the server running, "
                f"and does the database exist?"
            ) from error

    def _check_url(self) -> None:
        # The driver's own words on a malformed URL quote its password.
        try:
            self._psycopg.conninfo.conninfo_to_dict(self._url)
            is_one = urlsplit(self._url).netloc.count("@") <= 1
        except (self._psycopg.Error, ValueError):
            is_one = False
        if not is_one:
            raise BadOption(
                "the --db URL cannot be read; expected postgresql://USER:PASSWORD@HOST:PORT/NAME with special "
                "characters of user and password as %XX (an @ is %40)"
            )

    def _connect(self) -> Any:
        return self._psycopg.connect(self._url, autocommit=True, connect_timeout=CONNECT_SECONDS)

    def run(self, statements: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[Row]]:
        """See Database."""
        with self._lock:
            try:
                try:
                    return self._run(statements)
                except self._psycopg.OperationalError:
                    # Only a connection that broke is worth another try: the transaction died with it.
                    if not self._connection.broken and not self._connection.closed:
                        raise
                    self._connection = self._connect()
                    return self._run(statements)
            except self._psycopg.Error as error:
                raise OutputError(f"history at {_without_password(self._url)}: {_one_line(error)}") from error

    def _run(self, statements: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[Row]]:
        found = []
        with self._connection.transaction():
            for sql, values in statements:
                cursor = self._connection.execute(_NAMED.sub(r"%(\1)s", sql), values)
                found.append(cursor.fetchall() if cursor.description else [])
        return found

    def close(self) -> None:
        """Let the connection go."""
        with self._lock:
            self._connection.close()


_NAMED = re.compile(r":(\w+)")


def _writes(statements: Sequence[tuple[str, Mapping[str, Any]]]) -> bool:
    return any(not sql.lstrip().startswith("SELECT") for sql, _ in statements)


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    place = parts.hostname or "the local server"
    with contextlib.suppress(ValueError):
        place += f":{parts.port}" if parts.port else ""
    return f"postgresql://{place}{parts.path}"
