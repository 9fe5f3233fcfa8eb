"""The memory of an idle worker, part by part.

    python -m tests.benchmarks.memory [--runs 3]

Each row is a process that has imported its part and all parts above it. The table has what that adds to the
resident memory, and to the part of it that is the process's own. The last part is a worker after a task.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

import anyio

import gearflow
from tests.benchmarks import calls, servers, tasks
from tests.benchmarks.report import Table, conditions

PARTS: Final = {
    "the interpreter": "",
    "asyncio, which brings `ssl` and OpenSSL": "import asyncio",
    "uvloop": "import uvloop",
    "anyio": "import anyio, anyio.from_thread, anyio._backends._asyncio",
    "pydantic, with its core, its models and its search for plugins": (
        "import pydantic\nclass Model(pydantic.BaseModel):\n    number: int = 0\nModel()"
    ),
    "typer, with a command line read": (
        "import typer\napp = typer.Typer()\n@app.command()\ndef run(n: int = 0): ...\n"
        "app([], standalone_mode=False)"
    ),
}

_WAIT: Final = "\nprint('ready', flush=True)\nimport sys\nsys.stdin.read()"


def memory(pid: int) -> tuple[float, float]:
    """MiB of a process: resident, and its own."""
    figures: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        figures[name] = int(rest.split()[0])
    own = figures["Private_Clean"] + figures["Private_Dirty"]
    return figures["Rss"] / 1024, own / 1024


def of_imports(program: str) -> tuple[float, float]:
    """The memory of an interpreter that has run this."""
    command = [sys.executable, "-c", program + _WAIT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        measured = memory(process.pid)
        process.communicate(b"")
    return measured


def of_worker() -> tuple[float, float]:
    """The memory of a worker that has run a task."""

    async def measure(address: str, pid: int) -> tuple[float, float]:
        async with gearflow.connect(address):
            await tasks.echo.acall(b"")
        return memory(pid)

    with servers.gearflow() as server, calls.worker(address := f"127.0.0.1:{server.port}", 10) as pid:
        return anyio.run(measure, address, pid)


def table(runs: int) -> Table:
    made = Table(
        "The memory of a worker", ("part", "resident, MiB", "of it in the process's own memory, MiB")
    )
    program = ""
    before = (0.0, 0.0)
    for part, imported in PARTS.items():
        program += f"\n{imported}"
        total = _medians([of_imports(program) for _ in range(runs)])
        made.add(part, *_added(total, before))
        before = total
    total = _medians([of_worker() for _ in range(runs)])
    made.add(
        "gearflow, with its modules, the options of `gearflow worker` and the connections",
        *_added(total, before),
    )
    made.add("in all", *(f"{each:.1f}" for each in total))
    return made


def _medians(samples: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return median(resident for resident, _ in samples), median(own for _, own in samples)


def _added(total: tuple[float, float], before: tuple[float, float]) -> list[str]:
    return [f"{one - other:.1f}" for one, other in zip(total, before, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(table(options.runs))
    print(f"{conditions()}\n{options.runs} runs")


if __name__ == "__main__":
    main()
