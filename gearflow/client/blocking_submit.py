"""Background jobs from code without an event loop, one after the other, by the shortest way.

A call through the client's loop costs two threads a turn each, several times what the server needs for a
background job. Of such a job nothing comes back but its acknowledgement, so a blocking socket will do: it
writes the packet and reads the answer in the caller's own thread.

This is a shortcut to the first of the client's servers, and nothing more. Whatever it is not made for (the
server is out of reach, or wants TLS or a token, another thread is at it, a packet is large, options are for
another server than gearflow's) is ``NotSent``, and goes the usual way, which knows all servers. Where the
server could not be reached, the usual way has to reach it first: nobody is to wait for it here again.
"""

import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from random import random
from threading import Event
from typing import Final

from gearflow.backoff import Backoff
from gearflow.client.config import ServerAddress
from gearflow.client.job import JobHandle
from gearflow.client.names import to_text
from gearflow.client.requests import NotSent, is_unsupported, unknown
from gearflow.client.stream import tune
from gearflow.errors import RemoteProtocolError
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import HEADER_SIZE, MAX_ANSWER, RES, PacketType
from gearflow.protocol.framing import Frame, FrameBuffer
from gearflow.protocol.heartbeat import Timeouts
from gearflow.protocol.packets import EchoReq, EchoRes
from gearflow.protocol.request_queue import IDENTIFY, Call, CallQueue, Identification, Ignored, Request

LARGE: Final = 65_536
"""Bytes of a packet from which on it goes the usual way."""

LONGEST_CONNECT: Final = 1.0
"""Seconds for connecting; the usual way, which has longer, is still to come."""

FOR_EVER: Final = 1e6
"""Seconds from which on there is no limit."""

_RECEIVE: Final = 4096
_GREETING: Final = b"gearflow"


