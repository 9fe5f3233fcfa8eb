"""PostgreSQL clusters for tests: real ones, of the newest binaries that are installed, with ``fsync`` on.

PostgreSQL refuses to run as root. Then its processes run as the user ``postgres``.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal, TypedDict

from tests.ports import free_port

TIMEOUT: Final = 20.0
"""Seconds after which what does not happen fails its test."""

BINDIR: Final = "GEARFLOW_TEST_POSTGRES"
"""The environment variable that names a folder of binaries."""

ROLE: Final = "gearflow"
"""The role that owns the databases of tests. It is not a superuser."""

GUARDED_ROLE: Final = "guarded"
"""A role that needs a password, by SCRAM."""
PASSWORD: Final = "open, please"

Mode = Literal["smart", "fast", "immediate"]
_STOPS: Final[Mapping[Mode, signal.Signals]] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

_ACCESS: Final = f"""\
local all         all                      trust
host  all         {GUARDED_ROLE}    127.0.0.1/32   scram-sha-256
host  all         all        127.0.0.1/32   trust
host  replication all        127.0.0.1/32   trust
local replication all                       trust
"""

_SETTINGS: Final = """
fsync = on
listen_addresses = '127.0.0.1'
max_connections = 100
shared_buffers = 32MB
wal_level = replica
max_wal_size = 256MB
hot_standby = on
log_min_messages = warning
log_line_prefix = '%m [%p] %a '
"""

_MEMORY: Final = Path("/dev/shm")
_ROOM: Final = 4 << 30


class NoPostgres(Exception):
    """There are no binaries, or no user to run them. The text says why."""


@cache
def find_bindir() -> Path:
    """The folder of the newest PostgreSQL's binaries."""
    named = os.environ.get(BINDIR)
    if named:
        if not (Path(named) / "initdb").exists():
            raise NoPostgres(f"{BINDIR} is {named}, where no initdb is")
        return Path(named)
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    found.sort(key=lambda path: float(path.parent.name))
    with suppress(FileNotFoundError, subprocess.CalledProcessError):
        answer = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=True)
        found.insert(0, Path(answer.stdout.strip()))
    for path in reversed(found):
        if (path / "initdb").exists():
            return path
    raise NoPostgres("PostgreSQL's server (Debian's package postgresql) is not installed")


class Owner(TypedDict, total=False):
    """Options of a subprocess that say as whom it runs."""

    user: int
    group: int
    extra_groups: tuple[int, ...]


