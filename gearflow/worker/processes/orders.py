"""What a worker tells its processes, as values: how they are set up, and what to run."""

import os
from dataclasses import asdict, dataclass
from typing import Any, Self, cast

from gearflow.client import TLS, parse_servers
from gearflow.client.ambient import Target
from gearflow.worker.processes.origin import Origin


@dataclass(frozen=True, slots=True)
class Hello:
    """How a process is set up."""

    target: Target
    """Where the calls go that tasks make."""

    lifespans: tuple[str, ...] | None
    """The names of the hooks to be entered; None: all that are registered."""

    measures: bool
    """The worker wants to know how much memory the process has."""

    level: int
    """From which level on its log is sent."""

    def fields(self) -> dict[str, Any]:
        """The head of its frame."""
        tls = self.target.tls
        return {
            "servers": list(map(str, self.target.servers)),
            "spread": self.target.spread,
            "tls": _text(tls) if isinstance(tls, TLS) else tls,
            "token": self.target.token,
            "lifespans": self.lifespans,
            "measures": self.measures,
            "level": self.level,
        }

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """From the head of a frame."""
        servers, tls = parse_servers(fields["servers"]), fields["tls"]
        if isinstance(tls, dict):
            tls = TLS(**cast("dict[str, str | None]", tls))
        target = Target(servers, fields["spread"], tls, fields["token"])
        lifespans = fields["lifespans"]
        names = None if lifespans is None else tuple(lifespans)
        return cls(target, names, fields["measures"], fields["level"])


@dataclass(frozen=True, slots=True)
class Order:
    """What to run; the payload is the body of the frame."""

    task: str
    origin: Origin
    handle: str
    attempt: int
    limit: float | None
    """Seconds that it may take."""

    def fields(self) -> dict[str, Any]:
        """The head of its frame."""
        return {
            "task": self.task,
            "origin": [self.origin.module, self.origin.file],
            "handle": self.handle,
            "attempt": self.attempt,
            "limit": self.limit,
        }

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """From the head of a frame."""
        origin = Origin(*fields["origin"])
        return cls(fields["task"], origin, fields["handle"], fields["attempt"], fields["limit"])


def _text(tls: TLS) -> dict[str, Any]:
    return {name: None if file is None else os.fspath(file) for name, file in asdict(tls).items()}
