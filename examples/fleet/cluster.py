"""PostgreSQL clusters in a folder: a primary, and a standby that has each commit before it returns."""

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypedDict

PATIENCE: Final = 30.0  # seconds for a program of PostgreSQL
STANDBY: Final = "fleet_standby"  # the name under which the standby receives

_SETTINGS: Final = """
listen_addresses = ''                 # only the socket in the folder, so no port can be taken
shared_buffers = 16MB
dynamic_shared_memory_type = mmap     # all that it leaves behind is in the folder
hot_standby_feedback = on
log_min_messages = warning
"""


class PostgresMissing(Exception):
    """PostgreSQL cannot run here. The text says why, and what to do."""


def find_programs(named: Path | None = None) -> Path:
    """The folder with ``initdb``, ``postgres`` and ``pg_basebackup``: the named one, or that of the newest
    version.

    Raises:
        PostgresMissing: They are not there.
    """
    if named is not None:
        folders = [named]
    else:
        folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
        folders.sort(key=lambda folder: float(folder.parent.name), reverse=True)
        if (initdb := shutil.which("initdb")) is not None:
            folders.insert(0, Path(initdb).resolve().parent)
    for folder in folders:
        if all((folder / program).exists() for program in ("initdb", "postgres", "pg_basebackup", "psql")):
            return folder
    where = f" in {named}" if named is not None else ""
    raise PostgresMissing(
        f"PostgreSQL's server was not found{where}: install it (Debian: apt install postgresql, macOS: brew "
        "install postgresql), or give the folder of its initdb with --programs"
    )


class _Owner(TypedDict, total=False):
    """Options of a subprocess that run it as a user that PostgreSQL accepts. It does not accept root."""

    user: int
    group: int
    extra_groups: tuple[int, ...]


def _as_owner() -> _Owner:
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        raise PostgresMissing(
            "PostgreSQL refuses to run as root, and there is no user postgres: start this as another user"
        ) from None
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": ()}


@contextmanager
def temporary_folder() -> Generator[Path]:
    """A folder that PostgreSQL can write to, removed in the end."""
    owner = _as_owner()
    with TemporaryDirectory(prefix="fleet-") as name:
        if "user" in owner and "group" in owner:
            os.chown(name, owner["user"], owner["group"])
        yield Path(name)


class Cluster:
    """One PostgreSQL server. Its files, its socket and its log are in a folder, which this makes."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self._data = folder / "data"
        self._log = folder / "log"
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Make a new, empty one and start it."""
        self._run("initdb", "--pgdata", str(self._data), "--username=postgres", "--auth=trust", "--no-sync")
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(_SETTINGS)
        self.start()
        self.sql("CREATE DATABASE gearflow")

    def follow(self, primary: "Cluster") -> None:
        """Make this one a standby of another, and start it.

        From then on a commit returns when the standby has applied it. Without that, a server and the primary
        that are lost in the same moment would take the last commits with them.
        """
        source = f"host={primary.folder} user=postgres application_name={STANDBY}"
        self._run("pg_basebackup", "--pgdata", str(self._data), "--dbname", source, "--write-recovery-conf",
                  "--checkpoint=fast", "--no-sync")  # fmt: skip
        self.start()
        primary.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'")
        primary.sql("ALTER SYSTEM SET synchronous_commit = remote_apply")
        primary.sql("SELECT pg_reload_conf()")
        primary._wait_until(
            f"SELECT sync_state = 'sync' FROM pg_stat_replication WHERE application_name = '{STANDBY}'"
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [str(self._programs / "postgres"), "-D", str(self._data), "-k", str(self.folder)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **_as_owner())
        self._wait_until("SELECT true")

    def crash(self) -> None:
        """End all its processes at once. They write nothing more."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # PostgreSQL's "immediate" shutdown
            self._process.wait(PATIENCE)
            self._process = None

    def promote(self) -> None:
        """Make a standby the primary, and wait until it is."""
        self.sql("SELECT pg_promote()")
        self._wait_until("SELECT NOT pg_is_in_recovery()")

    def sql(self, statement: str) -> str:
        """The result of a statement, as ``psql`` prints it."""
        return self._run("psql", "-XAtq", "-h", str(self.folder), "-U", "postgres", "-c", statement)

    def _wait_until(self, question: str) -> None:
        """Wait until the answer to a question is yes."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if self.sql(question) == "t":
                    return
            except ClusterError:
                if self._process is None or self._process.poll() is not None:
                    raise ClusterError(f"PostgreSQL ended:\n{self._log.read_text()[-2000:]}") from None
            if time.monotonic() > deadline:
                log = self._log.read_text(errors="replace")
                raise ClusterError(f"PostgreSQL did not get ready in {PATIENCE:.0f} s:\n{log[-2000:]}")
            time.sleep(0.05)

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            cwd="/",  # the caller's folder may be closed to PostgreSQL's user
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            **_as_owner(),
        )
        if done.returncode != 0:
            raise ClusterError(f"{program} failed: {done.stderr.strip()}")
        return done.stdout.strip()


class ClusterError(Exception):
    """A program of PostgreSQL failed. The text is what it printed."""


def conninfo(*clusters: Cluster) -> str:
    """The connection string of several clusters of which one is the primary, as a server takes it."""
    return f"host={','.join(str(cluster.folder) for cluster in clusters)} dbname=gearflow user=postgres"
