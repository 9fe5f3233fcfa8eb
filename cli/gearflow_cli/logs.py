"""The log on stderr."""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gearflow.runtime.log_batches import BatchHandler

_AT_EXIT: Final = 1.0
"""Seconds for the last lines, if the process ends at once."""

_handler: "BatchHandler | None" = None
_is_json = False


def to_stderr(level: str, *, json: bool = False, modules: Iterable[str] = ()) -> None:
    """Write log records from ``level`` on to stderr, except for loggers that have a level of their own.

    At ``debug``, libraries log from ``info`` on.

    Args:
        modules: The user's own modules, which are no libraries wherever they are installed.
    """
    # Most commands import the library later, or never.
    from gearflow.runtime.log_batches import BatchHandler
    from gearflow_cli import log_lines

    global _handler, _is_json
    has_details = logging.getLevelNamesMapping()[level.upper()] < logging.INFO
    handler = log_lines.HandlerWithoutDetails() if has_details else BatchHandler()
    handler.setFormatter(log_lines.JsonFormatter() if json else log_lines.TextFormatter())
    _handler, _is_json = handler, json
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.getLogger("gearflow").setLevel(level.upper())
    if has_details:
        for module in modules:
            logging.getLogger(module.partition(".")[0]).setLevel(level.upper())


def flush() -> None:
    """Write the lines that still wait, before the process ends at once or stderr is used otherwise."""
    if _handler is not None and _handler in logging.root.handlers:
        _handler.flush_within(_AT_EXIT)


def is_json() -> bool:
    """Whether the log is JSON. Then everything else on stderr must be JSON too."""
    return _is_json and _handler in logging.root.handlers


def write(message: str, level: int) -> None:
    """Write a message into the log, also below the level of the log."""
    name = logging.getLevelName(level)
    fields = {"name": "gearflow", "levelno": level, "levelname": name, "msg": message}
    logging.root.handle(logging.makeLogRecord(fields))
