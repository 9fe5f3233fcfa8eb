"""``gearflow status`` shows the functions of servers."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from gearflow_cli import options, output, server_queries
from gearflow_cli.errors import tell
from gearflow_cli.server_queries import TIMEOUT
from gearflow_cli.text import printable

if TYPE_CHECKING:
    from gearflow.client import Client
    from gearflow.protocol.server_calls import Closed


@dataclass(frozen=True, slots=True)
class More:
    """What only gearflow's own server knows."""

    paused: Collection[str]
    """Functions whose jobs it does not give out."""

    overdue: Mapping[str, int]
    """The number of runs that go on after the end of their job, by function."""

    closed: "Closed | None"
    """Why it refuses background jobs, if it does."""

    def of(self, function: str) -> tuple[bool, int]:
        """Whether a function is paused, and its overdue runs."""
        return function in self.paused, self.overdue.get(function, 0)


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
    thread, which cannot be stopped, and each occupies a slot of a worker. Only gearflow's servers know both.
    They also tell if they refuse background jobs because their disk failed.

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
    if as_json:
        shown = [_as_json(address, answer, more.get(address)) for address, answer in answers.items()]
        output.write_json(shown)
    else:
        _show(found, more, several=len(addresses) > 1, wide=wide)
    for address, known in more.items():
        if known.closed is not None:
            tell(f"{address} {refusal(known.closed)}")
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
    for worker in await workers(client, server=address):
        overdue.update(worker.overdue)
    info = await server_info(client, server=address)
    return More(info.paused, overdue, info.closed)


def _show(found: dict[str, list[Function]], more: Mapping[str, More], *, several: bool, wide: bool) -> None:
    header = ["function", "total", "running", "waiting", "workers"]
    rows: list[list[str | int]] = []
    for address, functions in found.items():
        for function in functions:
            row: list[str | int] = list(asdict(function).values())
            if address in more:
                paused, overdue = more[address].of(function.name)
                row += ["yes" if paused else "no", overdue]
            elif more:
                row += ["-", "-"]
            rows.append([address, *row] if several else row)
    if several:
        header.insert(0, "server")
    if more:
        header += ["paused", "overdue"]
    output.write_table(
        header,
        rows,
        cut={"function": 20, "server": 15},
        optional=("total", "overdue"),
        wide=wide,
        empty="no functions: no worker has connected, and no job was submitted",
    )


def _as_json(address: str, answer: list[Function] | str, more: More | None) -> dict[str, object]:
    if isinstance(answer, str):
        return {"server": address, "error": answer, "closed": None, "functions": []}
    functions: list[dict[str, object]] = []
    for function in answer:
        paused, overdue = (None, None) if more is None else more.of(function.name)
        functions.append({**asdict(function), "paused": paused, "overdue": overdue})
    closed = more.closed.model_dump() if more is not None and more.closed is not None else None
    return {"server": address, "error": None, "closed": closed, "functions": functions}
