"""What tests share: both event loops, real job servers, names that no other test uses.

The servers live as long as the test run and are never emptied, so every test takes fresh function names
(the fixture ``fresh``) and asserts nothing about what others may have left there.

What is not installed is skipped aloud, and is a failure where the environment variable CI is set: there
nobody would read the list of skips.
"""

import logging
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest
from hypothesis import settings

from gearflow.client import TLS
from gearflow.observe import findings
from gearflow.server import JobServer
from tests.authority import TOKEN, Authority
from tests.ports import free_port
from tests.postgres.cluster import Cluster, Database, NoPostgres, folder

# Programs under test run as a user's shell starts them. These variables would hide faults of theirs.
for _variable in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(_variable, None)

# A shell has its jobs in the background ignore Ctrl-C, and so would all programs that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no fault of the code: hypothesis must not time single examples.
settings.register_profile("gearflow", deadline=None)
settings.load_profile("gearflow")

ROOT: Final = Path(__file__).parent.parent
START_TIMEOUT: Final = 20.0  # seconds; gearmand takes some ten milliseconds


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """What ``-n auto`` means. Tests wait for other processes a third of their time."""
    processors = yield
    return processors * 3 // 2


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop that ``async def`` tests run on: each runs on both."""
    backend: str = request.param
    return backend


@pytest.fixture
def fresh() -> Callable[..., str]:
    """``fresh()`` or ``fresh("resize")``: a function name (or unique, or client id) that nobody else uses."""

    def name(word: str = "work") -> str:
        return f"{word}.{uuid.uuid4().hex[:16]}"

    return name


@pytest.fixture
def function(fresh: Callable[..., str]) -> str:
    """One function name for the tests that need only one."""
    return fresh()


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """``program("gearadmin")``: the path of an installed program; the test is skipped without it."""

    def find(name: str) -> str:
        path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        return path or missing(f"{name} is not installed")

    return find


@pytest.fixture(scope="session")
def gearmand(program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a C gearmand with its default options."""
    with run_gearmand(program("gearmand"), tmp_path_factory.mktemp("gearmand") / "log") as address:
        yield address


@pytest.fixture(scope="session")
def bundled() -> Iterator[str]:
    """The address of gearflow's own server, in a thread of this process."""
    from gearflow.server import JobServer

    with JobServer(port=0) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One that signs certificates."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def strict(authority: Authority) -> Iterator[str]:
    """The address of a server that wants TLS, a certificate and a token."""
    with JobServer(port=0, tls_cert=authority.server, tls_ca=authority.ca, token=TOKEN) as server:
        yield server.address


@pytest.fixture(scope="module")
def known(authority: Authority) -> dict[str, Any]:
    """With what it is reached."""
    return {"tls": TLS(ca=authority.ca, cert=authority.client), "token": TOKEN}


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL cluster. A test that ends it starts it again. One that changes settings has its own."""
    with own_postgres() as cluster:
        yield cluster


@pytest.fixture
def database(postgres: Cluster) -> Iterator[Database]:
    """A new, empty PostgreSQL database."""
    with postgres.database() as database:
        yield database


@pytest.fixture(params=["gearmand", "bundled"])
def any_server(request: pytest.FixtureRequest) -> str:
    """The address of each server in turn: what holds for a client or worker must hold on both."""
    address: str = request.getfixturevalue(request.param)
    return address


def missing(what: str) -> NoReturn:
    """Ends a test that cannot run here: skipped at home, failed in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and CI must not go without it")
    pytest.skip(what)


@contextmanager
def own_postgres() -> Generator[Cluster]:
    """A PostgreSQL cluster for the time of the block; the test is skipped if there are no binaries."""
    try:
        with folder(in_memory=True) as directory, Cluster(directory).running() as cluster:
            yield cluster
    except NoPostgres as reason:
        missing(str(reason))


@contextmanager
def run_gearmand(program: str, log: Path) -> Generator[str, None, None]:
    """A gearmand for the time of the block."""
    port = free_port()
    command = [program, "--port", str(port), "--listen", "127.0.0.1", "--log-file", str(log)]
    with subprocess.Popen(command) as process:
        try:
            _wait_until_it_listens(process, port, log)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()  # it has nothing to save, and is known to ignore SIGTERM after a job's timeout


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """gearmand does not say when it is ready, so this knocks until somebody opens."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"gearmand ended at once: {log.read_text() if log.exists() else 'it logged nothing'}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=START_TIMEOUT).close()
        except ConnectionRefusedError:
            time.sleep(0.01)
        else:
            return
    pytest.fail(f"gearmand did not listen on port {port} within {START_TIMEOUT:.0f} s")


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkup has no findings about the machine of the tests, which may be busy or nearly full."""
    for figure, value in {
        "SLOW": inf,
        "OFF": inf,
        "SLOW_COMMIT": inf,
        "BEHIND": inf,
        "LITTLE_ROOM": 0,
        "LITTLE_SHARE": 0,
    }.items():
        monkeypatch.setattr(findings, figure, value)


@pytest.fixture
def loggers_as_before() -> Iterator[None]:
    """The loggers are put back as they were: a command that logs changes them for good."""
    root, ours = logging.getLogger(), logging.getLogger("gearflow")
    handlers, level, our_level = list(root.handlers), root.level, ours.level
    root.handlers.clear()  # else they would be closed
    yield
    for handler in root.handlers:
        with suppress(ValueError):  # pytest has closed its stream
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)
