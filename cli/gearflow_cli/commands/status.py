"""``gearflow status`` shows the functions of servers, and the groups of those that share a database."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Final

from gearflow_cli import options, output, server_queries
from gearflow_cli.errors import tell
from gearflow_cli.server_queries import TIMEOUT
from gearflow_cli.text import printable

if TYPE_CHECKING:
    from gearflow.client import Client
    from gearflow.protocol.group_info import GroupInfo
    from gearflow.protocol.limits import LimitList
    from gearflow.protocol.server_calls import Closed
    from gearflow.protocol.workers import WorkerInfo


UNAPPLIED: Final = (
    "a worker declares limits that the server does not have, or has otherwise; "
    "run 'gearflow limit apply {module}'"
)


class LimitView:
    """The limits of a server, and what its workers declare."""

    def __init__(self, found: "LimitList", workers: "Sequence[WorkerInfo]") -> None:
        from gearflow.observe import LimitTexts

        texts = LimitTexts(found)
        self.limits = texts.limits
        """The limits of a function, such as ``20`` or ``shopify 100/m by /shop``."""
        self.waits_for = texts.waits_for
        """Why the next job of a function waits, as far as its limits without a key say."""
        self.differing = _differing(found, workers)
        """Functions whose workers declare other limits than the server has."""


@dataclass(frozen=True, slots=True)
class More:
    """What only gearflow's own server knows."""

    paused: Collection[str]
    """Functions whose jobs it does not give out."""

    overdue: Mapping[str, int]
    """The number of runs that go on after the end of their job, by function."""

    closed: "Closed | None"
    """Why it refuses background jobs, if it does."""

    group: str
    """The name of its group, or empty."""

    address: str
    """How the group calls it."""

    members: Collection[str]
    """The live servers of its group."""

    limits: LimitView
    """The limits of its functions."""

    def of(self, function: str) -> tuple[bool, int]:
        """Whether a function is paused, and its overdue runs."""
        return function in self.paused, self.overdue.get(function, 0)

    def waits_for(self, function: "Function") -> str:
        """Why the next job of a function waits. Empty if it waits for a worker that is busy."""
        if not function.waiting:
            return ""
        if function.name in self.paused:
            return "paused"
        return self.limits.waits_for(function.name) or ("" if function.workers else "no worker")


@dataclass(frozen=True, slots=True)
class Function:
    """One function of a server. ``total`` counts the waiting and the running jobs."""

    name: str
    total: int
    running: int
    waiting: int
    workers: int


def status(
    servers: options.Servers = None, wide: options.Wide = False, as_json: options.Json = False
) -> None:
    """Show the functions of job servers with their jobs and workers.

    The servers give no jobs of a paused function to workers. Overdue runs have exceeded their timeout in a
    thread, which cannot be stopped, and each occupies a slot of a worker. The command also shows limits, and
    why jobs wait. Only gearflow's servers know these. They also tell if they refuse background jobs because
    their disk failed, and if workers declare limits that they do not have.

    Of servers that share a database one is enough. The command shows all servers of the group, and the state
    of the database.

    Examples:
      gearflow status
      gearflow status -s one.example.com -s two.example.com --json
    """
    from gearflow.client import default_servers
    from gearflow.errors import NoServer

    addresses = servers or [str(address) for address in default_servers()]
    answers = functions_of(addresses)
    found = {address: answer for address, answer in answers.items() if not isinstance(answer, str)}
    silent = {address: answer for address, answer in answers.items() if isinstance(answer, str)}
    if not found:
        raise NoServer(silent)
    more = _more_of(list(found))
    if members := _members(more, answers):
        others = functions_of(members)
        answers |= others
        found |= {address: answer for address, answer in others.items() if not isinstance(answer, str)}
        silent |= {address: answer for address, answer in others.items() if isinstance(answer, str)}
        more |= _more_of([address for address in others if address in found])
    groups = _groups_of(more)
    if as_json:
        shown = [_as_json(address, answer, more.get(address), groups) for address, answer in answers.items()]
        output.write_json(shown)
    else:
        _show(found, more, several=len(answers) > 1, wide=wide)
        for group in groups.values():
            show_group(group, wide=wide)
    for address, known in more.items():
        if known.closed is not None:
            tell(f"{address} {refusal(known.closed)}")
        for function in known.limits.differing:
            tell(printable(f"{address}: {function}: {UNAPPLIED.format(module=function.rpartition('.')[0])}"))
    for address, reason in silent.items():
        tell(printable(f"{address} does not answer: {reason}"))


