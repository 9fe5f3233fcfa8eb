"""The log on stderr: time, level, sentence, fields."""

import logging
from typing import Any, Final

from gearflow_cli.traces import own_lines

_OF_EVERY_RECORD: Final = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"}


class _Lines(logging.Formatter):
    """A line for each record; the fields of ``extra`` follow the sentence, unless it tells them itself."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        line = super().formatMessage(record)
        fields = {name: _text(value) for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        told = [f"{name}={text}" for name, text in fields.items() if text not in record.message]
        return "  ".join([line, *([" ".join(told)] if told else [])])

    def formatException(self, ei: Any) -> str:  # noqa: N802  (logging's name)
        return own_lines(ei[1], ei[2]) if ei[1] is not None else ""


def to_stderr(level: str) -> None:
    """Write gearflow's log to stderr from ``level`` on, and everybody else's warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("gearflow").setLevel(level.upper())


def _text(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() and " " not in text else repr(text)
