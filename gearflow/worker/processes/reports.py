"""What the task of a process reports, on its way to the worker.

A task may report a million times a second; the worker has better things to do than to read all of it. So a
report leaves at once if the last one has left long enough ago, in the thread of the task, which may hold the
GIL from now on. Else a thread of its own sends it a little later, and progress that is newer takes its place
until then. Nothing comes behind the result.
"""

import threading
import time
from contextlib import suppress
from math import inf
from typing import Final

from gearflow.protocol.codec import encode
from gearflow.protocol.constants import HEADER
from gearflow.protocol.packets import Packet, WorkStatus
from gearflow.worker.outbox import Outbox
from gearflow.worker.processes import frames
from gearflow.worker.processes.frames import Channel

_INTERVAL: Final = 0.01
"""Seconds between two writes: nobody sees the difference, and the worker's part is small."""

_ANY: Final = b""  # a process has one job at a time


class Reports:
    """Reports of one process. Owns state; may be used by several threads."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._outbox = Outbox()
        self._sending = threading.Lock()
        self._sent_at = -inf
        self._added = threading.Event()
        self._thread: threading.Thread | None = None  # made when it is needed first

    def add(self, packet: Packet) -> None:
        """Have something sent, soon. Nothing happens if the worker is gone."""
        frame = frames.encode("report", encode(packet)[HEADER.size :], type=int(packet.type))
        if isinstance(packet, WorkStatus):
            self._outbox.add_progress(_ANY, frame)
        else:
            self._outbox.add(_ANY, frame)
        if time.monotonic() - self._sent_at >= _INTERVAL:
            with suppress(OSError):
                self.flush()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._send_late, name="gearflow-reports", daemon=True)
            self._thread.start()
        self._added.set()

    def flush(self) -> None:
        """Send what is there. Raises OSError if the worker is gone."""
        with self._sending:  # so that two threads keep the order
            if waiting := self._outbox.take():
                self._channel.send(b"".join(waiting))
                self._sent_at = time.monotonic()

    def _send_late(self) -> None:
        while True:
            self._added.wait()
            self._added.clear()
            time.sleep(max(0.0, self._sent_at + _INTERVAL - time.monotonic()))
            with suppress(OSError):
                self.flush()
