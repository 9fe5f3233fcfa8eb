"""Lose a server and the database's primary under load, and count what was lost.

    python -m examples.fleet [--jobs 1500] [--programs DIR]

In a temporary folder there are a PostgreSQL primary, a standby that follows it synchronously, three job
servers that share them, and two worker processes. Clients submit background jobs all the time. After a third
of them a server is killed. The other two adopt its jobs when its lease of three seconds is over. After the
second third the primary crashes, and the standby is promoted, as an operator does it, or a tool such as
Patroni. In the end a client asks for the result of each job that was acknowledged. None may be missing.

It takes about 20 seconds, and needs PostgreSQL's server and ``pip install 'gearflow[postgres]'``.
"""

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from examples.fleet.cluster import (
    Cluster,
    ClusterError,
    PostgresMissing,
    conninfo,
    find_programs,
    temporary_folder,
)
from examples.fleet.ledger import Ledger
from examples.fleet.servers import DidNotStart, Process, address_of, start_server, start_worker
from gearflow import connect

LEASE: Final = "3s"  # short, so that you do not wait long. The default is 10 s
CLIENTS: Final = 6


def main() -> None:
    """Set everything up, run the drill, print the ledger."""
    options = _options()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # which ends all processes, too
    try:
        with ExitStack() as stack:
            programs = find_programs(options.programs)
            folder = stack.enter_context(temporary_folder())
            ledger = _run(stack, programs, folder, options.jobs)
            print(*ledger.lines(folder / "runs"), sep="\n")
    except (PostgresMissing, ClusterError, DidNotStart) as error:
        sys.exit(f"fleet: {error}")
    if ledger.lost:
        sys.exit(f"fleet: jobs were lost, please report this: {' '.join(ledger.lost[:20])}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.fleet", description="Lose servers, but no jobs."
    )
    parser.add_argument("--jobs", type=int, default=1500, metavar="N", help="default: 1500")
    parser.add_argument("--programs", type=Path, metavar="DIR", help="the folder of PostgreSQL's programs")
    options = parser.parse_args()
    if options.jobs < 3:
        parser.error("at least three jobs are needed")
    return options


def _run(stack: ExitStack, programs: Path, folder: Path, jobs: int) -> Ledger:
    """Start everything, on a stack that ends it, and run the drill."""
    primary = Cluster(folder / "primary", programs)
    standby = Cluster(folder / "standby", programs)
    stack.callback(standby.crash)
    stack.callback(primary.crash)
    primary.create()
    database = conninfo(primary, standby)
    servers: list[Process] = []
    for number in range(3):
        server = start_server(folder / f"server-{number}.log", database, LEASE)
        stack.callback(server.stop)
        servers.append(server)
    standby.follow(primary)  # while the servers start
    addresses = [address_of(server) for server in servers]
    worker = start_worker(folder / "worker.log", addresses)
    stack.callback(worker.stop)
    _say("a primary, a standby, three servers and two worker processes are there")
    return asyncio.run(_drill(jobs, addresses, servers[0].kill, lambda: _fail_over(primary, standby)))


def _fail_over(primary: Cluster, standby: Cluster) -> None:
    primary.crash()
    standby.promote()


async def _drill(
    jobs: int, addresses: list[str], kill_server: Callable[[], None], fail_over: Callable[[], None]
) -> Ledger:
    """Submit jobs while a server and the primary are lost, then fetch all results."""
    ledger = Ledger()
    async with connect(*addresses, spread=True):
        async with asyncio.TaskGroup() as clients:
            for client in range(CLIENTS):
                clients.create_task(ledger.submit(range(client, jobs, CLIENTS)))
            await ledger.reaches(jobs // 3)
            _say(f"{jobs // 3:,} jobs are acknowledged: a server is killed")
            await asyncio.to_thread(kill_server)
            await ledger.reaches(jobs * 2 // 3)
            _say(f"{jobs * 2 // 3:,} jobs are acknowledged: the primary crashes, the standby is promoted")
            await asyncio.to_thread(fail_over)
        _say(f"{jobs:,} jobs are acknowledged: their results are fetched")
        await ledger.settle()
    return ledger


def _say(what: str) -> None:
    print(f"{time.monotonic() - BEGAN:5.1f} s  {what}", flush=True)


BEGAN: Final = time.monotonic()

if __name__ == "__main__":
    main()