def refusal(closed: "Closed") -> str:
    """Since when a server refuses background jobs, and why."""
    return f"refuses background jobs since {output.when(closed.since)}: {printable(closed.reason)}"


def functions_of(addresses: Sequence[str], timeout: float = TIMEOUT) -> dict[str, list[Function] | str]:
    """The functions of each server, sorted by name, or the reason why it does not answer."""
    import anyio

    return anyio.run(_ask_all, addresses, timeout)


async def _ask_all(addresses: Sequence[str], timeout: float) -> dict[str, list[Function] | str]:
    import anyio

    answers: dict[str, list[Function] | str] = dict.fromkeys(addresses, "")

    async def ask(address: str) -> None:
        answers[address] = await _ask(address, timeout)

    async with anyio.create_task_group() as tasks:
        for address in addresses:
            tasks.start_soon(ask, address)
    return answers


async def _ask(address: str, timeout: float) -> list[Function] | str:
    from gearflow.client import Admin
    from gearflow.client.names import to_text
    from gearflow.errors import GearflowError, NoServer

    try:
        rows = await Admin(address, timeout=timeout).status()
    except NoServer as error:
        return next(iter(error.reasons.values()))
    except (GearflowError, TimeoutError) as error:
        return f"{error}; is it a Gearman server?"
    functions = [
        Function(to_text(row.name), row.total, row.running, max(row.total - row.running, 0), row.workers)
        for row in rows
    ]
    return sorted(functions, key=lambda function: function.name)


def _more_of(addresses: Sequence[str]) -> dict[str, More]:
    return server_queries.each(addresses, _ask_more).given


async def _ask_more(client: "Client", address: str) -> More:
    from gearflow.client.operate import server_info, workers

    overdue: Counter[str] = Counter()
    found = await workers(client, server=address)
    for worker in found:
        overdue.update(worker.overdue)
    info = await server_info(client, server=address)
    limits = LimitView(await _limits_at(client, address), found)
    return More(info.paused, overdue, info.closed, info.group, info.address, info.servers, limits)


async def _limits_at(client: "Client", address: str) -> "LimitList":
    """The limits of a server. An older one has none."""
    from gearflow.client.operate import limits
    from gearflow.errors import GearflowError
    from gearflow.protocol.limits import LimitList

    with suppress(GearflowError):
        return await limits(client, server=address)
    return LimitList()


def _differing(found: "LimitList", workers: "Sequence[WorkerInfo]") -> list[str]:
    reported = [limits for worker in workers for limits in worker.limits.items()]
    if not reported:
        return []
    from gearflow.tasks.declared_limits import differing_functions

    return differing_functions(found, reported)


def _members(more: Mapping[str, More], asked: Collection[str]) -> list[str]:
    """The servers of groups that were not asked, neither by the address of the group nor by another one."""
    from gearflow.client.discovery import default_discover

    if not default_discover():
        return []
    known = {*asked, *(each.address for each in more.values())}
    return [
        member
        for member in dict.fromkeys(chain(*(each.members for each in more.values())))
        if member not in known
    ]


