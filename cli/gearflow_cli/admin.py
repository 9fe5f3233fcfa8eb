"""``gearflow status``: what servers say of their functions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

from gearflow_cli import asking, console, options, render
from gearflow_cli.asking import PATIENCE
from gearflow_cli.exits import tell

Overdue: TypeAlias = Mapping[str, Mapping[str, int]]
"""By server and function: runs that go on although their job has ended. Only gearflow's servers are in it."""


@dataclass(frozen=True, slots=True)
class Function:
    """What a server says of one function; ``total`` counts the waiting and the running jobs."""

    name: str
    total: int
    running: int
    waiting: int
    workers: int


def status(servers: options.Servers = None, as_json: options.Json = False) -> None:
    """Show the functions of job servers, with their jobs and workers.

    OVERDUE are runs that overran their timeout in a thread, which cannot be stopped: each keeps a slot of a
    worker until it ends. Gearflow's own servers know of them.
    """
    from gearflow.client import default_servers
    from gearflow.errors import NoServer

    addresses = servers or [str(address) for address in default_servers()]
    answers = functions_of(addresses)
    found = {address: answer for address, answer in answers.items() if not isinstance(answer, str)}
    silent = {address: answer for address, answer in answers.items() if isinstance(answer, str)}
    if not found:
        raise NoServer(silent)
    overdue = _overdue_of(list(found))
    if as_json:
        shown = [_as_json(address, answer, overdue.get(address)) for address, answer in answers.items()]
        console.write(render.as_json(shown))
    else:
        _show(found, overdue, several=len(addresses) > 1)
    for address, reason in silent.items():
        tell(f"{address} does not answer: {reason}")


def functions_of(addresses: Sequence[str], timeout: float = PATIENCE) -> dict[str, list[Function] | str]:
    """The functions of each server, sorted by name; the reason in their place if it does not answer."""
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


def _overdue_of(addresses: Sequence[str]) -> Overdue:
    from gearflow.client.operate import workers

    answers = asking.each(addresses, lambda client, address: workers(client, server=address))
    return {
        address: sum((Counter(worker.overdue) for worker in known), Counter[str]())
        for address, known in answers.given.items()
    }


def _show(found: dict[str, list[Function]], overdue: Overdue, *, several: bool) -> None:
    header = ["function", "total", "running", "waiting", "workers"]
    rows: list[list[str | int]] = []
    for address, functions in found.items():
        for function in functions:
            row: list[str | int] = list(asdict(function).values())
            if overdue:
                row.append(overdue[address].get(function.name, 0) if address in overdue else "-")
            rows.append([address, *row] if several else row)
    if several:
        header.insert(0, "server")
    if overdue:
        header.append("overdue")
    if not console.is_terminal():
        console.write(render.columns(header, rows))
    elif rows:
        console.show(render.table(header, rows))
    else:
        console.write("no functions: no worker has connected, and no job was submitted")


def _as_json(
    address: str, answer: list[Function] | str, overdue: Mapping[str, int] | None
) -> dict[str, object]:
    if isinstance(answer, str):
        return {"server": address, "error": answer, "functions": []}
    functions = [
        {**asdict(function), "overdue": None if overdue is None else overdue.get(function.name, 0)}
        for function in answer
    ]
    return {"server": address, "error": None, "functions": functions}
