"""The options that select jobs."""

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from gearflow_cli import options

if TYPE_CHECKING:
    from gearflow.protocol.jobs import JobFilter

LIVE: Final = ("running", "waiting", "delayed")
LETTERS: Final = ("dead", "expired")
STATES: Final = (*LIVE, "succeeded", "failed", "cancelled", "expired", "dead")


def _states(values: list[str] | None) -> list[str]:
    states = [state for value in values or () for state in value.split(",") if state]
    for state in states:
        if state not in STATES:
            raise typer.BadParameter(f"{state!r} is no state. There are {', '.join(STATES)}")
    return states


def _past(text: str) -> float:
    """Read a Unix time from a time, or from how long ago it was."""
    if re.fullmatch(r"[\d.]+[smhd]?|(\d+[smhd])+", text, re.ASCII):
        return max(time.time() - options.duration(text), 0.0)
    return options.moment(text).timestamp()


States: TypeAlias = Annotated[
    list[str] | None,
    options.jobs(
        "--state",
        "Jobs in this state: running, waiting, delayed, succeeded, failed, cancelled, expired or dead. May "
        "be repeated.",
        "STATE",
        env=None,
        callback=_states,
    ),
]

Text: TypeAlias = Annotated[
    str | None,
    options.jobs(
        "--text",
        "Jobs with this text in their handle, names, payload or error.",
        "TEXT",
        env=None,
        callback=options.name,
    ),
]

Error: TypeAlias = Annotated[
    str | None,
    options.jobs(
        "--error",
        "Jobs that ended with this type of error, such as KeyError.",
        "TYPE",
        env=None,
        callback=options.name,
    ),
]

Since: TypeAlias = Annotated[
    float | None,
    options.jobs(
        "--since",
        "Jobs that came, or ended, at this time or later. 2h: two hours ago.",
        "WHEN",
        env=None,
        parser=_past,
    ),
]

Until: TypeAlias = Annotated[
    float | None,
    options.jobs(
        "--until",
        "Jobs that came, or ended, before this time. 2h: two hours ago.",
        "WHEN",
        env=None,
        parser=_past,
    ),
]


def selected(
    states: Sequence[str],
    function: str | None,
    text: str | None = None,
    error: str | None = None,
    since: float | None = None,
    until: float | None = None,
) -> "JobFilter":
    """The filter of these options."""
    from gearflow.protocol.jobs import JobFilter

    values = {"function": function, "text": text, "error": error, "since": since, "until": until}
    given = {name: value for name, value in values.items() if value is not None}
    return JobFilter.model_validate({"states": tuple(states), **given})
