"""The options that select jobs, and acts on all jobs that they select."""

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

import typer

from gearflow.quantities import counted
from gearflow_cli import options, output, server_queries
from gearflow_cli.errors import tell

if TYPE_CHECKING:
    from gearflow.client import Client
    from gearflow.protocol.jobs import BulkDone, JobFilter

Act: TypeAlias = Literal["cancel", "replay", "purge"]

LIVE: Final = ("running", "waiting", "delayed")
LETTERS: Final = ("dead", "expired")
STATES: Final = (*LIVE, "succeeded", "failed", "cancelled", "expired", "dead")

_PATIENCE: Final = 3600.0
"""Seconds that an act on many jobs may take."""

_ASKED: Final[dict[Act, str]] = {
    "cancel": "Cancel",
    "replay": "Replay",
    "purge": "Purge",
}
_DONE: Final[dict[Act, str]] = {"cancel": "cancelled", "replay": "replayed", "purge": "purged"}


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


def act_on_all(do: Act, select: "JobFilter", addresses: Sequence[str], *, yes: bool) -> None:
    """Act on all jobs that a filter selects, after a question with their number, unless ``yes`` is set."""
    expected: dict[str, int] = {}
    once = do != "cancel"  # the dead letters of a group are the same at each of its servers
    what = "job" if do == "cancel" else "dead letter"
    if not yes:
        counts = server_queries.each(addresses, _Bulk("count", select, {}), _PATIENCE, once=once)
        counts.require_all()
        expected = {address: done.matched for address, done in counts.given.items()}
        number = sum(expected.values())
        if not number:
            output.write(f"no {what} matches")
            return
        output.confirm(f"{_ASKED[do]} {counted(number, what)} on {', '.join(expected)}?")
    answers = server_queries.each(addresses, _Bulk(do, select, expected), _PATIENCE, once=once)
    for address, done in answers.given.items():
        output.write(f"{address}: {_DONE[do]} {counted(done.done, what)}")
        if done.left:
            tell(f"{address}: left {done.left} as they are: {_why_left(do)}")
    answers.require_all()


class _Bulk:
    """Asks a server to act."""

    def __init__(self, do: "Act | Literal['count']", select: "JobFilter", expected: dict[str, int]) -> None:
        self._do: Act | Literal["count"] = do
        self._select = select
        self._expected = expected

    async def __call__(self, client: "Client", server: str) -> "BulkDone":
        from gearflow.client.operate import bulk

        expected = self._expected.get(server)
        return await bulk(client, self._do, self._select, expected=expected, server=server)


def _why_left(do: Act) -> str:
    if do == "cancel":
        return "they have ended or begun meanwhile"
    return "other jobs of the same unique wait or run, or they are damaged"
