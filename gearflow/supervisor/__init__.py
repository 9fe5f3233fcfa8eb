"""Several worker processes as one: kept running, replaced without a gap, stopped together."""

from typing import TYPE_CHECKING

from gearflow.supervisor.ipc import (
    Counts,
    Failed,
    IpcChannel,
    Launched,
    Leave,
    Ping,
    Pong,
    Ready,
    Retiring,
    Shown,
)
from gearflow.supervisor.signals import Echoes, Terminal
from gearflow.supervisor.systemd import Notifier
from gearflow.supervisor.worker_process import HELD_BACK, SHOW_WITHOUT_LOCK

if TYPE_CHECKING:
    from gearflow.supervisor.supervisor import Supervisor

__all__ = [
    "HELD_BACK",
    "SHOW_WITHOUT_LOCK",
    "Counts",
    "Echoes",
    "Failed",
    "IpcChannel",
    "Launched",
    "Leave",
    "Notifier",
    "Ping",
    "Pong",
    "Ready",
    "Retiring",
    "Shown",
    "Supervisor",
    "Terminal",
]


def __getattr__(name: str) -> object:
    """The supervisor, when it is asked for: the processes that it supervises do without it."""
    if name == "Supervisor":
        from gearflow.supervisor.supervisor import Supervisor

        return Supervisor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
