"""How long a client waits for a server before it takes it for dead or lost."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Limits in seconds.

    Attributes:
        connect: For connecting and learning what the server is.
        answer: For the answer to a request, and a second more for each MiB that had to be sent before.
        heartbeat: Of silence, while a job is attached, before the server is asked whether it is there, and
            again before it is given up.
    """

    connect: float = 5.0
    answer: float = 30.0
    heartbeat: float = 10.0
