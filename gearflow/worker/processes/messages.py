"""Messages between a worker and its processes: frames over a socket.

A frame is the lengths of its head and of its body (4 bytes each, big-endian), the head (a JSON object whose
``is`` names the kind), then the body (bytes as they are):

=============  ==========  =====================================================================
from           ``is``
=============  ==========  =====================================================================
the worker     ``hello``   the first: how the process is set up
the worker     ``load``    import the task of the next run
the worker     ``run``     a run; the body is the payload
the worker     ``cancel``  nobody wants that run any more; the process is killed soon. With an ``item``,
                           nobody wants that item of a batch
the worker     ``taken``   so many parts of the run are sent on, and there is room for more
the process    ``loaded``  the task is there
the process    ``report``  the task reports something, perhaps about an ``item``; the body is that of the
                           packet
the process    ``part``    the task yields a value; the body is the part
the process    ``log``     a log record
the process    ``result``  the run is done; the body is the result. For a batch, ``outcomes`` has for each
                           item the length of its result, or its error
the process    ``raised``  the run is over, with the error that it raised; also instead of ``loaded``
=============  ==========  =====================================================================
"""

import json
import os
import socket
import struct
import threading
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple, Self, cast

from gearflow.client import TLS, parse_servers
from gearflow.client.current import Target
from gearflow.worker.processes.task_import import Origin


@dataclass(frozen=True, slots=True)
class Hello:
    """How a process is set up."""

    target: Target
    """Where the calls go that tasks make."""

    lifespans: tuple[str, ...] | None
    """The names of the hooks to be entered; None: all that are registered."""

    measures: bool
    """The process measures its memory after each run."""

    level: int
    """It sends log records from this level on."""

    def fields(self) -> dict[str, Any]:
        """The head of its frame."""
        tls = self.target.tls
        return {
            "servers": list(map(str, self.target.servers)),
            "spread": self.target.spread,
            "discover": self.target.discover,
            "tls": _text(tls) if isinstance(tls, TLS) else tls,
            "token": self.target.token,
            "lifespans": self.lifespans,
            "measures": self.measures,
            "level": self.level,
        }

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """From the head of a frame."""
        servers, tls = parse_servers(fields["servers"]), fields["tls"]
        if isinstance(tls, dict):
            tls = TLS(**cast("dict[str, str | None]", tls))
        target = Target(servers, fields["spread"], fields["discover"], tls, fields["token"])
        lifespans = fields["lifespans"]
        names = None if lifespans is None else tuple(lifespans)
        return cls(target, names, fields["measures"], fields["level"])


class ItemRequest(NamedTuple):
    """An item of a batch."""

    handle: str
    attempt: int
    limit: float | None


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A run, or the task to load for it; the payload is the body of the frame."""

    number: int
    """Of the run, in this worker."""

    task: str
    origin: Origin
    handle: str
    attempt: int
    limit: float | None
    """Seconds that it may take."""

    parts: int = 0
    """The number of parts that were taken from earlier runs."""

    previous: tuple[int, int, str] | None = None
    """The last progress of the run before."""

    scheduled_at: tuple[float, str] | None = None
    """The time of the schedule that made the job, and its time zone."""

    trace: dict[str, str] | None = None
    """The trace context of the run, if the worker traces."""

    trace_id: str = ""
    """The id of its trace, for log records."""

    items: tuple[ItemRequest, ...] = ()
    """The items of a batch. The body of the frame has their payloads (``gearflow.protocol.chunk``)."""

    def fields(self) -> dict[str, Any]:
        """The head of its frame."""
        return {
            "number": self.number,
            "task": self.task,
            "origin": [self.origin.module, self.origin.file],
            "handle": self.handle,
            "attempt": self.attempt,
            "limit": self.limit,
            "parts": self.parts,
            "previous": self.previous,
            "scheduled_at": self.scheduled_at,
            "trace": self.trace,
            "trace_id": self.trace_id,
            "items": [list(item) for item in self.items],
        }

    def record_fields(self) -> dict[str, object]:
        """The fields of log records of the run."""
        fields: dict[str, object] = {
            "handle": self.handle,
            "function": self.task,
            "attempt": self.attempt,
        }
        return {**fields, "trace_id": self.trace_id} if self.trace_id else fields

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """From the head of a frame."""
        previous, scheduled_at = fields["previous"], fields["scheduled_at"]
        return cls(
            fields["number"],
            fields["task"],
            Origin(*fields["origin"]),
            fields["handle"],
            fields["attempt"],
            fields["limit"],
            fields["parts"],
            None if previous is None else (previous[0], previous[1], previous[2]),
            None if scheduled_at is None else (scheduled_at[0], scheduled_at[1]),
            fields["trace"],
            fields["trace_id"],
            tuple(ItemRequest(*item) for item in fields["items"]),
        )


def _text(tls: TLS) -> dict[str, Any]:
    return {name: None if file is None else os.fspath(file) for name, file in asdict(tls).items()}


_LENGTHS: Final = struct.Struct(">II")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: its kind, the rest of its head, its body."""

    kind: str
    fields: dict[str, Any]
    body: bytes


def encode(kind: str, body: bytes = b"", /, **fields: Any) -> bytes:
    """A frame as bytes."""
    head = json.dumps({"is": kind, **fields}).encode()
    return b"".join((_LENGTHS.pack(len(head), len(body)), head, body))


class Channel:
    """One end of the socket. Any thread may send; frames are received by one thread at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._incoming = connection.makefile("rb")
        self._sending = threading.Lock()
        self._left = deque[bytes]()  # frames for the thread that is sending

    def forget(self) -> None:
        """Close our copy of the socket, in a forked child, without ending the connection."""
        self._sending = threading.Lock()  # a thread that is not part of the copy may have held it
        with suppress(OSError):  # so was that one
            os.close(self._socket.detach())

    def send(self, frames: bytes) -> None:
        """Send encoded frames. Raises OSError if the other side is gone."""
        with self._sending:
            self._socket.sendall(frames)
        # A frame that was left to this thread is here by now, as it found the lock taken.
        while self._left:
            with self._sending, suppress(IndexError):  # another thread was first
                self._socket.sendall(self._left.popleft())

    def send_at_once(self, frame: bytes) -> bool:
        """Send an encoded frame without waiting, if need be behind one that another thread is sending.

        That thread may wait, so it sends the frame for us. At most one thread may call this at a time.

        Returns:
            False if the other side is gone, or does not read.
        """
        self._left.append(frame)
        if not self._sending.acquire(blocking=False):
            return True
        try:
            if not self._left:  # the other thread was first
                return True
            frame = self._left.popleft()
            if self._socket.send(frame, socket.MSG_DONTWAIT) != len(frame):
                self.end()  # the other side has a part of it, and would take the next frame for the rest
                return False
        except OSError:
            return False
        finally:
            self._sending.release()
        return True

    def receive(self) -> Frame | None:
        """The next frame; None if the other side is gone."""
        try:
            lengths = self._incoming.read(_LENGTHS.size)
            if len(lengths) < _LENGTHS.size:
                return None
            head_length, body_length = _LENGTHS.unpack(lengths)
            head, body = self._incoming.read(head_length), self._incoming.read(body_length)
        except OSError:
            return None
        if len(head) < head_length or len(body) < body_length:
            return None
        fields = json.loads(head)
        return Frame(fields.pop("is"), fields, body)

    def end(self) -> None:
        """End the connection for both sides, also while another thread sends or receives."""
        with suppress(OSError):  # the other side may have been first
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket. No thread may use it any more."""
        self._incoming.close()
        self._socket.close()
