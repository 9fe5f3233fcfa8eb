"""The limits that tasks declare, as gearflow's server takes them. Imports pydantic."""

from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from gearflow.errors import TaskDefinitionError
from gearflow.protocol.limits import (
    FunctionLimits,
    LimitChange,
    LimitList,
    LimitRequest,
    LimitUse,
    LimitValue,
)
from gearflow.tasks.definition import TaskDefinition
from gearflow.tasks.limits import Concurrency, Limit, wire_key

AnyTask: TypeAlias = TaskDefinition

_OF_POLICY: Final = ":policy"
"""How the names of limits end that a policy sets, and no code."""


def apply_request(
    tasks: Iterable[AnyTask], origin: str, *, prune: bool = False, dry_run: bool = False
) -> LimitRequest:
    """The request that applies what tasks declare.

    Raises:
        TaskDefinitionError: Two tasks declare different limits of the same name.
    """
    limits: dict[str, LimitValue] = {}
    functions: dict[str, FunctionLimits] = {}
    declared_by: dict[str, str] = {}
    for task in tasks:
        if task.limited is None:
            continue
        for limit in task.limits:
            name, value = str(limit.name), limit_value(limit)
            if limits.setdefault(name, value) != value:
                raise TaskDefinitionError(
                    f"tasks {declared_by[name]!r} and {task.name!r} declare different limits of the name "
                    f"{name!r}: {limits[name]} and {value}; declare it once, in a variable that both use"
                )
            declared_by.setdefault(name, task.name)
        uses = tuple(LimitUse(limit=str(limit.name), key=wire_key(limit.key)) for limit in task.limits)
        functions[task.name] = FunctionLimits(limits=uses, fair=wire_key(task.fair))
    return LimitRequest(
        action="apply", origin=origin, limits=limits, functions=functions, prune=prune, dry_run=dry_run
    )


def limit_value(limit: Limit) -> LimitValue:
    """A limit as the server takes it."""
    if isinstance(limit, Concurrency):
        return LimitValue(count=limit.count, over=limit.over)
    return LimitValue(count=limit.count, per=limit.seconds, burst=limit.burst)


def declared_texts(tasks: Iterable[AnyTask]) -> dict[str, str]:
    """What tasks declare, as a text for each function that can be compared with that of a server."""
    request = apply_request(tasks, "worker")
    return {name: limits_text(uses, request.limits) for name, uses in request.functions.items()}


def limits_text(uses: FunctionLimits, values: Mapping[str, LimitValue | None]) -> str:
    """The limits that a function uses, with their values. Equal limits have equal texts."""
    texts = [
        f"{use.limit} {values.get(use.limit)}" + (f" by {use.key}" if use.key else "") for use in uses.limits
    ]
    return "; ".join([*texts, *([f"fair by {uses.fair}"] if uses.fair else [])])


def changed_functions(tasks: Iterable[AnyTask], changes: Iterable[LimitChange]) -> list[str]:
    """The functions of tasks whose limits a server would change. Another origin alone is no change."""
    names = {change.name for change in changes if change.before != change.after}
    return [task.name for task in tasks if names & {task.name, *(str(limit.name) for limit in task.limits)}]


def differing_functions(found: LimitList, reported: Iterable[tuple[str, str]]) -> list[str]:
    """The functions whose limits on a server are not those that workers report.

    Args:
        found: What the server has.
        reported: Functions, and their limits as ``declared_texts`` has them.
    """
    values = {limit.name: limit.declared for limit in found.limits}
    there = {
        function.function: FunctionLimits(
            limits=tuple(use for use in function.limits if not use.limit.endswith(_OF_POLICY)),
            fair=function.fair,
        )
        for function in found.functions
    }
    none = FunctionLimits()
    return sorted({name for name, text in reported if limits_text(there.get(name, none), values) != text})
