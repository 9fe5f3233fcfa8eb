"""What a process logs, on its way to the worker, which treats it as its own: one log, in one form.

Messages and exceptions are sent as text. Fields that JSON has no form for are as ``str`` shows them.
"""

import logging
from typing import Any, Final

from gearflow.worker.processes.frames import Channel, encode

_NOT_SENT: Final = ("args", "exc_info")
"""What is part of the message, or of the text of the exception, then."""


class ToWorker(logging.Handler):
    """Sends what is logged here."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; what the worker cannot hear any more goes to stderr."""
        try:
            self._channel.send(encode("log", record=_fields(record)))
        except OSError:
            assert logging.lastResort is not None
            logging.lastResort.handle(record)
        except Exception:  # noqa: BLE001  (as all handlers do: what cannot be logged must not fail the task)
            self.handleError(record)


def set_up(channel: Channel, level: int) -> None:
    """Have everything from ``level`` on sent, where no logger says otherwise."""
    logging.basicConfig(handlers=[ToWorker(channel)], level=level)


def take_in(fields: dict[str, Any]) -> None:
    """Handle a record that came from a process, if its logger wants it here."""
    logger = logging.getLogger(fields["name"])
    if logger.isEnabledFor(fields["levelno"]):
        logger.handle(logging.makeLogRecord(fields))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = {name: value for name, value in vars(record).items() if name not in _NOT_SENT}
    fields["msg"] = record.getMessage()
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
    return {name: value if _is_plain(value) else str(value) for name, value in fields.items()}


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
