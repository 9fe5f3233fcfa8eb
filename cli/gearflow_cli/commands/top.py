"""``gearflow top`` shows servers live in the terminal."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

from gearflow_cli import options, output, server_queries
from gearflow_cli.errors import CliError, ExitCode, tell
from gearflow_cli.text import printable

if TYPE_CHECKING:
    from gearflow_cli.top.columns import Seen
    from gearflow_cli.top.terminal import FullScreen

_LEAST: Final = 0.1
"""Seconds between two looks at least."""

_EVERY: Final = 2.0

_PAUSE: Final = 1.0
"""Seconds between the two looks of a table that is printed once."""


def top(
    servers: options.Servers = None,
    every: Annotated[
        float | None,
        options.out("--every", "How often to look at the servers.", "DURATION", default="2s"),
    ] = None,
) -> None:
    """Show functions, workers, jobs and servers live, and act on them.

    Keys select a list, sort and filter it, pause functions, make workers quiet, cancel jobs, and open or
    replay dead letters. ? shows all keys. C gearmand is shown with what it tells. If the output is no
    terminal, or one that cannot move its cursor, the command prints the functions once.

    Examples:
      gearflow top
      gearflow top -s one.example.com -s two.example.com --every 5s
    """
    import anyio

    from gearflow_cli.top.terminal import FullScreen, is_interactive

    every = _EVERY if every is None else every
    if every < _LEAST:
        raise CliError(ExitCode.USAGE, f"--every: {every:g} s is too short; {_LEAST:g} s is the least")
    addresses = server_queries.addresses_of(servers)
    if is_interactive():
        anyio.run(_show, addresses, FullScreen(), every)
    else:
        _print(anyio.run(_look_twice, addresses))


async def _show(addresses: Sequence[str], screen: "FullScreen", every: float) -> None:
    from gearflow.client import Client
    from gearflow_cli.top.live import TopLive

    async with Client(addresses, discover=False) as client:
        with screen:
            await TopLive(client, addresses, screen, every).run()


async def _look_twice(addresses: Sequence[str]) -> "Seen":
    """Two looks, one second apart, so that there are rates."""
    import anyio

    from gearflow.client import Client
    from gearflow.errors import NoServer
    from gearflow.observe import LOOK_TIMEOUT, FleetView, ServerWatch
    from gearflow_cli.top.columns import Seen

    watch = ServerWatch(addresses, LOOK_TIMEOUT)
    async with Client(addresses, discover=False) as client:
        before = FleetView(tuple(await watch.look(client, ("metrics", "limits"))))
        if not before.distinct:
            raise NoServer({view.address: view.error for view in before.away})
        await anyio.sleep(_PAUSE)
        fleet = FleetView(tuple(await watch.look(client, ("metrics", "limits"))))
    several = len(addresses) > 1
    return Seen(fleet, fleet.activity_since(before), time.time(), several=several)


def _print(shown: "Seen") -> None:
    """Print the functions as a table."""
    from gearflow_cli.top.columns import COLUMNS
    from gearflow_cli.top.model import Choices
    from gearflow_cli.top.rows import rows_of

    choices = Choices()
    columns = COLUMNS[choices.page]
    rows = rows_of(choices, shown).items
    header = [column.title.lower() for column in columns]
    output.write(output.columns(header, [[column.cell(row, shown) for column in columns] for row in rows]))
    for view in shown.fleet.away:
        tell(printable(f"{view.address} {view.complaint}: {view.error}"))
    for view in shown.fleet.distinct:
        for reason in view.faults.values():
            tell(printable(f"{view.address}: {reason}"))