def _groups_of(more: Mapping[str, More]) -> "dict[str, GroupInfo]":
    """What the first server that answers says of each group, by its name."""
    groups: dict[str, GroupInfo] = {}
    for name in dict.fromkeys(known.group for known in more.values() if known.group):
        addresses = [address for address, known in more.items() if known.group == name]
        answers = server_queries.each(addresses, _ask_group, once=True)
        if answers.given:
            groups[name] = next(iter(answers.given.values()))
        else:
            answers.tell_errors()
    return groups


async def _ask_group(client: "Client", address: str) -> "GroupInfo":
    from gearflow.client.operate import group_info

    return await group_info(client, server=address)


def show_group(group: "GroupInfo", *, wide: bool) -> None:
    """Print the servers of a group, and the state of their database."""
    state = [f"about {group.jobs} jobs", f"{group.dead_rows} dead rows"]
    state.append(f"last vacuum {output.briefly(group.last_vacuum)}" if group.last_vacuum else "no vacuum yet")
    if group.oldest_snapshot is not None:
        state.append(f"oldest transaction {_seconds(group.oldest_snapshot)}")
    output.write(f"\ngroup {printable(group.group)}: {', '.join(state)}")
    servers: list[list[str | int]] = [
        [server.address, server.lots, server.jobs, _seconds(server.beat), server.version]
        for server in group.servers
    ]
    output.write_table(
        ["server", "lots", "jobs", "beat", "version"],
        servers,
        cut={"version": 8, "server": 15},
        optional=("version",),
        wide=wide,
        empty="no server",
    )
    if group.standbys:
        output.write("")
        output.write_table(
            ["standby", "state", "sync", "lag"],
            [[each.name, each.state, each.sync, _seconds(each.lag)] for each in group.standbys],
            cut={"standby": 10},
            optional=(),
            wide=wide,
            empty="",
        )


def _seconds(duration: float | None) -> str:
    return "-" if duration is None else f"{duration:.1f} s"


def _show(found: dict[str, list[Function]], more: Mapping[str, More], *, several: bool, wide: bool) -> None:
    header = ["function", "total", "running", "waiting", "workers"]
    rows: list[list[str | int]] = []
    limits: list[str] = []
    waits: list[str] = []
    for address, functions in found.items():
        known = more.get(address)
        for function in functions:
            row: list[str | int] = list(asdict(function).values())
            if known is not None:
                paused, overdue = known.of(function.name)
                row += ["yes" if paused else "no", overdue]
            elif more:
                row += ["-", "-"]
            rows.append([address, *row] if several else row)
            limits.append(", ".join(known.limits.limits(function.name)) if known is not None else "")
            waits.append(known.waits_for(function) if known is not None else "")
    if several:
        header.insert(0, "server")
    if more:
        header += ["paused", "overdue"]
    for title, column in (("limits", limits), ("waits for", waits)):
        if any(column):
            header.append(title)
            rows = [[*row, cell or "-"] for row, cell in zip(rows, column, strict=True)]
    output.write_table(
        header,
        rows,
        cut={"function": 20, "limits": 10, "server": 15},
        optional=("total", "overdue", "limits"),
        wide=wide,
        empty="no functions: no worker has connected, and no job was submitted",
    )


def _as_json(
    address: str, answer: list[Function] | str, more: More | None, groups: "Mapping[str, GroupInfo]"
) -> dict[str, object]:
    if isinstance(answer, str):
        return {"server": address, "error": answer, "closed": None, "group": None, "functions": []}
    functions: list[dict[str, object]] = []
    for function in answer:
        paused, overdue = (None, None) if more is None else more.of(function.name)
        limits = None if more is None else more.limits.limits(function.name)
        waits = None if more is None else more.waits_for(function) or None
        functions.append(
            {**asdict(function), "paused": paused, "overdue": overdue, "limits": limits, "waits_for": waits}
        )
    closed = more.closed.model_dump() if more is not None and more.closed is not None else None
    info = groups.get(more.group) if more is not None else None
    group = info.model_dump() if info is not None else None
    return {"server": address, "error": None, "closed": closed, "group": group, "functions": functions}
