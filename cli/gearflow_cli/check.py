"""``gearflow worker --check``: whether the servers are there that a worker is to work for."""

from collections.abc import Sequence

import typer

from gearflow_cli import console
from gearflow_cli.exits import ExitCode


def check(addresses: Sequence[str], timeout: float) -> None:
    """Print a line for each server.

    Raises:
        Exit: None has answered.
    """
    import anyio

    answers = anyio.run(_ask_all, addresses, timeout)
    for address in addresses:
        console.write(f"{address}  {answers[address] or 'answers'}")
    if all(answers.values()):
        raise typer.Exit(ExitCode.NO_SERVER)


async def _ask_all(addresses: Sequence[str], timeout: float) -> dict[str, str]:
    """What is wrong with each server; nothing if it answers."""
    import anyio

    answers = dict.fromkeys(addresses, "")

    async def ask(address: str) -> None:
        answers[address] = await _ask(address, timeout)

    async with anyio.create_task_group() as tasks:
        for address in addresses:
            tasks.start_soon(ask, address)
    return answers


async def _ask(address: str, timeout: float) -> str:
    import anyio

    from gearflow.client import Client
    from gearflow.errors import GearflowError, NoServer

    try:
        with anyio.fail_after(timeout):
            async with Client([address], connect_timeout=timeout) as client:
                await client.echo(b"gearflow")
    except NoServer as error:
        return next(iter(error.reasons.values()))
    except TimeoutError:
        return f"no answer within {timeout:g} s"
    except GearflowError as error:
        return str(error)
    return ""
