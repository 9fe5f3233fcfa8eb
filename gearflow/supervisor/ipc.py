"""Messages between a supervisor and one of its worker processes: a line of JSON each.

They have a socket pair, whose one end the worker process inherits; an environment variable has its number.
The end of the stream means to the worker process that it is alone, and has to stop warm.
"""

import json
import os
import select
import socket
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self, TypeAlias, get_args

import anyio

from gearflow.runtime.fork import forget_in_children

VARIABLE: Final = "GEARFLOW_SUPERVISOR_FD"

_CHUNK: Final = 65536

_LONGEST: Final = 16384
"""Characters of a text that are sent: one of any length might not fit into the socket's buffer."""


@dataclass(frozen=True, slots=True)
class Launched:
    """The modules are imported and the lifespan hooks are entered. From now on the event loop answers."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A server knows the worker's functions."""

    notice: str
    """A line for users, which the supervisor logs once."""


@dataclass(frozen=True, slots=True)
class Retiring:
    """The worker has a reason to end, and works until another one has taken its place."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker ends because of an error, which the text describes for users."""

    reason: str


@dataclass(frozen=True, slots=True)
class Counts:
    """How many jobs the worker runs, and has run."""

    running: int
    done: int
    failed: int

    def __str__(self) -> str:
        return f"{self.running} running, {self.done} done, {self.failed} failed"


@dataclass(frozen=True, slots=True)
class Measured:
    """What the worker has counted for a function since its start, as ``FunctionRuns`` has it."""

    function: str
    running: int
    outcomes: dict[str, int]
    buckets: list[int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Stands:
    """What the worker has and does now, as ``WorkerState`` has it."""

    concurrency: int
    held: int
    overdue: int
    servers: int
    connected: int


@dataclass(frozen=True, slots=True)
class Leave:
    """The worker is to leave cold. (SIGTERM has it stop warm.)"""


@dataclass(frozen=True, slots=True)
class Ping:
    """The supervisor checks whether the worker's event loop runs."""


@dataclass(frozen=True, slots=True)
class Pong:
    """It runs."""


@dataclass(frozen=True, slots=True)
class Shown:
    """The worker process has written its stacks, as SIGUSR2 asked."""


Message: TypeAlias = (
    Launched | Ready | Retiring | Failed | Counts | Measured | Stands | Leave | Ping | Pong | Shown
)

_KINDS: Final[dict[str, type[Message]]] = {kind.__name__.lower(): kind for kind in get_args(Message)}


def encode(message: Message) -> bytes:
    """A message as a line. Of a text that is very long the middle is left out."""
    fields = {
        name: _cut(value) if isinstance(value, str) else value for name, value in asdict(message).items()
    }
    return json.dumps({"is": type(message).__name__.lower(), **fields}).encode() + b"\n"


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} [{len(text) - 2 * half} characters left out] {text[-half:]}"


def decode(line: bytes) -> Message:
    """The message in a line, which only this module writes."""
    fields: dict[str, Any] = json.loads(line)
    return _KINDS[fields.pop("is")](**fields)


class IpcChannel:
    """One end. Owns its socket."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        forget_in_children(self, IpcChannel.close)

    @classmethod
    def pair(cls) -> tuple[Self, socket.socket]:
        """An end, and the socket of the other one, which is to be inherited."""
        ours, theirs = socket.socketpair()
        return cls(ours), theirs

    @classmethod
    def inherited(cls, environment: MutableMapping[str, str]) -> Self | None:
        """The end that this process was started with; ``None``: no supervisor has started it.

        It is taken out of the environment, and processes that this one starts do not inherit it.
        """
        number = environment.pop(VARIABLE, None)
        if number is None:
            return None
        end = socket.socket(fileno=int(number))
        os.set_inheritable(end.fileno(), False)
        return cls(end)

    def send(self, message: Message) -> bool:
        """Send a message, if the other side can take it at once. False: it cannot.

        A process is not held up if its supervisor is stopped for hours, and reads nothing.
        """
        try:
            self._socket.send(encode(message), socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    async def messages(self) -> AsyncIterator[Message]:
        """What the other side sends, until it is gone."""
        rest = b""
        while True:
            await anyio.wait_readable(self._socket)
            try:
                chunk = self._socket.recv(_CHUNK)
            except ConnectionError:
                return
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield decode(line)

    def await_end(self) -> None:
        """Block until the other side is gone; another thread may read messages meanwhile."""
        poll = select.poll()
        poll.register(self._socket, 0)  # poll always reports that it was closed
        poll.poll()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
