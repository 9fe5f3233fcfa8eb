"""How much of anything a broker takes, and for how long it keeps what."""

from dataclasses import dataclass

from gearflow.protocol.constants import MAX_ARGUMENT, MAX_TEXT_LINE


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """Limits of one broker; bytes and seconds."""

    body: int = 1 << 30
    """Of a packet: a larger one is thrown away as it comes, and its sender gets ERROR."""

    function: int = MAX_ARGUMENT
    """Of a function's name; gearmand has the same limit."""

    unique: int = 64
    """Of a unique or a reducer. This is gearmand's limit, so clients that work with gearmand work here."""

    line: int = MAX_TEXT_LINE
    """Of a text command; gearmand has the same limit."""

    queued: int | None = None
    """Of the workloads of all jobs together; None: as much as there is memory."""

    packet_time: float = 60.0
    """Seconds that a packet may take to come whole, and one more for each MiB of it."""

    keep: float = 86_400.0
    """What became of a background job is kept so long, where its submission does not say."""

    keep_dead: float = 30 * 86_400.0
    """Dead letters are kept so long."""

    deaths: int | None = 3
    """Runs of a job that may be cut off: its worker goes away, or overruns its time limit. Then it is a dead
    letter. None: any number."""

    shortest_run: float = 1.0
    """The shortest time limit of a run that a worker can set (CAN_DO_TIMEOUT). A shorter one is raised to it,
    as in gearmand. Many workers send seconds where the protocol has milliseconds."""

    idle_parts: int = 256 << 20
    """In memory, of the parts of all jobs that have no reader."""

    parts_ahead: int = 16 << 20
    """Of the parts of a job that are not taken, from which on the server stops reading from its worker."""


class Rejected(Exception):
    """A submission is refused: the code and the text of the ERROR."""

    def __init__(self, code: bytes, text: bytes) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text
