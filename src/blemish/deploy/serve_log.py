"""Structured logs: one JSON object a line on standard error, without anything that images show."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


class JsonLines(logging.Formatter):
    """A log record as one line of JSON: time, level, message, and the fields of `extra={"fields": {...}}`."""

    def __init__(self, verbose: bool = False) -> None:
        """verbose: tracebacks too."""
        super().__init__()
        self._verbose = verbose

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        values = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        values |= getattr(record, "fields", {})
        if record.exc_info and (error := record.exc_info[1]) is not None:
            values["error"] = type(error).__name__
            if self._verbose:
                values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values)


def log_as_json(quiet: bool, verbose: bool) -> None:
    """Send all logging of this process to standard error as JSON lines: requests too unless `quiet`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(verbose))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("blemish").setLevel(logging.ERROR if quiet else logging.INFO)
    for reader in ("tifffile", "PIL"):  # the image is reported as failed all the same
        logging.getLogger(reader).setLevel(logging.CRITICAL)
