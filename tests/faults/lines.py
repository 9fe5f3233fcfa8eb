"""What a line between two ends of a connection does to the bytes on it: values, and how they are drawn. Pure.

A connection has two lines, one for each direction. Each passes packets on whole or in pieces, at once or
later, until its fault comes: between two packets, or in the middle of one.
"""

from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Final

from gearflow.protocol.constants import HEADER, HEADER_SIZE


class What(Enum):
    """How a line fails."""

    RESET = "both ends get RST, whatever was on its way"
    CLOSE = "both ends get FIN"
    HALF_CLOSE = "the receiver gets FIN; the other line goes on"
    SILENCE = "nothing arrives any more; the other line goes on"
    BLACK_HOLE = "nothing arrives any more, on either line"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens after so many whole ``packets``, and so many bytes of what follows them."""

    what: What
    packets: int
    more: int


@dataclass(frozen=True, slots=True)
class Line:
    """One direction of a connection."""

    pieces: int = 1
    """In how many parts what comes at once is passed on, at most."""
    delay: float = 0.0
    """Seconds before each part."""
    fault: Fault | None = None


GOOD: Final = Line()


def draw(chance: Random) -> tuple[Line, Line]:
    """The lines of a connection: from who connects, and back to him. Every third connection is left whole."""
    there, back = (Line(chance.choice((1, 1, 2, 9)), chance.choice((0, 0, 0.001, 0.004))) for _ in range(2))
    fault = Fault(
        chance.choice(list(What)),
        chance.choice((0, chance.randrange(5), chance.randrange(60))),
        chance.choice((0, chance.randrange(1, HEADER_SIZE), chance.randrange(HEADER_SIZE, 5000))),
    )
    match chance.randrange(3):
        case 0:
            return Line(there.pieces, there.delay, fault), back
        case 1:
            return there, Line(back.pieces, back.delay, fault)
        case _:
            return there, back


class Place:
    """Finds the place of a fault in a stream of packets that comes in any cut. Owns the count."""

    def __init__(self, fault: Fault) -> None:
        self._packets = fault.packets
        self._more = fault.more
        self._header = b""
        self._body = 0  # bytes that the packet at hand still has

    def find(self, data: bytes) -> int | None:
        """How many of these bytes come before the fault; None: all, and it comes later."""
        at = 0
        while self._packets:
            if self._body:
                taken = min(self._body, len(data) - at)
                self._body -= taken
            else:
                taken = min(HEADER_SIZE - len(self._header), len(data) - at)
                self._header += data[at : at + taken]
                if len(self._header) < HEADER_SIZE:
                    return None
                self._body = HEADER.unpack(self._header)[2]
            at += taken
            if self._body and at == len(data):
                return None
            if not self._body:
                self._packets -= 1
                self._header = b""
        # A fault inside a packet needs the bytes before it; one between packets comes with the last of them.
        if len(data) - at < self._more:
            self._more -= len(data) - at
            return None
        return at + self._more
