"""The log on stderr: lines for people, or JSON for programs."""

import json
import logging
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from gearflow_cli.text import printable_lines
from gearflow_cli.tracebacks import is_own, own_lines

_OF_EVERY_RECORD: Final = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"}


class _Formatter(logging.Formatter):
    """Shows the user's own lines of a traceback."""

    def formatException(self, ei: Any) -> str:  # noqa: N802  (logging's name)
        return own_lines(ei[1], ei[2]) if ei[1] is not None else ""


class _Lines(_Formatter):
    """Formats a record as one line. The fields of ``extra`` follow the message, unless it contains them.

    Further lines of a record are indented, so that no message can look like another record.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record)).replace("\n", "\n  ")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        line = super().formatMessage(record)
        fields = [
            f"{name}={_text(value)}"
            for name, value in _fields(record).items()
            if not _is_in(value, record.message)
        ]
        return "  ".join([line, *([" ".join(fields)] if fields else [])])


class _Json(_Formatter):
    """Formats a record as one JSON object on one line, with the fields of ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": time.replace("+00:00", "Z"),
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


def to_stderr(level: str, *, json: bool = False, modules: Iterable[str] = ()) -> None:
    """Write log records from ``level`` on to stderr, except for loggers that have a level of their own.

    At ``debug``, libraries log from ``info`` on.

    Args:
        modules: The user's own modules, which are no libraries wherever they are installed.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if json else _Lines())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.getLogger("gearflow").setLevel(level.upper())
    if logging.root.level < logging.INFO:
        handler.addFilter(_is_wanted)
        for module in modules:
            logging.getLogger(module.partition(".")[0]).setLevel(level.upper())


def is_json() -> bool:
    """Whether the log is JSON. Then everything else on stderr must be JSON too."""
    return any(isinstance(handler.formatter, _Json) for handler in logging.root.handlers)


def write(message: str, level: int) -> None:
    """Write a message into the log, also below the level of the log."""
    name = logging.getLevelName(level)
    fields = {"name": "gearflow", "levelno": level, "levelname": name, "msg": message}
    logging.root.handle(logging.makeLogRecord(fields))


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