@cache
def as_owner() -> Owner:
    """Options of a subprocess that make it run as the clusters' owner."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        raise NoPostgres("root cannot run PostgreSQL, and there is no user named postgres") from None
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": ()}


@contextmanager
def folder(*, in_memory: bool = False) -> Generator[Path]:
    """A folder that the clusters' owner can write to, with a short name: sockets are in it.

    One in memory is on a file system of memory if there is one with room. Tests end processes, and not the
    machine, so all that PostgreSQL has written is there. Its syncs then cost nothing.
    """
    path = Path(tempfile.mkdtemp(prefix="gearflow-pg-", dir=_MEMORY if in_memory and _has_room() else None))
    try:
        owner = as_owner()
        if "user" in owner and "group" in owner:
            os.chown(path, owner["user"], owner["group"])
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _has_room() -> bool:
    return _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ROOM


@dataclass(frozen=True)
class Database:
    """A database, or a schema in it, of one test."""

    cluster: Cluster
    name: str

    @property
    def conninfo(self) -> str:
        """With what a server connects to it, as its owner."""
        return self.cluster.conninfo(self.name)

    def psql(self, sql: str, *, role: str = ROLE) -> str:
        """What statements print: a line for each row, with tabs between its columns."""
        return self.cluster.psql(sql, self.name, role=role)


class Cluster:
    """A cluster in a folder. ``start`` it, and ``stop`` it in the end."""

    def __init__(self, directory: Path, bindir: Path | None = None) -> None:
        self.bindir = bindir or find_bindir()
        self.directory = directory
        self.data = directory / "data"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    # ------------------------------------------------------------------------------------ its life

    def create(self) -> None:
        """Make its files, roles and access rules."""
        self._run("initdb", "--pgdata", self.data, "--username=postgres", "--auth=trust",
                  "--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions")  # fmt: skip
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(_SETTINGS)
        (self.data / "pg_hba.conf").write_text(_ACCESS)
        self.start()
        self.psql(
            f"CREATE ROLE {ROLE} LOGIN; CREATE ROLE {GUARDED_ROLE} LOGIN PASSWORD '{PASSWORD}';"
            f"GRANT {ROLE} TO {GUARDED_ROLE};"
        )

    def start(self, **settings: str) -> None:
        """Start it, and wait until it takes connections.

        Its port stays the same from its first start on. ``settings`` hold until it is stopped.
        """
        assert self._process is None, "it runs already"
        for _ in range(10):
            self.port = self.port or free_port()
            if self._begin(settings):
                return
            self.port = 0  # somebody was faster
        raise AssertionError(f"it did not start: {self.log[-3000:]}")

    def _begin(self, settings: Mapping[str, str]) -> bool:
        command = [str(self.bindir / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        command += ["-k", str(self.directory)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **as_owner()
            )
        self._process = process
        deadline = time.monotonic() + TIMEOUT
        while not self._is_ready():
            if process.poll() is not None:
                self._process = None
                if "Address already in use" in self.log[-3000:]:
                    return False
                raise AssertionError(f"it ended at once: {self.log[-3000:]}")
            assert time.monotonic() < deadline, f"it is not ready: {self.log[-3000:]}"
            time.sleep(0.005)
        return True

    def _is_ready(self) -> bool:
        """What ``pg_ctl`` looks at."""
        assert self._process is not None
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready"

    @property
    def runs(self) -> bool:
        """Whether it was started and not stopped."""
        return self._process is not None

    def stop(self, mode: Mode = "fast") -> None:
        """Stop it as ``pg_ctl stop -m`` does. ``immediate`` is a crash: it has to recover at its start."""
        if self._process is not None:
            self._process.send_signal(_STOPS[mode])
            self._process.wait(TIMEOUT)
            self._process = None

    def kill(self) -> None:
        """SIGKILL to all its processes, and wait until they are gone."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)  # so that it starts no more
        children = self.processes()
        self._process.kill()
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(TIMEOUT)
        self._process = None
        eventually(lambda: not any(map(_is_alive, children)), "its processes are gone")

    def restart(self, mode: Mode = "fast") -> None:
        """Stop it and start it again."""
        self.stop(mode)
        self.start()

    @contextmanager
    def running(self) -> Generator[Cluster]:
        """Made and started, for the time of the block."""
        self.create()
        try:
            yield self
        finally:
            self.stop("immediate")

    def processes(self) -> list[int]:
        """The pids of its processes but the first."""
        assert self._process is not None
        pid = self._process.pid
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    @property
    def log(self) -> str:
        """All that it has said."""
        return (self.directory / "log").read_text(errors="replace")

    # ------------------------------------------------------------------------------------ its contents

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def conninfo(self, database: str = "postgres", *, role: str = ROLE, port: int | None = None) -> str:
        """With what libpq connects to it, by TCP."""
        return f"host=127.0.0.1 port={port or self.port} dbname={database} user={role}"

    def psql(self, sql: str, database: str = "postgres", *, role: str = "postgres") -> str:
        """What statements print: a line for each row, with tabs between its columns."""
        command = [str(self.bindir / "psql"), "-XAtq", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-f", "-"]
        command += ["-d", self.conninfo(database, role=role)]
        done = subprocess.run(command, input=sql, capture_output=True, text=True, timeout=3 * TIMEOUT)
        assert done.returncode == 0, f"{sql}: {done.stderr}"
        return done.stdout.rstrip("\n")

    def set(self, **settings: str) -> None:
        """Change settings for good, those that a reload can change. An empty text resets one."""
        for name, value in settings.items():
            change = f"SET {name} = '{value}'" if value else f"RESET {name}"
            self.psql(f"ALTER SYSTEM {change}")
        self.psql("SELECT pg_reload_conf()")

    @contextmanager
    def database(self) -> Generator[Database]:
        """A new, empty database for the time of the block, owned by ``ROLE``."""
        database = self.new_database()
        try:
            yield database
        finally:
            if self.runs:
                self.psql(f"DROP DATABASE IF EXISTS {database.name} WITH (FORCE)")

    def new_database(self) -> Database:
        """The same, until the cluster is gone."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.psql(f"CREATE DATABASE {name} OWNER {ROLE}")
        return Database(self, name)

    def terminate(self, application: str = "gearflow %", database: str = "%") -> int:
        """``pg_terminate_backend`` for all sessions with such a name. The number of them."""
        return int(
            self.psql(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                f" WHERE application_name LIKE '{application}' AND datname LIKE '{database}'"
            )
        )

    # ------------------------------------------------------------------------------------ replication

    def standby(self, directory: Path, *, synchronous: bool = False) -> Cluster:
        """A hot standby of this one, in another folder, started. The caller stops it.

        A synchronous one has applied a commit before the commit returns.
        """
        other = Cluster(directory, self.bindir)
        slot = f"s{uuid.uuid4().hex[:8]}"
        self._run("pg_basebackup", "--pgdata", other.data, "--dbname", self._upstream(slot), "--no-sync",
                  "--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf",
                  "--create-slot", "--slot", slot)  # fmt: skip
        other.start(hot_standby_feedback="on", wal_receiver_status_interval="1s")
        other.follow(self, slot)
        if synchronous:
            self.set(synchronous_standby_names=slot, synchronous_commit="remote_apply")
        other._slot = slot
        return other

    _slot = ""

    def _upstream(self, slot: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres application_name={slot}"

    def follow(self, primary: Cluster, slot: str | None = None) -> None:
        """Let a standby receive from a primary, and wait until it does."""
        slot = slot or self._slot
        self.set(primary_conninfo=primary._upstream(slot))
        streams = f"SELECT count(*) FROM pg_stat_replication WHERE application_name = '{slot}'"
        eventually(lambda: primary.psql(streams) == "1", "the standby receives")

    def cut(self) -> None:
        """Let a standby receive nothing more, and wait until it does not."""
        self.set(primary_conninfo=" ")
        eventually(
            lambda: self.psql("SELECT count(*) FROM pg_stat_wal_receiver") == "0", "the standby is cut off"
        )

    def promote(self) -> None:
        """Make a standby a primary, and wait until it is."""
        assert self.psql("SELECT pg_promote()") == "t", self.log[-3000:]

    def catch_up(self, primary: Cluster) -> None:
        """Wait until a standby has applied all that is in its primary now."""
        position = primary.psql("SELECT pg_current_wal_lsn()")
        eventually(
            lambda: self.psql(f"SELECT pg_last_wal_replay_lsn() >= '{position}'") == "t",
            "the standby has caught up",
        )

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [str(self.bindir / program), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self.directory, capture_output=True, text=True, timeout=3 * TIMEOUT, **as_owner()
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"


def eventually(is_so: Callable[[], bool], what: str, patience: float = TIMEOUT) -> None:
    """Wait until something is so; fail with what it was to be if it is not in time."""
    deadline = time.monotonic() + patience
    while not is_so():
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what}"
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Whether somebody listens there, on this host."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
