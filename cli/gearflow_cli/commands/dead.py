"""``gearflow dead`` lists, shows, replays and purges dead letters."""

import base64
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import typer

from gearflow_cli import bulk_acts, function_names, job_filters, options, output, server_queries
from gearflow_cli.commands.job import job_name
from gearflow_cli.errors import CliError, ExitCode, tell
from gearflow_cli.help import HelpCommand, HelpGroup
from gearflow_cli.options import secured
from gearflow_cli.output import counted

if TYPE_CHECKING:
    from gearflow.client import Client
    from gearflow.protocol.jobs import JobFilter
    from gearflow.protocol.server_calls import JobInfo, Letter

T = TypeVar("T")

app = typer.Typer(
    cls=HelpGroup,
    no_args_is_help=True,
    help="""List, read, replay or purge dead letters, the background jobs that failed for good.

    Examples:
      gearflow dead list
      gearflow dead replay --function send_invoice
    """,
)

_PAGE: Final = 100  # letters in one answer, which may have long tracebacks


@app.command("list", cls=HelpCommand)
@secured
def list_(
    function: options.OfFunction = None,
    text: job_filters.Text = None,
    error: job_filters.Error = None,
    since: job_filters.Since = None,
    until: job_filters.Until = None,
    servers: options.Servers = None,
    wide: options.Wide = False,
    as_json: options.Json = False,
) -> None:
    """List dead letters, the oldest first. With --json, one object a line.

    With --text, --error, --since or --until, the newest comes first.

    Examples:
      gearflow dead list
      gearflow dead list --function send_invoice --json
    """
    addresses = server_queries.addresses_of(servers)
    name = function and function_names.remembered(function, addresses)
    listing = _Listing(as_json=as_json, wide=wide, with_server=len(addresses) > 1)
    pages = partial(_each_page, function=name, act=listing.show)
    if _is_filtered(text, error, since, until):
        select = job_filters.selected(job_filters.LETTERS, name, text, error, since, until)
        pages = partial(_each_selected_page, select=select, act=listing.show)
    answers = server_queries.each(addresses, pages, once=True)
    answers.require_one()
    _check_name(name, addresses, sum(answers.given.values()))
    listing.end()


@app.command(cls=HelpCommand)
@secured
def show(handle: options.Handle, servers: options.Servers = None, as_json: options.Json = False) -> None:
    """Show a dead letter with its failure and its payload.

    Examples:
      gearflow dead show H:jobs:17
      gearflow dead show H:jobs:17 --json
    """
    letter = _ask_about(handle, servers, _letter)
    if as_json:
        output.write_json(letter.model_dump(mode="json"))
        return
    output.write_job(letter.job)
    output.write(f"\npayload:\n\n{_payload(letter)}")


@app.command(cls=HelpCommand)
@secured
def replay(
    handle: options.OneHandle = None,
    function: options.OfFunction = None,
    everything: options.All = False,
    text: job_filters.Text = None,
    error: job_filters.Error = None,
    since: job_filters.Since = None,
    until: job_filters.Until = None,
    servers: options.Servers = None,
) -> None:
    """Run dead letters again, as if they had just been submitted.

    Examples:
      gearflow dead replay H:jobs:17
      gearflow dead replay --function send_invoice --error KeyError --since 2h
    """
    from gearflow.client.operate import replay as replay_on

    filtered = _is_filtered(text, error, since, until)
    _check(handle, function, everything, filtered=filtered)
    if filtered:
        select = _selected(function, servers, text, error, since, until)
        bulk_acts.act_on_all("replay", select, server_queries.addresses_of(servers), yes=True)
        return
    if handle is not None:
        _ask_about(handle, servers, lambda client, name, server: replay_on(client, name, server=server))
        output.write_sentence(f"replayed {handle}")
        return
    addresses = server_queries.addresses_of(servers)
    name = function and function_names.remembered(function, addresses)
    answers = server_queries.each(
        addresses, lambda client, server: replay_on(client, function=name, server=server), once=True
    )
    _check_name(name, addresses, sum(done.jobs + done.left + done.damaged for done in answers.given.values()))
    for address, done in answers.given.items():
        output.write(f"{address}: replayed {counted(done.jobs, 'dead letter')}")
        if done.left:
            tell(f"{address}: left {done.left}: other jobs of the same unique wait or run", logging.WARNING)
        if done.damaged:
            tell(f"{address}: left {done.damaged}: they are damaged; see gearflow dead list", logging.WARNING)
    answers.require_all()


@app.command(cls=HelpCommand)
@secured
def purge(
    handle: options.OneHandle = None,
    function: options.OfFunction = None,
    everything: options.All = False,
    text: job_filters.Text = None,
    error: job_filters.Error = None,
    since: job_filters.Since = None,
    until: job_filters.Until = None,
    servers: options.Servers = None,
    yes: options.Yes = False,
) -> None:
    """Delete dead letters, after a question.

    Examples:
      gearflow dead purge H:jobs:17
      gearflow dead purge --function send_invoice --yes
    """
    from gearflow.client.operate import purge_dead

    filtered = _is_filtered(text, error, since, until)
    _check(handle, function, everything, filtered=filtered)
    if filtered:
        select = _selected(function, servers, text, error, since, until)
        bulk_acts.act_on_all("purge", select, server_queries.addresses_of(servers), yes=yes)
        return
    if handle is not None:
        if not yes:
            _ask_about(handle, servers, _letter)
            output.confirm(f"Purge the dead letter {handle}?")
        _ask_about(handle, servers, lambda client, name, server: purge_dead(client, name, server=server))
        output.write_sentence(f"purged {handle}")
        return
    addresses = server_queries.addresses_of(servers)
    name = function and function_names.remembered(function, addresses)
    if not yes:
        output.confirm(_question(name, addresses))
    answers = server_queries.each(
        addresses, lambda client, server: purge_dead(client, function=name, server=server), once=True
    )
    if yes:
        _check_name(name, addresses, sum(answers.given.values()))
    for address, letters in answers.given.items():
        output.write(f"{address}: purged {counted(letters, 'dead letter')}")
    answers.require_all()


