"""``gearflow status``: what servers say of their functions."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from gearflow_cli import console, options, render
from gearflow_cli.exits import tell


@dataclass(frozen=True, slots=True)
class Function:
    """What a server says of one function; ``total`` counts the waiting and the running jobs."""

    name: str
    total: int
    running: int
    waiting: int
    workers: int


def status(servers: options.Servers = None, as_json: options.Json = False) -> None:
    """Show the functions of job servers, with their jobs and workers."""
    from gearflow.client import default_servers
    from gearflow.errors import NoServer

    addresses = servers or [str(address) for address in default_servers()]
    answers = functions_of(addresses)
    found = {address: answer for address, answer in answers.items() if not isinstance(answer, str)}
    silent = {address: answer for address, answer in answers.items() if isinstance(answer, str)}
    if not found:
        raise NoServer(silent)
    if as_json:
        console.write(render.as_json([_as_json(address, answer) for address, answer in answers.items()]))
    else:
        _show(found, several=len(addresses) > 1)
    for address, reason in silent.items():
        tell(f"{address} does not answer: {reason}")


def functions_of(addresses: Sequence[str]) -> dict[str, list[Function] | str]:
    """The functions of each server, sorted by name; the reason in their place if it does not answer."""
    import anyio

    return anyio.run(_ask_all, addresses)


async def _ask_all(addresses: Sequence[str]) -> dict[str, list[Function] | str]:
    import anyio

    answers: dict[str, list[Function] | str] = dict.fromkeys(addresses, "")

    async def ask(address: str) -> None:
        answers[address] = await _ask(address)

    async with anyio.create_task_group() as tasks:
        for address in addresses:
            tasks.start_soon(ask, address)
    return answers


async def _ask(address: str) -> list[Function] | str:
    from gearflow.client import Admin
    from gearflow.client.names import to_text
    from gearflow.errors import GearflowError, NoServer

    try:
        rows = await Admin(address).status()
    except NoServer as error:
        return next(iter(error.reasons.values()))
    except (GearflowError, TimeoutError) as error:
        return f"{error}; is it a Gearman server?"
    functions = [
        Function(to_text(row.name), row.total, row.running, max(row.total - row.running, 0), row.workers)
        for row in rows
    ]
    return sorted(functions, key=lambda function: function.name)


def _show(found: dict[str, list[Function]], *, several: bool) -> None:
    header = ["function", "total", "running", "waiting", "workers"]
    rows: list[list[str | int]] = [
        [function.name, function.total, function.running, function.waiting, function.workers]
        for functions in found.values()
        for function in functions
    ]
    if several:
        header.insert(0, "server")
        names = [address for address, functions in found.items() for _ in functions]
        rows = [[name, *row] for name, row in zip(names, rows, strict=True)]
    if not console.is_terminal():
        console.write(render.columns(header, rows))
    elif rows:
        console.show(render.table(header, rows))
    else:
        console.write("no functions: no worker has connected, and no job was submitted")


def _as_json(address: str, answer: list[Function] | str) -> dict[str, object]:
    if isinstance(answer, str):
        return {"server": address, "error": answer, "functions": []}
    return {"server": address, "error": None, "functions": [asdict(function) for function in answer]}
