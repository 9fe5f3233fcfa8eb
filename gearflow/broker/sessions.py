"""What the broker keeps for one connection: who it is, what it can do, what it waits for, what to send it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gearflow.broker.bodies import Body
    from gearflow.broker.job import Job
    from gearflow.broker.queues import FunctionQueue

LARGE: Final = 65536
"""Bytes of a body from which on it is received into a buffer of its own."""

NEVER_NAMED: Final = b"-"
"""What ``workers`` shows for a connection that sent no SET_CLIENT_ID."""


class Session:
    """One connection, seen from the broker. Owns state; identity is what makes two of them different.

    The shell writes what is in ``outbox`` to the connection, in order, and empties it.
    """

    __slots__ = (
        "abilities",
        "address",
        "asleep",
        "attached",
        "client_id",
        "exceptions",
        "fd",
        "filled",
        "large",
        "large_kind",
        "missing",
        "outbox",
        "pieces",
        "running",
    )

    def __init__(self, fd: int, address: str) -> None:
        self.fd = fd
        self.address = address
        self.client_id = NEVER_NAMED
        self.exceptions = False  # whether it wants WORK_EXCEPTION rather than WORK_FAIL
        self.outbox: list[Body] = []
        # As a worker.
        self.abilities: dict[FunctionQueue, float] = {}  # with time limits (0: none), as registered
        self.asleep = False
        self.running: dict[bytes, Job] = {}  # by handle, in the order they were assigned
        # As a client.
        self.attached: dict[Job, None] = {}
        # Of a packet that has not come whole.
        self.pieces: list[bytes] = []
        self.missing = 0  # bytes without which looking at the pieces again is in vain
        self.large: memoryview | None = None  # a large body on its way, and what it is the body of
        self.large_kind = 0
        self.filled = 0

    def room(self) -> memoryview:
        """Where the next bytes of the large body belong."""
        assert self.large is not None
        return self.large[self.filled :]