def _check(handle: str | None, function: str | None, everything: bool, *, filtered: bool) -> None:
    """Raises CliError unless exactly one option selects the letters, or a filter."""
    if (handle is not None) + (function is not None) + everything > 1 or (filtered and handle is not None):
        raise CliError(ExitCode.USAGE, "say which dead letters: HANDLE, or --function, or --all")
    if not (filtered or handle is not None or function is not None or everything):
        raise CliError(ExitCode.USAGE, "say which dead letters: HANDLE, or --function, or --all")


def _is_filtered(text: str | None, error: str | None, since: float | None, until: float | None) -> bool:
    return (text, error, since, until) != (None, None, None, None)


def _selected(
    function: str | None,
    servers: Sequence[str] | None,
    text: str | None,
    error: str | None,
    since: float | None,
    until: float | None,
) -> "JobFilter":
    """The filter of these options."""
    name = function and function_names.remembered(function, server_queries.addresses_of(servers))
    return job_filters.selected(job_filters.LETTERS, name, text, error, since, until)


def _check_name(name: str | None, addresses: Sequence[str], letters: int) -> None:
    """Report an unknown function, whose name may be mistyped. Raises as ``function_names.known`` does."""
    if name is not None and not letters:
        function_names.known(name, addresses)


def _question(name: str | None, addresses: Sequence[str]) -> str:
    answers = server_queries.each(
        addresses, partial(_each_page, function=name, act=lambda server, letters: None), once=True
    )
    answers.require_all()
    letters = sum(answers.given.values())
    _check_name(name, addresses, letters)
    of = f" of {name}" if name else ""
    return f"Purge {counted(letters, 'dead letter')}{of} on {', '.join(addresses)}?"


def _ask_about(
    handle: str, servers: Sequence[str] | None, ask: "Callable[[Client, str, str], Awaitable[T]]"
) -> T:
    """Ask the server that has a letter. Raises UnknownJob if none of them has it."""
    from gearflow.client import JobHandle

    job = job_name(handle, None, servers or [])
    addresses = [str(job.server)] if isinstance(job, JobHandle) else server_queries.addresses_of(servers)
    return server_queries.first(addresses, lambda client, server: ask(client, str(job), server))


class _Listing:
    """Prints letters as they arrive."""

    def __init__(self, *, as_json: bool, wide: bool, with_server: bool) -> None:
        self._as_json = as_json
        self._is_brief = output.is_terminal() and not wide
        self._table = output.GrowingTable(
            ["handle", "function", "state", "attempt", "deaths", "ended", "error"],
            cut={"error": 20, "function": 16, "server": 15},
            optional=("deaths", "attempt", "ended"),
            wide=wide,
            empty="no dead letters",
            with_server=with_server,
        )

    def show(self, server: str, letters: "Sequence[JobInfo]") -> None:
        """Print the letters of one answer."""
        if self._as_json:
            for letter in letters:
                output.write_json_line({"server": server} | letter.model_dump(mode="json"))
        else:
            self._table.add(server, [_row(letter, brief=self._is_brief) for letter in letters])

    def end(self) -> None:
        """Print a message if there were no letters."""
        if not self._as_json:
            self._table.end()


async def _each_page(
    client: "Client", server: str, *, function: str | None, act: "Callable[[str, Sequence[JobInfo]], None]"
) -> int:
    """Apply a function to the letters of each answer. Returns their number."""
    from gearflow.client.operate import dead_letters

    number = 0
    after: str | None = None
    while True:
        page = await dead_letters(client, function, after=after, limit=_PAGE, server=server)
        act(server, page)
        number += len(page)
        if len(page) < _PAGE:
            return number
        after = page[-1].handle


async def _each_selected_page(
    client: "Client", server: str, *, select: "JobFilter", act: "Callable[[str, Sequence[JobInfo]], None]"
) -> int:
    """As ``_each_page``, for the letters that a filter selects."""
    from gearflow.client.operate import jobs

    number = 0
    after = ""
    while True:
        page = await jobs(client, select, after=after, limit=_PAGE, server=server)
        act(server, [listed.job for listed in page.jobs])
        number += len(page.jobs)
        after = page.next
        if not after:
            return number


async def _letter(client: "Client", handle: str, server: str) -> "Letter":
    from gearflow.client.operate import dead_letter

    return await dead_letter(client, handle, server=server)


def _row(letter: "JobInfo", *, brief: bool) -> list[output.Cell]:
    error = (letter.damage or output.failure_text(letter)).partition("\n")[0]
    if brief and letter.failure is not None:
        module = (letter.failure.type or "").rpartition(".")[0]
        error = error.removeprefix(f"{module}.")
    return [
        letter.handle,
        letter.function,
        "damaged" if letter.damage else letter.state,
        letter.attempt,
        letter.deaths,
        output.briefly(letter.ended) if brief else output.when(letter.ended)[: len("2030-12-24 18:00:00")],
        error,
    ]


def _payload(letter: "Letter") -> str:
    """A payload as text, or as a bytes literal if it is not text."""
    if letter.text is not None:
        return letter.text.removesuffix("\n")
    try:
        return str(base64.b64decode(letter.payload))
    except ValueError:
        raise CliError(ExitCode.NO_SERVER, "the server sent a payload that is not base64") from None
