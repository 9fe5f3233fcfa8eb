"""Runs tasks in processes of their own, so that each has a core and can be stopped.

The worker's side is ``ProcessPool`` and ``ProcessCall``. The processes run ``child``. The two sides exchange
frames over a socket: JSON and plain bytes, nothing that could make the other side execute anything.
"""

from gearflow.worker.processes.call import ProcessCall
from gearflow.worker.processes.pool import EXIT_TIME, ProcessPool
from gearflow.worker.processes.task_import import origin_of

__all__ = ["EXIT_TIME", "ProcessCall", "ProcessPool", "origin_of"]
