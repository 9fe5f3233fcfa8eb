"""Several worker processes as one: kept running, replaced without a gap, stopped together."""

from gearflow.fleet.child import HELD_BACK
from gearflow.fleet.line import Counts, Failed, Leave, Line, Ready, Retiring
from gearflow.fleet.notify import Notifier
from gearflow.fleet.supervisor import Supervisor
from gearflow.fleet.terminal import Terminal

__all__ = [
    "HELD_BACK",
    "Counts",
    "Failed",
    "Leave",
    "Line",
    "Notifier",
    "Ready",
    "Retiring",
    "Supervisor",
    "Terminal",
]
