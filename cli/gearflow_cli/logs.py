"""The log on stderr: lines for people, or JSON for programs."""

import json
import logging
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from gearflow_cli.tracebacks import is_own, own_lines

_OF_EVERY_RECORD: Final = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"}


_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
"""Characters that a terminal, or who reads lines, takes for something else than text."""


class _Formatter(logging.Formatter):
    """Shows of an exception what is the user's own."""

    def formatException(self, ei: Any) -> str:  # noqa: N802  (logging's name)
        return own_lines(ei[1], ei[2]) if ei[1] is not None else ""


class _Lines(_Formatter):
    """A line for each record; the fields of ``extra`` follow the sentence, unless it tells them itself.

    What else belongs to the record, and has lines of its own, is indented: no message can look like a record.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        text = _CONTROLS.sub(lambda found: repr(found[0])[1:-1], super().format(record))
        return text.replace("\n", "\n  ")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        line = super().formatMessage(record)
        told = [
            f"{name}={_text(value)}"
            for name, value in _fields(record).items()
            if not _is_told(value, record.message)
        ]
        return "  ".join([line, *([" ".join(told)] if told else [])])


class _Json(_Formatter):
    """An object on a line for each record; the fields of ``extra`` stand beside what every record has."""

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
        elif record.exc_text:  # of a process of tasks, from which it came as text
            line["exception"] = record.exc_text
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line | _fields(record) | line, default=str)


def to_stderr(level: str, *, json: bool = False, modules: Iterable[str] = ()) -> None:
    """Write to stderr what is logged from ``level`` on, by gearflow and whoever has set no level of his own.

    At ``debug`` libraries are heard from ``info`` on.

    Args:
        modules: They are the user's own, and no libraries, wherever they are installed.
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
    """The log is for programs: whatever else is said on stderr has to be JSON, too."""
    return any(isinstance(handler.formatter, _Json) for handler in logging.root.handlers)


def write(message: str, level: int) -> None:
    """Write something into the log, whatever the level from which it is kept."""
    name = logging.getLevelName(level)
    fields = {"name": "gearflow", "levelno": level, "levelname": name, "msg": message}
    logging.root.handle(logging.makeLogRecord(fields))


def _is_wanted(record: logging.LogRecord) -> bool:
    """It is no mere detail, or the user's own, or somebody has set a level for its logger."""
    return record.levelno >= logging.INFO or is_own(record.pathname) or _has_level(record.name)


def _has_level(name: str) -> bool:
    """For this logger, or one above it but the root, a level is set."""
    logger = logging.getLogger(name)
    while logger.parent is not None:
        if logger.level:
            return True
        logger = logger.parent
    return False


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What ``extra`` has put into the record."""
    return {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}


def _is_told(value: object, sentence: str) -> bool:
    """A sentence has these words in it. Of a number one cannot tell what it is about."""
    return (
        isinstance(value, str)
        and value in sentence
        and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", sentence) is not None
    )


def _text(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() and " " not in text else repr(text)
