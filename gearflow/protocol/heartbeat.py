"""How long a server is waited for before it counts as dead or lost. Pure."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

LOOKS: Final = 10
"""How often it is looked, in the time that a server has, whether it has said something. They are counted,
rather than the time: where the event loop stood still, what it said may be there unread."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits in seconds, more than 0; ``inf`` for none.

    Attributes:
        connect: For connecting and learning what the server is.
        answer: For the answer to a request, and a second more for each MiB that had to be sent before.
        heartbeat: Of silence, while a job is attached, before the server is asked whether it is there, and
            again before it is given up.
    """

    connect: float = 5.0
    answer: float = 25.0
    heartbeat: float = 10.0

    def __post_init__(self) -> None:
        given = {
            "connect_timeout": self.connect,
            "answer_timeout": self.answer,
            "heartbeat": self.heartbeat,
        }
        for option, seconds in given.items():
            if not seconds > 0:
                raise ValueError(f"{option}={seconds}: it is a number of seconds, more than 0")


class Pulse(Enum):
    """What silence says of a server."""

    FELT = "felt"  # it is not over yet
    ASK = "ask"  # it is to be asked now whether it is there
    LOST = "lost"  # it was asked, and that was too long ago


class HeartbeatMonitor:
    """How long a server has said nothing, counted in looks. Owns state."""

    __slots__ = ("_asked", "_looks")

    def __init__(self) -> None:
        self._looks = 0
        self._asked = False

    def look(self, *, heard: bool) -> Pulse:
        """``heard``: whether something has come, or nothing was to come, since the last look."""
        self._looks += 1
        if heard:
            self._looks, self._asked = 0, False
        elif self._looks >= LOOKS:
            if self._asked:
                return Pulse.LOST
            self._looks, self._asked = 0, True
            return Pulse.ASK
        return Pulse.FELT
