"""How much of anything a broker takes."""

from dataclasses import dataclass

from gearflow.protocol.constants import MAX_ARGUMENT, MAX_TEXT_LINE


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one broker; bytes and seconds."""

    body: int = 1 << 30
    """Of a packet: a larger one is thrown away as it comes, and its sender gets ERROR."""

    function: int = MAX_ARGUMENT
    """Of a function's name; gearmand has the same limit."""

    unique: int = 64
    """Of a unique or a reducer: gearmand's limit, so that whoever works with it works here."""

    line: int = MAX_TEXT_LINE
    """Of a text command; gearmand has the same limit."""

    queued: int | None = None
    """Of the workloads of all jobs together; None: as much as there is memory."""

    packet_time: float = 60.0
    """Seconds that a packet may take to come whole, and one more for each MiB of it."""
