"""What the broker keeps for one connection: who it is, what it can do, what it waits for, what to send it."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gearflow.broker.functions import FunctionQueue
    from gearflow.broker.job import QueuedJob
    from gearflow.broker.parser import Body

LARGE: Final = 65536
"""Bytes of a body from which on it is received into a buffer of its own, if it does not come at once."""

WHOLE: Final = 2 * LARGE
"""Bytes of a body from which on it is sent by itself; below, a copy costs less than another write."""

NEVER_NAMED: Final = b"-"
"""What ``workers`` shows for a connection that sent no SET_CLIENT_ID."""


class Session:
    """One connection, seen from the broker. Owns state; identity is what makes two of them different.

    The shell writes what is in ``outbox`` to the connection, in order, and empties it; ``has_large`` is set
    while a body of ``WHOLE`` bytes or more is in it, which is not to be copied.
    """

    __slots__ = (
        "abilities",
        "address",
        "asleep",
        "attached",
        "client_id",
        "events",
        "exceptions",
        "expects",
        "fd",
        "gearflow",
        "has_large",
        "no_job_at",
        "outbox",
        "overdue",
        "running",
        "storing",
        "texts",
        "undecided",
        "watched",
    )

    def __init__(self, fd: int, address: str) -> None:
        self.fd = fd
        self.address = address
        self.client_id = NEVER_NAMED
        self.exceptions = False  # whether it wants WORK_EXCEPTION rather than WORK_FAIL
        self.gearflow = False  # whether it knows gearflow's extensions
        self.outbox: list[Body] = []
        self.has_large = False
        # As a worker.
        self.abilities: dict[FunctionQueue, float] = {}  # with time limits (0: none), as registered
        self.asleep = False
        self.no_job_at = -inf  # when it was last told that there is no job
        self.expects = False  # its GRABs may wait for a job: see ``grabs``
        self.events = b""  # the handle of its call of ``gearflow:events``, if it made one
        self.overdue: Mapping[str, int] = {}  # by function: runs that go on after the end of their job
        self.texts: Mapping[str, str] = {}  # by function: its only parameter, which is the whole payload
        self.running: dict[bytes, QueuedJob] = {}  # by handle, in the order they were assigned
        # As a client.
        self.attached: dict[QueuedJob, None] = {}
        self.storing = 0  # submissions at the store: only background ones may follow meanwhile
        self.undecided = False  # the last of these has no place among the answers yet: nothing may follow
        self.watched: dict[QueuedJob, None] = {}  # whose end it waits for in calls of ``gearflow:result``
