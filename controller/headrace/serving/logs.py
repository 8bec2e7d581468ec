"""Logs: one JSON object per line on stderr.

Every record has the keys `time` (RFC 3339, UTC, milliseconds), `level`, `logger` and `message`; what a caller passes
as `extra={...}` stands beside them, and a traceback is the text of `exception`. A value that JSON does not know is
logged as its `str`, so that no record is ever lost for its content.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error")

# What logging itself keeps on a record; everything else came from the caller's `extra`.
_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_RESERVED_KEYS = frozenset({"time", "level", "logger", "message", "exception"})


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON without line breaks."""
        time = datetime.fromtimestamp(record.created, UTC)
        entry: dict[str, object] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in vars(record).items():
            if key not in _OWN_ATTRIBUTES:
                # A caller's `extra={"level": ...}` must not hide the record's own level.
                entry[f"extra_{key}" if key in _RESERVED_KEYS else key] = value
        if record.exc_info and record.exc_info[0] is not None:
            entry["exception"] = self.formatException(record.exc_info)
        try:
            return json.dumps(entry, default=str)
        except (TypeError, ValueError, RecursionError):  # keys JSON does not know, a value that contains itself
            return json.dumps({key: str(value) for key, value in entry.items()})


def configure_logging(level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logs as JSON lines to `stream` (stderr by default), from `level` up: debug, info, warning or error.

    Called again, it replaces what the first call set up. Raises ValueError for another level.
    """
    if level not in LEVELS:
        raise ValueError(f"log level {level!r} is not one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
