"""The schedules that ``@task(schedule=...)`` declares: how they are checked, and what servers store of them.

A schedule has the name of its task. If a task has several, the second is ``NAME#2``, the third ``NAME#3``.
The names follow the order of the list, so a schedule that is put in front of others takes over their names
and their counts.

The arguments of a schedule are encoded as those of a call, with the defaults of the task filled in. A server
stores the payload, so a default that changes applies to the jobs of schedules after they are applied again.
The options of the task are stored as well, except ``unique``, because each tick has a unique of its own, and
the task's own ``retries`` and ``timeout``, which the worker knows.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, cast

from gearflow.errors import PayloadInvalid, TaskDefinitionError
from gearflow.schedules import Cron, Every, Schedule

if TYPE_CHECKING:
    from gearflow.protocol.schedules import ScheduleSpec  # it imports pydantic
    from gearflow.tasks.definition import TaskDefinition

MOST: Final = 100
"""Schedules of a task."""


def read_schedules(name: str, value: Any) -> tuple[Schedule, ...]:
    """A schedule or a list of them, as a tuple. Raises ValueError for anything else."""
    given: list[Any] = list(cast("Iterable[Any]", value)) if isinstance(value, list | tuple) else [value]
    for schedule in given:
        if not isinstance(schedule, Cron | Every):
            raise ValueError(
                f"{name}={schedule!r}: it is a Cron('0 3 * * *'), an Every(minutes=5) or a list of them"
            )
    if len(given) > MOST:
        raise ValueError(f"{name}=: {len(given)} schedules, and {MOST} is the most")
    return tuple(given)


def named_schedules(task: "TaskDefinition") -> Iterator[tuple[str, Schedule]]:
    """The schedules of a task with their names."""
    for number, schedule in enumerate(task.schedules, 1):
        yield task.name if number == 1 else f"{task.name}#{number}", schedule


def check_schedules(task: "TaskDefinition") -> None:
    """Check that the arguments of each schedule make a call.

    Raises:
        TaskDefinitionError: They do not.
    """
    for schedule in task.schedules:
        try:
            task.payload.encode((), schedule.args)
        except TaskDefinitionError:  # it is a TypeError, too
            raise
        except TypeError as error:
            raise TaskDefinitionError(
                f"{task.name!r} cannot have the schedule {schedule!r}: {error}; give each "
                "parameter a default, or a value in args={...}"
            ) from None
        except PayloadInvalid as error:
            raise TaskDefinitionError(
                f"{task.name!r} cannot have the schedule {schedule!r}: {error}"
            ) from None


def schedule_specs(tasks: "Iterable[TaskDefinition]") -> "Iterator[ScheduleSpec]":
    """The schedules of tasks as a server stores them.

    Raises:
        TaskDefinitionError: The arguments of a schedule do not make a call, or one that is too large.
    """
    from gearflow.client.schedules import schedule_of

    for task in tasks:
        check_schedules(task)
        for name, schedule in named_schedules(task):
            try:
                yield schedule_of(name, task, schedule)
            except ValueError as error:  # such as a payload that is too large
                raise TaskDefinitionError(str(error)) from None
