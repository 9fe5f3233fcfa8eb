"""Compares the limits and schedules that tasks declare with those of a server, and warns once if they differ.

A worker never writes them: an old one that is being replaced would undo what the new code declares.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
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

_DIFFER: Final = "tasks declare %s that the server does not have, or has otherwise; run '%s'"


class DeclaredCheck:
    """Knows what the tasks of a worker declare. Owns the warnings that were given.

    Args:
        tasks: Those that the worker runs.
        log: Gets the warnings.
    """

    def __init__(self, tasks: Iterable[TaskDefinition], log: BurstLog) -> None:
        tasks = list(tasks)
        self._limited = [task for task in tasks if task.limited is not None]
        self._scheduled = [task for task in tasks if task.schedules]
        self._log = log
        self._warned: set[tuple[str, str]] = set()

    def __bool__(self) -> bool:
        """Whether a task declares something."""
        return bool(self._limited or self._scheduled)

    @property
    def texts(self) -> Mapping[str, str]:
        """The limits of each function, as the worker reports them."""
        if not self._limited:
            return {}
        from gearflow.tasks.declared_limits import declared_texts  # only now: it imports pydantic

        return declared_texts(self._limited)

    def not_applied(self, server: str) -> None:
        """The server is not gearflow's own, and applies no limits."""
        if self._limited:
            text = "%s applies no limits, as only gearflow's own server does"
            self._warn("limits", server, self._limited, text, server)

    async def check(self, connection: WorkerConnection, *, is_only: bool) -> None:
        """Ask gearflow's own server what it has. Raises nothing.

        Args:
            connection: Leads to the server.
            is_only: Whether the worker has no other server, apart from those that share its database. Each
                schedule is on one of several servers, so its absence at one of them says nothing.
        """
        try:
            if self._limited:
                await self._check_limits(connection)
            if self._scheduled and is_only:
                await self._check_schedules(connection)
        except GearflowError as error:  # it is gone, or an older server
            fields = {"server": connection.server_name}
            self._log.log(logging.DEBUG, "what tasks declare was not compared: %s", error, extra=fields)

    async def _check_limits(self, connection: WorkerConnection) -> None:
        from gearflow.protocol.limits import LIMIT, LimitChanges
        from gearflow.tasks.declared_limits import apply_request, changed_functions

        server = connection.server_name
        request = apply_request(self._limited, "worker", dry_run=True)
        answer = await connection.ask(encode(SubmitJob(LIMIT, b"", request.to_wire())))
        changes = read_answer(LimitChanges, answer, LIMIT.decode(), server).changes
        changed = set(changed_functions(self._limited, changes))
        tasks = [task for task in self._limited if task.name in changed]
        self._warn("limits", server, tasks, _DIFFER, "limits", _command("limit", tasks))

    async def _check_schedules(self, connection: WorkerConnection) -> None:
        from gearflow.protocol.schedules import SCHEDULES, Schedules, SchedulesRequest
        from gearflow.tasks.schedules import MOST, schedule_specs

        server = connection.server_name
        tasks: list[TaskDefinition] = []
        for task in self._scheduled:
            request = SchedulesRequest(function=task.name, limit=10 * MOST)
            answer = await connection.ask(encode(SubmitJob(SCHEDULES, b"", request.to_wire())))
            found = read_answer(Schedules, answer, SCHEDULES.decode(), server).schedules
            there = {info.schedule.name: info.schedule for info in found}
            if any(there.get(spec.name) != spec for spec in schedule_specs([task])):
                tasks.append(task)
        self._warn("schedules", server, tasks, _DIFFER, "schedules", _command("cron", tasks))

    def _warn(
        self, kind: str, server: str, tasks: Sequence[TaskDefinition], message: str, *args: object
    ) -> None:
        if not tasks or (kind, server) in self._warned:
            return
        self._warned.add((kind, server))
        names = [task.name for task in tasks]
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        self._log.log(logging.WARNING, message, *args, extra={"server": server, "functions": shown})


def _command(group: str, tasks: Iterable[TaskDefinition]) -> str:
    """The command that writes what the modules of tasks declare."""
    modules = {importable_name(task.function.__module__) for task in tasks}
    return f"gearflow {group} apply {' '.join(sorted(modules))}"