class BlockingSubmitter:
    """A blocking connection to one server, made when it is first used. For any number of threads.

    Args:
        timeouts, backoff: As for ``Client``.
        is_reached: Whether the usual way has a connection to the server; called in any thread.
    """

    def __init__(
        self,
        server: ServerAddress,
        timeouts: Timeouts,
        backoff: Backoff,
        *,
        is_reached: Callable[[], bool],
    ) -> None:
        self._server = server
        self._connect_timeout = min(timeouts.connect, LONGEST_CONNECT)
        self._answer_timeout = timeouts.answer
        self._grace = timeouts.close
        self._backoff = backoff
        self._is_reached = is_reached
        self._calls: list[object] = []  # those that want the connection now; the first one has it
        self._left = Event()  # it was given back after it was to be closed
        self._process = 0  # whose connection it is; 0: it is closed
        self._socket: socket.socket | None = None
        self._frames = _frames()
        self._queue = CallQueue()
        self._is_clean = False  # whether all that was asked on it is answered, and nothing else was said
        self._takes_options: bool | None = None  # None: it was not asked yet
        self._failures = 0  # to connect, in a row
        self._rests_until = 0.0

    def open(self) -> None:
        """From now on it may be used, by this process."""
        self._process = os.getpid()

    def close(self) -> None:
        """Close the connection, once the thread that uses it has its answer, or was given time for it."""
        if self._process != os.getpid():
            return
        self._process = 0
        if self._calls and not self._left.wait(self._grace):
            self._break_off()
            self._left.wait(self._grace)
        if not self._calls:
            self._drop()

    def forget(self) -> None:
        """We are in a forked child, where the connection is not ours: it stays open for the parent."""
        self._process = 0
        self._drop()

    def submit(self, function: str, unique: bytes, packet: bytes, *, has_options: bool = False) -> JobHandle:
        """Send a background submission, and wait for its acknowledgement.

        Args:
            function, unique: They name it in errors.
            packet: The packet.
            has_options: Whether the packet is for gearflow's server only.

        Raises:
            NotSent: It has to go another way.
            SubmitUnknown: The connection closed, or there was no answer in time.
            QueueFull, ServerError: The server refused it.
        """
        if len(packet) >= LARGE:
            raise NotSent("it is too large for this connection")
        # An interrupt may come after any call, also before its outcome is known here. So what was taken is
        # looked up in the end, without a call, and given back by a single one.
        call = object()
        try:
            self._calls.append(call)
            if self._calls[0] is not call or self._process != os.getpid():
                raise NotSent("it is not for this connection")
            answered = self._ask(function, unique, packet, has_options)
        finally:
            if call in self._calls:
                self._calls.remove(call)
            if not self._process:
                self._drop()
                self._left.set()
        if answered.failure is not None:
            if has_options and is_unsupported(answered.failure):
                self._takes_options = False
                raise NotSent("the server is an older one")
            raise answered.failure
        return JobHandle(to_text(answered.handle), self._server)

    def _ask(self, function: str, unique: bytes, packet: bytes, has_options: bool) -> Call:
        connection = self._connection()
        if has_options:
            self._require_gearflow(connection)
        call = Call(Ignored(), attached=False)
        try:
            self._exchange(connection, call, packet, time.perf_counter() + self._answer_timeout)
        except (OSError, EOFError, RemoteProtocolError) as error:
            self._drop()
            raise unknown(function, unique, self._server, self._reason(error)) from error
        except BaseException:  # an interrupt: the answer under way would be taken for the next one's
            self._drop()
            raise
        return call

    def _require_gearflow(self, connection: socket.socket) -> None:
        """Find out whether the server is gearflow's own, once for a connection. Raises NotSent if it is
        not."""
        if self._takes_options is None:
            identification = Identification(Ignored())
            try:
                self._exchange(
                    connection, identification, IDENTIFY, time.perf_counter() + self._answer_timeout
                )
            except (OSError, EOFError, RemoteProtocolError) as error:
                raise NotSent(self._reason(error)) from error
            self._takes_options = identification.is_gearflow
        if not self._takes_options:
            raise NotSent("it has options, which only gearflow's own server takes")

    def _exchange(self, connection: socket.socket, request: Request, packet: bytes, until: float) -> None:
        """Send a request and receive its answer, in any number of pieces, before ``time.perf_counter`` is
        ``until``.
        """
        self._is_clean = False
        self._queue.sent([request])
        connection.sendall(packet)
        data = connection.recv(_RECEIVE)
        received = len(data)
        while (frame := self._frame(data)) is None:
            data = _next_piece(connection, until)
            received += len(data)
        self._queue.receive(*frame)
        self._is_clean = received == HEADER_SIZE + len(frame[1])

    def _frame(self, data: bytes) -> Frame | None:
        """The answer, if these bytes complete it."""
        if not data:
            raise EOFError("the server closed the connection")
        return next(iter(self._frames.feed(data)), None)

    def _connection(self) -> socket.socket:
        """The connection, if it is still there, else a new one. Raises NotSent."""
        if self._socket is not None and self._is_clean and _is_quiet(self._socket):
            return self._socket
        self._drop()
        if self._failures and (time.monotonic() < self._rests_until or not self._is_reached()):
            raise NotSent("the server could not be reached before")
        try:
            connection = self._connect()
        except (OSError, EOFError, RemoteProtocolError) as error:
            self._drop()
            self._failures += 1
            self._rests_until = time.monotonic() + self._backoff.delay(self._failures, random())
            raise NotSent(str(error)) from error
        self._failures = 0
        return connection

    def _connect(self) -> socket.socket:
        where = self._server.host, self._server.port
        until = time.perf_counter() + self._connect_timeout
        connection = self._socket = socket.create_connection(where, self._connect_timeout)
        tune(connection)
        self._frames, self._queue, self._takes_options = _frames(), CallQueue(), None
        # A server that refuses this connection answers with an error, or closes it.
        greeting = Request(PacketType.ECHO_RES, "a greeting", Ignored())
        self._exchange(connection, greeting, encode(EchoReq(_GREETING)), until)
        if greeting.answer != EchoRes(_GREETING):
            raise RemoteProtocolError("it did not return the greeting")
        is_clean, self._is_clean = self._is_clean, False  # an interrupt may come before it is ready
        # From here on the kernel keeps the time; with Python's limits each call would be two.
        connection.settimeout(None)
        seconds = self._answer_timeout if self._answer_timeout < FOR_EVER else 0.0  # none
        limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._is_clean = is_clean
        return connection

    def _reason(self, error: Exception) -> str:
        if not self._process:
            return "the client was closed"
        if isinstance(error, BlockingIOError):
            return f"it gave no answer for {self._answer_timeout:g} s"
        return str(error)

    def _break_off(self) -> None:
        """Wake the thread that waits for an answer: there will be none."""
        connection = self._socket
        if connection is not None:
            with suppress(OSError):  # it has ended meanwhile
                connection.shutdown(socket.SHUT_RDWR)

    def _drop(self) -> None:
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()


def _frames() -> FrameBuffer:
    return FrameBuffer(RES, max_body=MAX_ANSWER, text=False)


def _next_piece(connection: socket.socket, until: float) -> bytes:
    """More of an answer. The kernel's own limit would give each piece of it the whole time.

    Raises:
        BlockingIOError: Nothing came before then.
    """
    connection.settimeout(min(max(until - time.perf_counter(), 0.0), FOR_EVER))
    try:
        return connection.recv(_RECEIVE)
    except TimeoutError as error:
        if error.errno is not None:  # the host is gone
            raise
        raise BlockingIOError("the answer came in part") from None
    finally:
        connection.settimeout(None)


def _is_quiet(connection: socket.socket) -> bool:
    """Whether it is open, and nothing has come that nobody has asked for."""
    try:
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False  # its end, or what is not an answer
