"""Compares the limits that tasks declare with those of a server, and warns once if they differ.

A worker never writes them: an old one that is being replaced would undo what the new code declares.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Final

from gearflow.client.requests import read_answer
from gearflow.errors import GearflowError
from gearflow.protocol.codec import encode
from gearflow.protocol.packets import SubmitJob
from gearflow.runtime.log_bursts import BurstLog
from gearflow.runtime.modules import importable_name
from gearflow.tasks.definition import TaskDefinition
from gearflow.worker.connection import WorkerConnection

_SHOWN: Final = 3  # functions in a warning


class LimitCheck:
    """Knows what the tasks of a worker declare. Owns which servers were checked.

    Args:
        tasks: Those that the worker runs.
        log: Gets the warnings.
    """

    def __init__(self, tasks: Iterable[TaskDefinition], log: BurstLog) -> None:
        self._tasks = [task for task in tasks if task.limited is not None]
        self._log = log
        self._warned: set[str] = set()

    def __bool__(self) -> bool:
        """Whether a task declares limits."""
        return bool(self._tasks)

    @property
    def texts(self) -> Mapping[str, str]:
        """The limits of each function, as the worker reports them."""
        if not self._tasks:
            return {}
        from gearflow.tasks.declared_limits import declared_texts  # only now: it imports pydantic

        return declared_texts(self._tasks)

    def not_applied(self, server: str) -> None:
        """The server is not gearflow's own, and applies no limits."""
        functions = [task.name for task in self._tasks]
        self._warn(server, functions, "%s applies no limits, as only gearflow's own server does", server)

    async def check(self, connection: WorkerConnection) -> None:
        """Ask gearflow's own server what it would have to change. Raises nothing."""
        from gearflow.protocol.limits import LIMIT, LimitChanges
        from gearflow.tasks.declared_limits import apply_request, changed_functions

        server = connection.server_name
        try:
            request = apply_request(self._tasks, "worker", dry_run=True)
            answer = await connection.ask(encode(SubmitJob(LIMIT, b"", request.to_wire())))
            changes = read_answer(LimitChanges, answer, LIMIT.decode(), server).changes
        except GearflowError as error:  # it is gone, or an older server
            self._log.log(logging.DEBUG, "limits were not compared: %s", error, extra={"server": server})
            return
        if functions := changed_functions(self._tasks, changes):
            modules = {importable_name(task.function.__module__) for task in self._tasks}
            command = f"gearflow limit apply {' '.join(sorted(modules))}"
            self._warn(
                server,
                functions,
                "tasks declare limits that the server does not have, or has otherwise; run '%s'",
                command,
            )

    def _warn(self, server: str, functions: list[str], message: str, *args: object) -> None:
        if server in self._warned:
            return
        self._warned.add(server)
        shown = ", ".join(functions[:_SHOWN]) + (", ..." if len(functions) > _SHOWN else "")
        self._log.log(logging.WARNING, message, *args, extra={"server": server, "functions": shown})
