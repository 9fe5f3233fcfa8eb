"""``gearflow jobs`` lists the jobs of servers, and acts on all that match."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

from gearflow_cli import bulk_acts, function_names, job_filters, options, output, progress, server_queries
from gearflow_cli.errors import CliError, ExitCode, tell
from gearflow_cli.help import Panel

if TYPE_CHECKING:
    from gearflow.client import Client
    from gearflow.protocol.jobs import JobFilter, JobPage, ListedJob

PAGE: Final = 200  # jobs in one answer
_PAYLOAD: Final = 1024  # bytes of each payload that --json shows


def jobs(
    states: job_filters.States = None,
    function: Annotated[
        str | None,
        options.jobs(
            "--function -f",
            "Jobs of this function, by its full or bare name.",
            "FUNCTION",
            env=None,
            callback=options.name,
        ),
    ] = None,
    text: job_filters.Text = None,
    error: job_filters.Error = None,
    since: job_filters.Since = None,
    until: job_filters.Until = None,
    limit: Annotated[
        int,
        options.option(
            Panel.OUTPUT,
            "--limit -n",
            "Show up to so many jobs of each server. 0: all.",
            "N",
            env=None,
            min=0,
        ),
    ] = 100,
    after: Annotated[
        str | None,
        options.option(Panel.OUTPUT, "--after", "Go on behind the jobs that were shown.", "PLACE", env=None),
    ] = None,
    cancel: Annotated[
        bool, options.option(Panel.HOW, "--cancel", "Cancel all live jobs that match.", env=None)
    ] = False,
    replay: Annotated[
        bool, options.option(Panel.HOW, "--replay", "Run all dead letters that match again.", env=None)
    ] = False,
    purge: Annotated[
        bool, options.option(Panel.HOW, "--purge", "Delete all dead letters that match.", env=None)
    ] = False,
    yes: options.Yes = False,
    servers: options.Servers = None,
    wide: options.Wide = False,
    as_json: options.Json = False,
) -> None:
    """List jobs by state, function, text and time. Cancel, replay or purge all that match.

    Jobs that run, wait or are delayed come before those that have ended. --cancel, --replay and --purge act
    on all jobs that match, however many are shown, after a question with their number. With --json
    there is one object a line.

    Examples:
      gearflow jobs --state waiting,running -f send_invoice
      gearflow jobs --state dead --error KeyError --since 2h --replay
    """
    addresses = server_queries.addresses_of(servers)
    name = function and function_names.remembered(function, addresses)
    act = bulk_acts.act_of(cancel=cancel, replay=replay, purge=purge)
    wanted = bulk_acts.states_for(act, states or [])
    select = job_filters.selected(wanted, name, text, error, since, until)
    if act is not None:
        bulk_acts.act_on_all(act, select, addresses, yes=yes)
        return
    if after is not None and len(addresses) > 1:
        raise CliError(ExitCode.USAGE, "--after goes on at one server: name it with --server")
    listing = _Listing(as_json=as_json, wide=wide, with_server=len(addresses) > 1)
    lister = JobLister(select, listing, limit=limit, after=after or "", payload=_PAYLOAD if as_json else 0)
    answers = server_queries.each(addresses, lister)
    answers.require_one()
    if name is not None and listing.is_empty:
        function_names.known(name, addresses)
    listing.end(answers.given)


class JobLister:
    """Fetches the jobs of a server page by page, and has them shown as they come."""

    def __init__(
        self, select: "JobFilter", listing: "_Listing", *, limit: int, after: str = "", payload: int = 0
    ) -> None:
        self._select = select
        self._listing = listing
        self._limit = limit
        self._after = after
        self._payload = payload
        self._groups: set[str] = set()

    async def __call__(self, client: "Client", server: str) -> str:
        """Show the jobs of a server. Returns where the next page begins, if it has more."""
        select = await self._select_at(client, server)
        if select is None:
            return ""
        after, left, searched = self._after, self._limit, 0
        with progress.SearchProgress() as bar:
            while True:
                wanted = min(left, PAGE) if self._limit else PAGE
                page = await self._page(client, select, server, after, wanted)
                if page.jobs:
                    bar.hide()
                self._listing.show(server, page.jobs)
                left -= len(page.jobs)
                after = page.next
                if not after or (self._limit and left <= 0):
                    return after
                searched += page.searched
                if len(page.jobs) < wanted:
                    bar.show(searched, None if page.left is None else searched + page.left)

    async def _page(
        self, client: "Client", select: "JobFilter", server: str, after: str, limit: int
    ) -> "JobPage":
        from gearflow.client.operate import jobs as list_jobs

        return await list_jobs(client, select, after=after, limit=limit, payload=self._payload, server=server)

    async def _select_at(self, client: "Client", server: str) -> "JobFilter | None":
        """The filter for a server. Of a group, one server lists the ended jobs, and the others do not."""
        group = (await client.features(server)).group
        if group not in self._groups:
            self._groups |= {group} - {""}
            return self._select
        live = tuple(
            state for state in job_filters.LIVE if not self._select.states or state in self._select.states
        )
        return self._select.model_copy(update={"states": live}) if live else None


class _Listing:
    """Prints jobs as they arrive."""

    def __init__(self, *, as_json: bool, wide: bool, with_server: bool) -> None:
        self._as_json = as_json
        self._is_brief = output.is_terminal() and not wide
        self._table = output.GrowingTable(
            ["handle", "function", "state", "attempt", "since", "about"],
            cut={"about": 16, "function": 16, "server": 15},
            optional=("attempt", "since"),
            wide=wide,
            empty="no jobs",
            with_server=with_server,
        )
        self.is_empty = True

    def show(self, server: str, jobs: "Sequence[ListedJob]") -> None:
        """Print the jobs of one answer."""
        if self._as_json:
            for job in jobs:
                shown = {"server": server} | job.job.model_dump(mode="json")
                output.write_json_line(shown | {"listed": job.listed, "payload": job.payload})
        else:
            self._table.add(server, [_row(job, brief=self._is_brief) for job in jobs])
        self.is_empty = self.is_empty and not jobs

    def end(self, places: dict[str, str]) -> None:
        """Print a message if there were no jobs, or if there are more."""
        for server, place in places.items():
            if place:
                tell(f"{server} has more jobs: --after {place} -s {server} shows them, and --limit 0 all")
        if not self._as_json:
            self._table.end()


def _row(listed: "ListedJob", *, brief: bool) -> list[output.Cell]:
    job = listed.job
    moment = job.ended or (job.started if listed.listed == "running" else job.submitted)
    shown = output.briefly(moment) if brief else output.when(moment)[: len("2030-12-24 18:00:00")]
    return [job.handle, job.function, listed.listed, job.attempt, shown, _about(listed)]


def _about(listed: "ListedJob") -> str:
    """Why a job waits or has failed, or how far it is."""
    job = listed.job
    if listed.listed == "delayed" and job.due is not None:
        return f"starts in {output.duration(round(max(job.due - time.time(), 0)))}"
    if listed.listed == "running" and job.progress is not None:
        done, total = job.progress
        return f"{done:,} of {total:,} {job.message}".rstrip()
    return (job.damage or output.failure_text(job) or job.why).partition("\n")[0]
