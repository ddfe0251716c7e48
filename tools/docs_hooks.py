"""What `mkdocs` does to the pages before it builds them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)]*)?\)")
ROOT = Path(__file__).parent.parent


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The guide for contributors comes from its place in the repository; links out of `docs/` become their words.

    The site holds the documentation alone, while those links are right in the repository.
    """
    if page.file.src_uri == "contributing.md":
        markdown = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace("](docs/", "](")

    def shown(found: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), found[2]))
        return found[1] if place.startswith("../") else found[0]

    return LINK.sub(shown, markdown)
