"""The settings of a worker."""

import os
import socket
from dataclasses import dataclass
from typing import Annotated, Self, TypedDict

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from gearflow.client import TLS
from gearflow.protocol.constants import MAX_BODY, MAX_CLIENT_ID, MAX_PAYLOAD


def default_client_id() -> str:
    """``gearflow-HOST-PID``: enough to find the process that a line of ``workers`` is about."""
    host = "".join(socket.gethostname().split())
    return f"gearflow-{host[:80]}-{os.getpid()}"


class WorkerSettings(BaseModel):
    """The settings of a ``Worker``, a frozen value that is validated once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    servers: tuple[str, ...] | None = None
    """``host:port`` of all servers to take jobs from. None means the servers that calls go to where you
    create the worker, by ``connect()``, ``configure()`` or GEARMAN_SERVERS, else 127.0.0.1:4730."""

    discover: bool | None = None
    """Whether the worker also takes jobs from the other servers of a group, which share a database. It asks
    one of them every 5 s which there are, and leaves those that are gone. Those in ``servers`` are always
    kept. None means as ``connect()``, ``configure()`` or GEARFLOW_DISCOVER (1 or 0) says where you create the
    worker, else yes."""

    tls: TLS | bool | None = None
    """How to use TLS. True trusts the authorities that the system trusts, and false turns TLS off. None means
    as ``connect()``, ``configure()`` or the environment says where you create the worker."""

    token: SecretStr | None = None
    """The token for servers that require one. None means as above."""

    concurrency: Annotated[int, Field(ge=1)] = 10
    """Jobs that run at once, over all servers. A batch counts as one. Ten threads that wait for files or the
    network keep a core busy without crowding it. Raise it to hundreds for ``async`` tasks that wait. Set it
    to the number of cores for tasks whose C code computes without the GIL, and to 1 for tasks that must not
    overlap."""

    client_id: Annotated[str, Field(min_length=1, max_length=MAX_CLIENT_ID, pattern=r"^[!-~]+$")] = Field(
        default_factory=default_client_id
    )
    """The name that ``workers`` shows for this worker. It has no blanks, because they would break that
    listing."""

    connect_timeout: Annotated[float, Field(gt=0)] = 5.0
    """Longest wait for a connection, in seconds."""

    first_retry: Annotated[float, Field(gt=0)] = 0.1
    """Seconds before the first new attempt to reach a server. Each further pause is twice as long, with
    jitter, so that a fleet of workers does not return to a restarted server all at once."""

    longest_retry: Annotated[float, Field(gt=0)] = 0.8
    """Longest pause between attempts, in seconds. The default brings a worker back within a second of its
    server. ``first_retry`` counts if it is longer."""

    heartbeat: Annotated[float, Field(gt=0)] = 10.0
    """Seconds of silence after which the worker asks a server whether it is there (ECHO_REQ). After as much
    silence again, the worker gives the server up, and the slots that its answers hold are free for other
    servers."""

    release_timeout: Annotated[float, Field(gt=0)] = 1.0
    """Longest wait of a cold stop for the server to take the running jobs back, in seconds."""

    poll: Annotated[float, Field(gt=0)] | None = 1.0
    """Seconds after which a sleeping worker asks a silent server that is not gearflow's own. gearmand before
    2.0 wakes no worker when a delayed job is due. The worker does not ask for the version, so it polls 2.0
    too. None saves the packets."""

    gearmand_exceptions: bool = False
    """Fail jobs on C gearmand with WORK_EXCEPTION alone, so that PHP's clients get its code and call their
    exception callback. Use it only where all clients ask for exceptions, as PHP's and gearflow's do. The C
    tool ``gearman`` hangs then, and Perl's client dies. By default the worker sends WORK_WARNING and
    WORK_FAIL, which all clients understand. Other servers get the same either way."""

    max_workload: Annotated[int, Field(ge=1, le=MAX_BODY)] = MAX_PAYLOAD
    """Bytes in the largest workload that the worker takes. If a server sends a larger one, the worker closes
    the connection. The default is that of the server's ``max_body``, so set both if you raise one."""

    drain: Annotated[float, Field(ge=0)] | None = None
    """Longest wait of a warm stop for the running jobs, in seconds. After it the worker stops cold. None
    means as long as it takes."""

    burst: bool = False
    """Stop warm once no server has a job. The worker gives up servers that it cannot reach within
    ``connect_timeout``. If it cannot reach any, ``run`` raises ``NoServer``."""

    max_tasks: Annotated[int, Field(ge=1)] | None = None
    """Runs after which the worker retires. The actual number is up to a tenth lower, so that a fleet does not
    retire all at once. The worker finishes its running jobs, so there may be some more runs."""

    max_rss: Annotated[int, Field(ge=1)] | None = None
    """Bytes of resident memory above which the worker retires. The actual limit is up to a tenth lower, for
    the same reason. The worker checks it after each run and every few seconds. A worker that uses more before
    its first job does not start, and raises ``StartupFailed``."""

    process_max_tasks: Annotated[int, Field(ge=1)] | None = None
    """Runs after which the worker replaces a process of tasks with ``executor="process"``, against libraries
    that lose memory. None means that the process lives as long as the worker."""

    process_max_rss: Annotated[int, Field(ge=1)] | None = None
    """Bytes of resident memory above which the worker replaces such a process after its run."""

    liveness: Annotated[float, Field(gt=0)] | None = 60.0
    """Seconds without a job after which the log says that the worker waits for jobs. The line repeats each
    time this passes. None means no such line."""

    @model_validator(mode="after")
    def _retries_grow(self) -> Self:
        if self.longest_retry < self.first_retry and "longest_retry" in self.model_fields_set:
            raise ValueError(
                f"longest_retry {self.longest_retry} is less than first_retry {self.first_retry}"
            )
        return self


class WorkerOptions(TypedDict, total=False):
    """The fields of ``WorkerSettings`` as keywords of ``Worker``."""

    servers: tuple[str, ...] | list[str] | None
    discover: bool | None
    tls: TLS | bool | None
    token: SecretStr | str | None
    concurrency: int
    client_id: str
    connect_timeout: float
    first_retry: float
    longest_retry: float
    heartbeat: float
    release_timeout: float
    poll: float | None
    gearmand_exceptions: bool
    max_workload: int
    drain: float | None
    burst: bool
    max_tasks: int | None
    max_rss: int | None
    process_max_tasks: int | None
    process_max_rss: int | None
    liveness: float | None


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Time limits of a worker that are no settings, in seconds."""

    flush: float = 5.0
    """For the servers to confirm the last results, at a warm stop."""

    answer: float = 25.0
    """For a server to answer a call or a GRAB. After it the worker gives its jobs back and connects again."""

    cancel_grace: float = 1.0
    """From ``Context.cancelled`` to the kill of the process that runs the task."""

    memory_interval: float = 2.0
    """Between two checks of ``max_rss``."""

    discovery: float = 5.0
    """Between two questions to a server that shares a database with others, which those are."""

    noop_reply: float = 0.01
    """A NOOP that comes sooner after PRE_SLEEP answers it. A later one reports a new job."""
