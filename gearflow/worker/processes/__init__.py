"""Runs of tasks in processes of their own, so that they have a core each and can be stopped.

The worker's side is ``Pool`` and ``Errand``; what the processes run is ``child``. The two sides speak in
frames over a socket: JSON and plain bytes, nothing that could make the other side execute anything.
"""

from gearflow.worker.processes.call import Errand
from gearflow.worker.processes.pool import LEAVING, Pool
from gearflow.worker.processes.task_import import origin_of

__all__ = ["LEAVING", "Errand", "Pool", "origin_of"]
