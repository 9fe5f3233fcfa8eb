"""Acts on all jobs that a filter selects, after a question with their number."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from gearflow_cli import output, server_queries
from gearflow_cli.errors import CliError, ExitCode, tell
from gearflow_cli.job_filters import LETTERS, LIVE
from gearflow_cli.output import counted

if TYPE_CHECKING:
    from gearflow.client import Client
    from gearflow.protocol.jobs import BulkDone, JobFilter

Act: TypeAlias = Literal["cancel", "replay", "purge"]

_TIMEOUT: Final = 3600.0
"""Seconds that an act on many jobs may take."""

_DONE: Final[dict[Act, str]] = {"cancel": "cancelled", "replay": "replayed", "purge": "purged"}


def act_of(*, cancel: bool, replay: bool, purge: bool) -> Act | None:
    """The act that these options ask for. None if they ask for none. Raises CliError for several."""
    given: dict[Act, bool] = {"cancel": cancel, "replay": replay, "purge": purge}
    acts: list[Act] = [act for act, is_given in given.items() if is_given]
    if len(acts) > 1:
        raise CliError(ExitCode.USAGE, "give one of --cancel, --replay and --purge")
    return acts[0] if acts else None


def states_for(act: Act | None, states: Sequence[str]) -> Sequence[str]:
    """The states that are selected. Raises CliError if an act is not for one of them."""
    if act is None:
        return states
    possible = LIVE if act == "cancel" else LETTERS
    wrong = [state for state in states if state not in possible]
    if wrong:
        text = f"--{act} is for jobs that are {' or '.join(possible)}, not {wrong[0]}"
        raise CliError(ExitCode.USAGE, text)
    return states or possible


def act_on_all(do: Act, select: "JobFilter", addresses: Sequence[str], *, yes: bool) -> None:
    """Act on all jobs that a filter selects, after a question with their number, unless ``yes`` is set."""
    expected: dict[str, int] = {}
    once = do != "cancel"  # the dead letters of a group are the same at each of its servers
    what = "job" if do == "cancel" else "dead letter"
    if not yes:
        counts = server_queries.each(addresses, _Bulk("count", select, {}), _TIMEOUT, once=once)
        counts.require_all()
        expected = {address: done.matched for address, done in counts.given.items()}
        number = sum(expected.values())
        if not number:
            output.write(f"no {what} matches")
            return
        output.confirm(f"{do.capitalize()} {counted(number, what)} on {', '.join(expected)}?")
    answers = server_queries.each(addresses, _Bulk(do, select, expected), _TIMEOUT, once=once)
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
