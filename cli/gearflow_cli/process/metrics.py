"""The port of ``--metrics``: what it shows of a server, of a worker, and of a supervisor with several.

A worker process that has a supervisor has no port. It sends its counts to the supervisor, which adds them up.
"""

from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from gearflow_cli.errors import CliError, ExitCode, tell
from gearflow_cli.options import HttpAddress, cannot_listen

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from gearflow.metrics.http import MetricsPort, State
    from gearflow.metrics.worker_counts import WorkerSample
    from gearflow.server import JobServer
    from gearflow.supervisor import IpcChannel, Supervisor
    from gearflow.supervisor.ipc import Measured
    from gearflow.worker import Worker

REPORT_EVERY: Final = 2.0
"""Seconds between two reports of a worker process to its supervisor."""


def require() -> None:
    """Check that metrics can be made. Raises CliError."""
    try:
        import_module("gearflow.metrics.families")
    except ImportError as error:
        raise CliError(ExitCode.MISCONFIGURED, str(error)) from None


def open_port(
    address: HttpAddress,
    metrics: "Callable[[], Iterable[Any]]",
    healthy: "Callable[[], State]",
    ready: "Callable[[], State]",
) -> "MetricsPort":
    """Listen for Prometheus.

    Raises:
        CliError: It cannot listen.
    """
    from gearflow.metrics.http import MetricsPort

    try:
        port = MetricsPort(address.host, address.port, metrics=metrics, healthy=healthy, ready=ready)
    except OSError as error:
        raise cannot_listen(address, "--metrics", error) from None
    tell(f"metrics are at http://{port.address}/metrics")
    return port


@contextmanager
def server_port(
    address: HttpAddress | None, server: "JobServer", loop: "AbstractEventLoop"
) -> Generator[Callable[[str], None]]:
    """The port of a server that may still have to start, for the time of the block. Raises CliError.

    Yields a function that changes what the port says of the process before the server starts.
    """
    if address is None:
        yield lambda _: None
        return
    require()
    from gearflow.server.monitor import ServerMonitor

    monitor = ServerMonitor(server, loop)

    def now(activity: str) -> None:
        monitor.activity = activity

    with open_port(address, monitor.families, monitor.healthy, monitor.ready):
        yield now


@asynccontextmanager
async def worker_port(address: HttpAddress | None, worker: "Worker") -> AsyncGenerator[None]:
    """The port of a worker that has no supervisor, for the time of the block. Raises CliError."""

    def ready(sample: "WorkerSample") -> "State":
        from gearflow.metrics.http import State

        if worker.stopping or worker.left:
            return State(False, "stopping")
        if worker.is_quiet:
            return State(False, "quiet")
        state = sample.state
        text = f"{state.connected} of {state.servers} servers are connected"
        return State(state.connected > 0 and worker.ready.is_set(), text)

    async with _port(address, worker.counts, ready):
        yield


@asynccontextmanager
async def supervisor_port(address: HttpAddress | None, supervisor: "Supervisor") -> AsyncGenerator[None]:
    """The port of a supervisor, for the time of the block. Raises CliError."""

    def ready(sample: "WorkerSample") -> "State":
        from gearflow.metrics.http import State

        if supervisor.is_stopping:
            return State(False, "stopping")
        text = f"{sample.processes} of {sample.processes_wanted} processes serve"
        return State(sample.processes > 0, text)

    async with _port(address, supervisor.counts, ready):
        yield


@asynccontextmanager
async def _port(
    address: HttpAddress | None,
    counts: "Callable[[], WorkerSample]",
    ready: "Callable[[WorkerSample], State]",
) -> AsyncGenerator[None]:
    """A port that shows what ``counts`` returns on the event loop that runs here."""
    if address is None:
        yield
        return
    require()
    from asyncio import get_running_loop

    from gearflow.metrics.exporter import worker_families
    from gearflow.metrics.families import LabelCap
    from gearflow.metrics.http import ask, liveness

    loop = get_running_loop()
    cap = LabelCap()
    with open_port(
        address,
        lambda: worker_families(ask(loop, counts), cap),
        lambda: liveness(loop),
        lambda: ask(loop, lambda: ready(counts())),
    ):
        yield


class CountsReport:
    """Sends the counts of a worker to its supervisor. Owns what was sent."""

    def __init__(self, worker: "Worker", line: "IpcChannel") -> None:
        self._worker = worker
        self._line = line
        self._sent: dict[str, Measured] = {}

    async def keep(self) -> None:
        """Send what has changed from time to time, and once more when this is cancelled."""
        import anyio

        try:
            while True:
                self.send()
                await anyio.sleep(REPORT_EVERY)
        finally:
            self.send()

    def send(self) -> None:
        """Send what has changed. The next call sends what the supervisor could not take."""
        from gearflow.supervisor.ipc import Measured, Stands

        sample = self._worker.counts()
        state = sample.state
        self._line.send(Stands(state.concurrency, state.held, state.overdue, state.servers, state.connected))
        for function, runs in sample.functions.items():
            message = Measured(function, runs.running, runs.outcomes, runs.buckets, runs.seconds)
            if self._sent.get(function) != message:
                if not self._line.send(message):
                    return
                self._sent[function] = message
