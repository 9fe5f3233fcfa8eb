"""Load for a job server: what ``load.c`` does, and what it measures.

    python -m tests.benchmarks.load [--jobs 20000] [--rounds 3] [--gearload PATH]

The program is compiled with ``cc`` when it is first needed, and kept below ~/.cache/gearflow-benchmarks. It
plays clients and workers on one core. The benchmarks of the server use it. As a command, this module shows
whether another load generator agrees: gearload, from ``bench`` below GEARFLOW_SHARED, or from PATH.
Wall time says little on a busy machine, so the table has the CPU time of server and generator for each job.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias

from tests.benchmarks.report import machine
from tests.benchmarks.servers import Server, cache, gearflow, shared

Kind: TypeAlias = Literal["calls", "enqueue", "drain", "stream", "wake", "idle"]


@dataclass(frozen=True)
class Load:
    """Jobs for a server.

    * ``calls``: foreground jobs, each client with up to ``depth`` at a time.
    * ``enqueue``: background jobs, with no worker.
    * ``drain``: ``enqueue``, and then workers that run all of them.
    * ``stream``: background jobs, and workers at the same time.
    * ``wake``: one call after another, each when all workers sleep again.
    * ``idle``: no jobs, only workers that sleep.
    """

    kind: Kind
    jobs: int = 0
    clients: int = 1
    depth: int = 1
    workers: int = 0
    grabs: int = 1
    """GRABs that a worker has under way, and so jobs that it holds at a time."""

    payload: int = 16
    """Bytes of a workload, and of its result."""

    unique: bool = True
    """Whether each job has a unique that others may join. Without it a job has none."""

    fresh: bool = False
    """Whether the uniques are those that gearflow's client makes, which mean nothing."""

    function: str = "load"


@dataclass(frozen=True)
class Phase:
    """One step of a load. Times are seconds, memory is the server's resident bytes."""

    seconds: float
    server_cpu: float
    own_cpu: float
    memory_before: float
    memory_after: float


@dataclass(frozen=True)
class Figures:
    """What a load measured. ``latency`` has microseconds by the names of quantiles, such as ``p50``."""

    load: Load
    phases: dict[str, Phase]
    latency: dict[str, float]

    @property
    def phase(self) -> Phase:
        """The step that the load is named for."""
        return self.phases[self.load.kind]

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self.load.jobs / self.phase.seconds

    @property
    def server_cpu(self) -> float:
        """Microseconds of the server for each job."""
        return self.phase.server_cpu / max(self.load.jobs, 1) * 1e6

    @property
    def grown(self) -> float:
        """Bytes by which the server's memory grew."""
        return self.phase.memory_after - self.phase.memory_before


Output: TypeAlias = dict[str, dict[str, float]]
"""What a load generator prints, as JSON."""


class Generator(Protocol):
    """A program that makes load."""

    def command(self, server: Server, load: Load) -> list[str]: ...

    def figures(self, output: Output, load: Load) -> Figures: ...


@dataclass(frozen=True)
class Own:
    """``load.c``."""

    program: Path

    def command(self, server: Server, load: Load) -> list[str]:
        numbers = ("jobs", "clients", "depth", "workers", "grabs", "payload")
        options = [f"{name}={getattr(load, name)}" for name in numbers]
        options.append(f"unique={2 if load.fresh else int(load.unique)}")
        where = [str(server.port), str(server.pid)]
        return [str(self.program), *where, load.kind, *options, f"function={load.function}"]

    def figures(self, output: Output, load: Load) -> Figures:
        latency = output.pop("latency_us", {})
        return Figures(load, {name: Phase(**each) for name, each in output.items()}, latency)


@dataclass(frozen=True)
class Gearload:
    """gearload, a second source of the same figures."""

    program: Path

    def command(self, server: Server, load: Load) -> list[str]:
        modes = {"calls": "fg", "enqueue": "bg-enqueue", "drain": "bg-drain", "stream": "bg-stream"}
        numbers = ("jobs", "clients", "depth", "grabs", "payload")
        options = [word for name in numbers for word in (f"--{name}", str(getattr(load, name)))]
        options += ["--idle" if load.kind == "idle" else "--workers", str(load.workers)]
        options += ["--mode", modes.get(load.kind, load.kind), "--function", load.function]
        options += [] if load.unique else ["--unique", "0"]
        return [str(self.program), "--server", f"127.0.0.1:{server.port}", "--pid", str(server.pid), *options]

    def figures(self, output: Output, load: Load) -> Figures:
        phases: dict[str, Phase] = {}
        for name in output.keys() & {"run", "enqueue", "drain", "idle"}:
            each = output[name]
            seconds = each["seconds"]
            phases[load.kind if name == "run" else name] = Phase(
                seconds,
                seconds * each.get("server_cpu", 0),
                seconds * each.get("own_cpu", 0),
                each["rss_before_kb"] * 1024,
                each["rss_after_kb"] * 1024,
            )
        return Figures(load, phases, output.get("latency_us", {}))


