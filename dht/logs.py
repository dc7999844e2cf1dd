"""Logging to stderr: for people, or one JSON object per line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO, TypeAlias

LogFormat: TypeAlias = Literal["human", "json"]
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "origin_created", "caller"}


def _level(record: logging.LogRecord) -> str:
    # hivemind renames WARNING for the whole process; readers of the log should not notice.
    return "WARNING" if record.levelno == logging.WARNING else record.levelname


class _HumanFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.levelname = _level(record)
        return super().format(record)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": _level(record).lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure(
    *, log_format: LogFormat = "human", quiet: bool = False, verbose: bool = False, stream: TextIO | None = None
) -> None:
    """Send all records of this process to `stream` (stderr); `quiet` keeps warnings and worse, `verbose` adds debug.

    Fields given as `extra={...}` become keys of the JSON object. Calling it again replaces the set-up.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        _JsonFormatter()
        if log_format == "json"
        else _HumanFormatter("{asctime} {levelname:<7} {message}", "%H:%M:%S", style="{")
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    root.setLevel(level)
    logging.captureWarnings(True)
    # The libraries' own chatter is for those who ask for it.
    for noisy in ("hivemind", "asyncio", "httpx", "urllib3", "filelock", "py.warnings"):
        logging.getLogger(noisy).setLevel(level if verbose else logging.ERROR)
