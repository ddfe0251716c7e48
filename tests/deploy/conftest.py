"""Databases for the tests of the history; a browser and pictures for those of the inspection page."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import chromium

EXPECTED_LOGS = "Failed to load resource"  # what Chromium says of each answer that is an error


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures with dark spots and one without, and files that are none."""
    folder = tmp_path_factory.mktemp("line")
    from inspecting import TWO_SPOTS, spotted

    spotted(folder / "a_spots.png", *TWO_SPOTS)
    spotted(folder / "b_clean.png")
    spotted(folder / "c_spot.png", (90, 40, 109, 59))
    (folder / "d_broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = chromium()
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--use-fake-device-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def visit(chrome: Any) -> Iterator[Callable[..., Any]]:
    """visit(address, **context) -> a new page; afterwards it must have logged no error and asked nobody else."""
    opened: list[tuple[Any, str, list[str], list[str]]] = []

    def visit(address: str, width: int = 1280, height: int = 800, **context: Any) -> Any:
        room = chrome.new_context(viewport={"width": width, "height": height}, **context)
        page = room.new_page()
        page.set_default_timeout(60_000)
        logs: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: logs.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: logs.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        opened.append((room, address, logs, requests))
        page.goto(address)
        return page

    yield visit
    for room, address, logs, requests in opened:
        room.close()
        assert not [line for line in logs if EXPECTED_LOGS not in line]
        assert not [asked for asked in requests if not asked.startswith((f"{address}/", "blob:"))]


def postgres_tool(name: str) -> str | None:
    """A program of the newest PostgreSQL: Debian and its kin put those of servers into folders that PATH lacks."""
    places = ("usr/lib/postgresql/*", "usr/pgsql-*", "opt/homebrew/opt/postgresql@*")
    found = [path for place in places for path in Path("/").glob(f"{place}/bin/{name}")]
    return shutil.which(name) or (str(max(found, key=lambda path: path.parts)) if found else None)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server of this module's own."""
    tools = {name: postgres_tool(name) for name in ("initdb", "pg_ctl")}
    if None in tools.values():
        pytest.skip("PostgreSQL is not installed: no initdb and pg_ctl")
    pytest.importorskip("psycopg")
    user: str | None = None
    if os.geteuid() == 0:  # which initdb refuses
        known = {entry.pw_name for entry in pwd.getpwall()}
        user = next((name for name in ("postgres", "nobody") if name in known), None)
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
    with tempfile.TemporaryDirectory(prefix="blemish-pg-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        if user is not None:
            shutil.chown(folder, user)
        data, log = folder / "data", folder / "log"

        def run(name: str, *arguments: str) -> None:
            done = subprocess.run(
                [str(tools[name]), *arguments],
                check=False,
                user=user,
                capture_output=True,
                text=True,
                cwd=folder,
                timeout=300,
            )
            if done.returncode:
                pytest.skip(f"PostgreSQL does not start here: {(done.stderr or done.stdout).strip()[-200:]}")

        run("initdb", "-D", str(data), "-U", "blemish", "-A", "trust", "-E", "UTF8", "--no-sync")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        # Its output to a file: it would hold a pipe open for as long as it runs.
        run("pg_ctl", "-D", str(data), "-l", str(log), "-o", options, "-w", "-t", "240", "start")
        try:
            yield f"postgresql://blemish@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty history may be."""
    if request.param == "sqlite":
        return str(tmp_path / "deep" / "history.db")
    url: str = request.getfixturevalue("postgres")
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS inspections, inspection_models, blemish_history")
    return url
