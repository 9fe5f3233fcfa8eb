"""The lines of the log: for people, or JSON for programs."""

import json
import logging
import re
import time
from datetime import UTC, datetime
from math import floor
from typing import Any, Final

from gearflow.runtime.log_batches import BatchFormatter, BatchHandler
from gearflow.runtime.run_records import RUN_FIELDS
from gearflow_cli.text import printable_lines
from gearflow_cli.tracebacks import is_own, own_lines

_OF_EVERY_RECORD: Final = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"}


class _Formatter(BatchFormatter):
    """Shows the user's own lines of a traceback."""

    def formatException(self, ei: Any) -> str:  # noqa: N802  (logging's name)
        return own_lines(ei[1], ei[2]) if ei[1] is not None else ""


class TextFormatter(_Formatter):
    """Formats a record as one line. The fields of ``extra`` follow the message, unless it contains them.

    Further lines of a record are indented, so that no message can look like another record.
    """

    time_place = slice(0, len("00:00:00"))
    number_format = "%.3g"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def time_text(self, created: float) -> tuple[str, float]:
        second = floor(created)
        return time.strftime("%H:%M:%S", time.localtime(second)), second + 1

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record)).replace("\n", "\n  ")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        line = super().formatMessage(record)
        fields = [
            f"{name}={_text(value)}"
            for name, value in _shown_fields(record).items()
            if not _is_in(value, record.message)
        ]
        return "  ".join([line, *([" ".join(fields)] if fields else [])])


class JsonFormatter(_Formatter):
    """Formats a record as one JSON object on one line, with the fields of ``extra``."""

    time_place = slice(len('{"time": "'), len('{"time": "2026-03-01T12:00:00.250Z'))

    def time_text(self, created: float) -> tuple[str, float]:
        text = datetime.fromtimestamp(created, UTC).isoformat(timespec="milliseconds")
        return text.replace("+00:00", "Z"), (floor(created * 1000) + 1) / 1000

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": self.time_text(record.created)[0],
            "level": record.levelname.lower(),
            "process": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        elif record.exc_text:  # from the process of a task, which sends it as text
            line["exception"] = record.exc_text
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line | _fields(record) | line, default=str)


class HandlerWithoutDetails(BatchHandler):
    """Writes records, but leaves out the details of libraries."""

    def filter(self, record: logging.LogRecord) -> Any:  # which differs from one Python to another
        return _is_wanted(record) and super().filter(record)


def _is_wanted(record: logging.LogRecord) -> bool:
    """Whether a record is important, or the user's own, or its logger has a level."""
    return record.levelno >= logging.INFO or is_own(record.pathname) or _has_level(record.name)


def _has_level(name: str) -> bool:
    """Whether this logger has a level, or one above it except the root."""
    logger = logging.getLogger(name)
    while logger.parent is not None:
        if logger.level:
            return True
        logger = logger.parent
    return False


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """The fields that ``extra`` has added to a record."""
    return {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}


def _shown_fields(record: logging.LogRecord) -> dict[str, object]:
    """The fields that people see. Those of the run come last in a record of the user's own."""
    fields = _fields(record)
    if "task" in fields:  # the worker's own record, which has the function by this name
        fields.pop("function", None)
        return fields
    of_run = {name: fields.pop(name) for name in RUN_FIELDS if name in fields}
    if of_run.get("attempt") == 1:
        del of_run["attempt"]
    return fields | of_run


def _is_in(value: object, sentence: str) -> bool:
    """Whether the sentence contains a text. A number alone would not show its meaning."""
    return (
        isinstance(value, str)
        and value in sentence
        and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", sentence) is not None
    )


def _text(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() and " " not in text else repr(text)
