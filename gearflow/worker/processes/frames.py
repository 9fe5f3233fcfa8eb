"""What a worker and its processes say to each other: frames over a socket.

A frame is the lengths of its head and of its body (4 bytes each, big-endian), the head (a JSON object whose
``is`` says what it is), then the body (bytes as they are):

=============  ==========  =====================================================================
from           ``is``
=============  ==========  =====================================================================
the worker     ``hello``   the first: how the process is set up
the worker     ``load``    the task of the next run, which is to be imported
the worker     ``run``     a run; the body is the payload
the worker     ``cancel``  nobody wants the run any more; the process is killed soon
the process    ``loaded``  the task is there
the process    ``report``  the task reports something; the body is that of the packet
the process    ``log``     a record of its log
the process    ``result``  the run is done; the body is the result
the process    ``raised``  the run is over; what it raised; also instead of ``loaded``
=============  ==========  =====================================================================
"""

import json
import os
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

_LENGTHS: Final = struct.Struct(">II")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: what it is, the rest of its head, its body."""

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

    def forget(self) -> None:
        """Have nothing to do with the other side any more: this process is a copy of the one that has."""
        self._sending = threading.Lock()  # a thread that is not part of the copy may have held it
        with suppress(OSError):  # so was that one
            os.close(self._socket.detach())

    def send(self, frames: bytes) -> None:
        """Send encoded frames. Raises OSError if the other side is gone."""
        with self._sending:
            self._socket.sendall(frames)

    def send_at_once(self, frame: bytes) -> bool:
        """Send an encoded frame if that needs no waiting; whether it was sent."""
        if not self._sending.acquire(blocking=False):
            return False
        try:
            return self._socket.send(frame, socket.MSG_DONTWAIT) == len(frame)
        except OSError:
            return False
        finally:
            self._sending.release()

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
        """Have both sides receive no more, also while another thread sends or receives."""
        with suppress(OSError):  # the other side may have been first
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back. No thread may use it any more."""
        self._incoming.close()
        self._socket.close()
