"""Pictures of the inspection page for the guide, with the example photos and the embedded model.

    python tools/page_pictures.py -o docs/images

Starts `blemish serve` with a history of its own, opens the page in headless Chromium, gives it the photos, and writes
page_light.png, page_dark.png (side by side) and page_phone.png.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

PHOTOS = sorted((Path(__file__).parents[1] / "examples").glob("*.jpg"))
CHOSEN = "spindle_pitting_1.jpg"
SECONDS = 120
VIEWS: dict[str, dict[str, Any]] = {
    "page_light": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"},
    "page_dark": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
    "page_phone": {
        "viewport": {"width": 360, "height": 780},
        "device_scale_factor": 1.5,
        "color_scheme": "light",
    },
}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_until_ready(address: str) -> None:
    """Until the service has its model; TimeoutError after two minutes."""
    for _ in range(2 * SECONDS):
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"{address} does not get ready")


def wait_for(page: Page, condition: str) -> None:
    """Until a JavaScript expression holds; the page's own policy forbids Playwright's way of waiting for one."""
    for _ in range(4 * SECONDS):
        if page.evaluate(condition):
            return
        time.sleep(0.25)
    raise TimeoutError(f"the page does not come to {condition}")


def shoot(browser: Browser, address: str, name: str, out: Path) -> None:
    """One picture of the page with all photos sent and the chosen one on the stage."""
    page = browser.new_page(**VIEWS[name])
    page.goto(address)
    page.set_input_files("#files", [str(path) for path in PHOTOS])
    wait_for(page, f"document.querySelectorAll('#thumbs li').length === {len(PHOTOS)}")
    wait_for(page, "document.getElementById('mask').dataset.pixels !== undefined")
    page.locator("#thumbs li", has_text=CHOSEN).first.click()
    if name == "page_dark":
        page.keyboard.press("2")
    page.wait_for_timeout(1500)
    page.screenshot(path=str(out / f"{name}.png"))
    page.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    given = parser.parse_args()
    address = f"http://127.0.0.1:{(port := free_port())}"
    with tempfile.TemporaryDirectory(prefix="blemish-") as place:
        command = [
            sys.executable,
            "-m",
            "blemish",
            "serve",
            "--port",
            str(port),
            "--db",
            f"{place}/history.db",
        ]
        service = subprocess.Popen(command)
        try:
            wait_until_ready(address)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
                for name in VIEWS:
                    shoot(browser, address, name, given.out)
                browser.close()
        finally:
            service.terminate()
            service.wait(60)


if __name__ == "__main__":
    main()
