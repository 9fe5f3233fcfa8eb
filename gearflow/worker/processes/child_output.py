"""What a process sends its worker beside results: the reports of tasks, and its log.

A task may report a million times a second, which is more than the worker should read. A report leaves at once
if the last one has left long enough ago, in the thread of the task, which may hold the GIL from now on. Else
a thread of its own sends it a little later, and newer progress takes its place until then. Nothing comes
behind the result.

The worker handles log records of its processes as its own. Messages and exceptions are sent as text. Fields
that JSON has no form for are sent as ``str`` shows them.
"""

import logging
import threading
import time
from contextlib import suppress
from math import inf
from typing import Any, Final

from gearflow.protocol.codec import encode
from gearflow.protocol.constants import HEADER
from gearflow.protocol.packets import Packet, WorkStatus
from gearflow.worker.connection import Outbox
from gearflow.worker.processes import messages
from gearflow.worker.processes.messages import Channel

_INTERVAL: Final = 0.01
"""Seconds between two writes: nobody sees the difference, and the worker reads little."""

_ANY: Final = b""  # a process has one run at a time


class Reports:
    """Reports of one process. Owns state; may be used by several threads."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._outbox = Outbox()
        self._sending = threading.Lock()
        self._sent_at = -inf
        self._added = threading.Event()
        self._thread: threading.Thread | None = None  # made when it is needed first

    def add(self, packet: Packet, item: int | None = None) -> None:
        """Have something sent, soon, perhaps about an item of a batch. Nothing happens if the worker is
        gone.
        """
        place = {} if item is None else {"item": item}
        job = _ANY if item is None else b"%d" % item
        frame = messages.encode("report", encode(packet)[HEADER.size :], type=int(packet.type), **place)
        if isinstance(packet, WorkStatus):
            self._outbox.add_progress(job, frame)
        else:
            self._outbox.add(job, frame)
        if time.monotonic() - self._sent_at >= _INTERVAL:
            with suppress(OSError):
                self.flush()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._send_late, name="gearflow-reports", daemon=True)
            self._thread.start()
        self._added.set()

    def send_part(self, part: bytes) -> None:
        """Send a part now, behind all reports. Raises OSError if the worker is gone."""
        self._outbox.add(_ANY, messages.encode("part", part))
        self.flush()

    def flush(self) -> None:
        """Send what is there. Raises OSError if the worker is gone."""
        with self._sending:  # so that two threads keep the order
            if waiting := self._outbox.drain():
                self._channel.send(b"".join(waiting))
                self._sent_at = time.monotonic()

    def _send_late(self) -> None:
        while True:
            self._added.wait()
            self._added.clear()
            time.sleep(max(0.0, self._sent_at + _INTERVAL - time.monotonic()))
            with suppress(OSError):
                self.flush()


_NOT_SENT: Final = ("args", "exc_info")
"""Fields that are part of the message, or of the text of the exception."""


class WorkerHandler(logging.Handler):
    """Sends log records to the worker."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; if the worker is gone, write it to stderr."""
        try:
            self._channel.send(messages.encode("log", record=_fields(record)))
        except OSError:
            assert logging.lastResort is not None
            logging.lastResort.handle(record)
        except Exception:  # noqa: BLE001  (as all handlers do: what cannot be logged must not fail the task)
            self.handleError(record)


def send_logs(channel: Channel, level: int) -> None:
    """Send all records from ``level`` on, where no logger has another level."""
    logging.basicConfig(handlers=[WorkerHandler(channel)], level=level)


def handle_received(fields: dict[str, Any]) -> None:
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
