"""Answers the commands of the text protocol."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.metadata import version
from itertools import islice
from typing import Final, TypeAlias, TypeVar

from gearflow.broker import Broker, status
from gearflow.protocol import admin

_LEVELS = {
    logging.DEBUG: "DEBUG",
    logging.INFO: "INFO",
    logging.WARNING: "WARNING",
    logging.ERROR: "ERROR",
    logging.CRITICAL: "CRITICAL",
}

Command: TypeAlias = admin.MaxQueue | admin.CancelJob | admin.CreateFunction | admin.DropFunction
Query: TypeAlias = (
    admin.Status
    | admin.PriorityStatus
    | admin.ShowWorkers
    | admin.ShowJobs
    | admin.ShowUniqueJobs
    | admin.Version
    | admin.GetPid
    | admin.Verbose
)


Row = TypeVar("Row")

_ROWS: Final = 100
"""Rows of a table that are rendered at a time, which takes a fraction of a millisecond."""


@cache
def server_version() -> str:
    """Return the version as the text protocol sends it. Its first word identifies gearflow's server."""
    return f"gearflow-{version('gearflow')}"


def answer(broker: Broker, line: bytes) -> bytes | Iterator[bytes]:
    """Answer one line of the text protocol. A table comes in pieces.

    Raises:
        RemoteProtocolError: The line breaks the protocol. Close the connection.
    """
    match admin.parse_command(line):
        case admin.CommandRefused(text):
            return text
        case admin.MaxQueue() | admin.CancelJob() | admin.CreateFunction() | admin.DropFunction() as command:
            return _change(broker, command)
        case query:
            return _report(broker, query)


def _change(broker: Broker, command: Command) -> bytes:
    """Carry out a command that changes something."""
    match command:
        case admin.MaxQueue(function, high, normal, low):
            broker.functions.limit(function, high, normal, low)
            return admin.OK
        case admin.CancelJob(handle):
            return admin.OK if broker.cancel(handle) else admin.UNKNOWN_JOB
        case admin.CreateFunction(function):
            broker.create(function)
            return admin.OK
        case admin.DropFunction(function):
            if function not in broker.functions.by_name:
                return admin.UNKNOWN_FUNCTION
            return admin.OK if broker.drop(function) else admin.FUNCTION_IN_USE


def _report(broker: Broker, query: Query) -> bytes | Iterator[bytes]:
    """Answer a command that only reads."""
    match query:
        case admin.Status():
            return _in_pieces(admin.render_status, status.functions(broker.functions))
        case admin.PriorityStatus():
            return _in_pieces(admin.render_priority_status, status.priorities(broker.functions))
        case admin.ShowWorkers():
            return _in_pieces(admin.render_workers, status.connections(broker.sessions), rows_a_piece=1)
        case admin.ShowJobs():
            return _in_pieces(admin.render_jobs, status.jobs(broker.jobs, broker.core.handles))
        case admin.ShowUniqueJobs():
            return _in_pieces(admin.render_uniques, status.uniques(broker.jobs))
        case admin.Version():
            return admin.render_version(server_version())
        case admin.GetPid():
            return admin.render_pid(os.getpid())
        case admin.Verbose():
            level = logging.getLogger("gearflow.server").getEffectiveLevel()
            return admin.render_log_level(_LEVELS.get(level, "INFO"))


def _in_pieces(
    render: Callable[[Iterable[Row]], bytes], rows: Iterator[Row], rows_a_piece: int = _ROWS
) -> Iterator[bytes]:
    """A table, so many rows at a time, and its end."""
    end = render(())
    while some := list(islice(rows, rows_a_piece)):
        yield render(some).removesuffix(end)
    yield end
