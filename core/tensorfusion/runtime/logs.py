"""Logging set-up: JSON lines, or short text on a terminal; one place decides."""

import json
import logging
import sys
from typing import TextIO

from tensorfusion.clock import format_micro_timestamp

LEVELS = ("debug", "info", "warning", "error")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {k: v for k, v in vars(record).items() if k not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``ts level logger msg`` and the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Print a record."""
        line: dict[str, object] = {
            "ts": format_micro_timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        line.update(_extra(record))
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, message and ``key=value`` pairs, for a person."""

    def format(self, record: logging.LogRecord) -> str:
        """Print a record."""
        pairs = " ".join(f"{k}={v}" for k, v in _extra(record).items())
        text = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname:<7} {record.getMessage()}"
        text = f"{text}  {pairs}" if pairs else text
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def configure(level: str, form: str = "auto", stream: TextIO | None = None) -> None:
    """Send logs to ``stream`` (stderr): ``form`` is ``json``, ``text`` or ``auto``."""
    out = stream or sys.stderr
    text = form == "text" or (form == "auto" and out.isatty())
    handler = logging.StreamHandler(out)
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("uvicorn.access").disabled = True
