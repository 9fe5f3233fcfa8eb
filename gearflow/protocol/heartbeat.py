"""Time limits for a peer, and when a silent peer is pinged and given up. Pure."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

CHECKS: Final = 10
"""Checks per heartbeat interval. A monitor counts checks instead of time. If the event loop stood still, data
may have arrived that nobody has read yet."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """All time limits of a client or a worker, in seconds. Each is more than 0; ``inf`` means no limit.

    Attributes:
        connect: For connecting and for the handshake.
        answer: For the answer to a request, plus one second for each MiB sent before it. Also for the end of
            a call of a function that the server answers itself. The end of a job has no limit.
        heartbeat: Silence after which the server is pinged. After as much silence again it counts as lost.
        answer_grace: Added to the timeout of a wait that the server itself ends, so that its answer arrives.
        close: For calls that are under way when a blocking client is closed.
        release: For the server to take jobs back when a worker stops cold.
        discovery: Between two questions to a server that shares a database with others, which those are.
    """

    connect: float = 5.0
    answer: float = 25.0
    heartbeat: float = 10.0
    answer_grace: float = 1.0
    close: float = 1.0
    release: float = 1.0
    discovery: float = 10.0

    def __post_init__(self) -> None:
        limits = {
            "connect_timeout": self.connect,
            "answer_timeout": self.answer,
            "heartbeat": self.heartbeat,
            "answer_grace": self.answer_grace,
            "close": self.close,
            "release": self.release,
            "discovery": self.discovery,
        }
        for option, seconds in limits.items():
            if not seconds > 0:
                raise ValueError(f"{option}={seconds}: it is a number of seconds, more than 0")


class PeerState(Enum):
    """The state of a peer at a check."""

    ALIVE = auto()
    PING = auto()  # ping it now
    DEAD = auto()  # it did not answer the ping in time


class HeartbeatMonitor:
    """Counts the checks for which a peer has been silent. Owns state."""

    __slots__ = ("_is_pinged", "_silent")

    def __init__(self) -> None:
        self._silent = 0
        self._is_pinged = False

    def check(self, *, heard: bool, is_busy: bool = False) -> PeerState:
        """The peer's state at this check. Call it ``CHECKS`` times per heartbeat interval.

        Args:
            heard: Something arrived since the last check, or nothing was expected.
            is_busy: The peer owes another answer before that to the ping, so it does not count as dead.
        """
        if heard:
            self._silent, self._is_pinged = 0, False
            return PeerState.ALIVE
        self._silent += 1
        if self._silent < CHECKS:
            return PeerState.ALIVE
        if self._is_pinged:
            return PeerState.ALIVE if is_busy else PeerState.DEAD
        self._silent, self._is_pinged = 0, True
        return PeerState.PING
