"""Is this tree slower than the commit before it?

    python -m tests.benchmarks.check [--against COMMIT] [--rounds 4] [--fail] [ROW ...]

The commit is HEAD where files of gearflow have changed since, else HEAD~1. Its sources and those of the
working tree are copied, and run in turns: the commit, the tree, the commit again. Figures are microseconds
of CPU time, best of the rounds, so other work on the machine matters less. The noise is how far the commit is
from itself, or the best round from the next one. A figure counts as slower if it grew by more than the noise,
and by more than 3 %. ``--fail`` makes that the exit status 1.

    server     the server under load, for each job: calls, calls in batches, submissions, a drain
    calls      client, worker and server, for each call through @task
    broker     the broker without a network, for each job that is submitted, grabbed and completed
    startup    the command line's help, and the import

One row runs only if it is named, because it needs valgrind and takes a minute. One round of it is enough:

    instructions  what the server executes for each call, and for each call in batches, in thousands
"""

import argparse
import compileall
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from tests.benchmarks import calls
from tests.benchmarks.instructions import instructions
from tests.benchmarks.load import Load, generator, run
from tests.benchmarks.report import Table, busy, conditions, shown
from tests.benchmarks.servers import ROOT, gearflow
from tests.benchmarks.startup import COMMANDS

Costs: TypeAlias = dict[str, float]

SOURCES: Final = ("gearflow", "cli")
LEAST: Final = 0.03
"""A change that is smaller is none."""

LOADS: Final = {
    "server: calls": Load("calls", 8_000, 32, 1, 8),
    "server: calls in batches": Load("calls", 40_000, 32, 64, 8, grabs=32),
    "server: background submissions": Load("enqueue", 40_000, 8, 256),
    "server: a drain": Load("drain", 12_000, 8, 256, 8),
}
CALLS: Final = 6_000
JOBS: Final = 20_000  # of the broker
STARTS: Final = 3


def server_row() -> Costs:
    """The server's CPU time for each job."""
    costs: Costs = {}
    for name, load in LOADS.items():
        with gearflow() as server:
            costs[name] = run(generator(), server, load).server_cpu
    return costs


def calls_row() -> Costs:
    """The CPU time of three processes for each call."""
    measured = calls.once(CALLS, 100)
    sides = ("client", "worker", "server")
    return {
        f"{name}: {side}": each[1 + place]
        for name, each in measured.items()
        for place, side in enumerate(sides)
    }


def broker_row() -> Costs:
    """The broker's CPU time for each job, best of five."""
    from gearflow.protocol import packets as p
    from tests.broker.costs import Shell

    def once() -> float:
        shell = Shell()
        worker = shell.worker(b"work")
        began = time.thread_time()
        shell.jobs(JOBS)
        shell.send(worker, *[p.GrabJob()] * JOBS)
        shell.send(worker, *(p.WorkComplete(b"H:test:%d" % (number + 1), b"x") for number in range(JOBS)))
        return time.thread_time() - began

    return {"broker: a job": min(once() for _ in range(5)) / JOBS * 1e6}


def startup_row() -> Costs:
    """The CPU time of whole processes."""
    costs: Costs = {}
    for name, arguments in COMMANDS.items():
        if "pass" not in arguments:
            costs[name] = min(_process(arguments) for _ in range(STARTS)) * 1e6
    return costs


def _process(arguments: Sequence[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def instructions_row() -> Costs:
    """Thousands of instructions of the server for each job."""
    return {f"{name}: instructions": instructions(LOADS[name]) / 1000 for name in list(LOADS)[:2]}


ROWS: Final[dict[str, Callable[[], Costs]]] = {
    "server": server_row,
    "calls": calls_row,
    "broker": broker_row,
    "startup": startup_row,
    "instructions": instructions_row,
}
USUAL: Final = [row for row in ROWS if row != "instructions"]


@dataclass
class Tree:
    """Sources in a folder of their own, and what was measured of them."""

    folder: Path
    samples: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def measure(self, row: str) -> str:
        """Measure a row in a process that imports these sources. Returns an error, or nothing."""
        path = os.pathsep.join(map(str, (self.folder, self.folder / "cli", ROOT)))
        command = [sys.executable, "-m", "tests.benchmarks.check", "--measure", row]
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["it failed"])[-1]
        for name, figure in json.loads(done.stdout).items():
            self.samples.setdefault(name, []).append(figure)
        return ""


def of_commit(commit: str, folder: Path) -> Path:
    """The sources of a commit."""
    packed = subprocess.run(
        ["git", "archive", commit, *SOURCES], cwd=ROOT, check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def of_working_tree(folder: Path) -> Path:
    """The sources as they are here."""
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def commit_before() -> str:
    """HEAD if the sources have changed since, else the commit before it."""
    changed = subprocess.run(
        ["git", "diff", "--quiet", "HEAD", "--", *SOURCES], cwd=ROOT, check=False
    ).returncode
    return "HEAD" if changed else "HEAD~1"


def compare(before: Tree, again: Tree, now: Tree) -> tuple[Table, list[str]]:
    """The table, and the figures that became slower."""
    table = Table("Beside the commit before", ("CPU time, us", "before", "now", "change", "noise", ""))
    slower: list[str] = []
    for name, samples in now.samples.items():
        if name not in before.samples or name not in again.samples:
            continue
        one, other = min(before.samples[name]), min(again.samples[name])
        base = (one + other) / 2
        rounds = (before.samples[name], again.samples[name], samples)
        noise = max(abs(one - other), *(_to_the_next(each) for each in rounds)) / base
        change = min(samples) / base - 1
        verdict = ""
        if abs(change) > max(noise, LEAST):
            verdict = "**slower**" if change > 0 else "faster"
        if verdict == "**slower**":
            slower.append(name)
        table.add(name, shown(base), shown(min(samples)), f"{change:+.1%}", f"{noise:.1%}", verdict)
    return table, slower


def _to_the_next(samples: Sequence[float]) -> float:
    """How far the best is from the second best."""
    best, *others = sorted(samples)
    return others[0] - best if others else best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", choices=[*ROWS, []], help="server, calls, ...")
    parser.add_argument("--against", metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--fail", action="store_true", help="exit with 1 if something became slower")
    parser.add_argument("--measure", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(ROWS[options.measure]()))
        return
    commit: str = options.against or commit_before()
    with tempfile.TemporaryDirectory() as folder:
        old = of_commit(commit, Path(folder, "before"))
        before, again, now = Tree(old), Tree(old), Tree(of_working_tree(Path(folder, "now")))
        compileall.compile_dir(folder, quiet=1)
        for number in range(options.rounds):
            for row in options.rows or USUAL:
                print(f"round {number + 1} of {options.rounds}: {row}", file=sys.stderr)
                for name, tree in (("before", before), ("now", now), ("before", again)):
                    if error := tree.measure(row):
                        print(f"{row} cannot be measured, {name}: {error}", file=sys.stderr)
    table, slower = compare(before, again, now)
    print(table)
    print(f"{conditions()}\nagainst {commit}, best of {options.rounds} rounds, {busy()} at the end")
    print(f"slower: {', '.join(slower) or 'nothing'}")
    if slower and options.fail:
        sys.exit(1)


if __name__ == "__main__":
    main()