def generator(gearload: Path | None = None) -> Generator:
    """The project's own load generator, or gearload from its source."""
    if gearload is not None:
        return Gearload(compiled(gearload))
    return Own(compiled(Path(__file__).with_suffix(".c")))


def compiled(source: Path) -> Path:
    """The program of a C source, which is compiled if that has not been done yet."""
    compiler = shutil.which("cc")
    if compiler is None:
        sys.exit(f"{source.name} needs a C compiler, and there is no cc (Debian: gcc, libc6-dev)")
    if not source.is_file():
        sys.exit(f"{source} is not there")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    program = cache() / f"{source.stem}-{digest}"
    if not program.exists():
        with tempfile.TemporaryDirectory(dir=program.parent) as folder:  # others may do the same now
            new = Path(folder, "program")
            subprocess.run([compiler, "-O2", "-o", new, source], check=True)
            new.rename(program)
    return program


class Running:
    """A load that runs. Owns its process."""

    def __init__(self, made: Generator, server: Server, load: Load) -> None:
        self._made = made
        self._load = load
        self._server = server.name
        self._process = subprocess.Popen(made.command(server, load), stdout=subprocess.PIPE, text=True)

    def is_over(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> Figures:
        """What it measured, when it has ended."""
        output, _ = self._process.communicate()
        if self._process.returncode:
            sys.exit(f"the load failed on {self._server}: {self._load}")
        return self._made.figures(json.loads(output), self._load)


def run(made: Generator, server: Server, load: Load) -> Figures:
    """Load a server."""
    return Running(made, server, load).end()


def gearload_option(parser: argparse.ArgumentParser) -> None:
    """``--gearload``: load from gearload instead of ``load.c``."""
    parser.add_argument(
        "--gearload",
        type=Path,
        nargs="?",
        const=shared() / "bench" / "gearload.c",
        metavar="PATH",
        help="load from gearload instead, compiled from this source",
    )


LOADS: Final = {
    "one call at a time": Load("calls", 1, workers=1),
    "32 clients, one call each": Load("calls", 2, clients=32, workers=8),
    "32 clients, 64 calls each": Load("calls", 2, clients=32, depth=64, workers=8),
    "the same, 32 grabs each": Load("calls", 4, clients=32, depth=64, workers=8, grabs=32),
    "enqueue": Load("enqueue", 4, clients=8, depth=256),
    "drain": Load("drain", 2, clients=8, depth=256, workers=8),
    "payloads of 64 KiB": Load("calls", 1, clients=8, depth=4, workers=8, payload=65536),
}
"""By their names, with the share of ``--jobs`` that each gets, in quarters."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    gearload_option(parser)
    options = parser.parse_args()
    sources = {
        "load.c": generator(),
        "gearload": generator(options.gearload or shared() / "bench/gearload.c"),
    }
    print(f"{'us of CPU for a job, best of rounds':38}{'server':>8}{'own':>8}{'p50, us':>12}")
    for name, shape in LOADS.items():
        load = Load(**{**shape.__dict__, "jobs": shape.jobs * options.jobs // 4})
        runs: dict[str, list[Figures]] = {source: [] for source in sources}
        for _ in range(options.rounds):
            for source, made in sources.items():
                with gearflow() as server:
                    runs[source].append(run(made, server, load))
        for source, figures in runs.items():
            own = min(each.phase.own_cpu for each in figures) / load.jobs * 1e6
            p50 = f"{min(each.latency['p50'] for each in figures):12,.0f}" if load.kind == "calls" else ""
            server_cpu = min(each.server_cpu for each in figures)
            print(f"{name:28}{source:10}{server_cpu:8.2f}{own:8.2f}{p50}")
    print(machine())


if __name__ == "__main__":
    main()
