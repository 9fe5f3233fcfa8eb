"""PgBouncer between servers and PostgreSQL: in session mode it works, else the server says what is wrong."""

import os
import subprocess
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.shell import COMMAND, outcome
from tests.conftest import ROOT, own_postgres
from tests.ports import free_port
from tests.postgres.cluster import ROLE, Cluster, as_owner, eventually, folder, listens
from tests.shared.callers import callers
from tests.shared.group import Group

LOADED = 40


@contextmanager
def pgbouncer(program: str, cluster: Cluster, mode: str) -> Generator[int]:
    """PgBouncer before a cluster, for the time of the block: its port."""
    port = free_port()
    with folder() as directory:
        settings = directory / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={cluster.port}\n[pgbouncer]\npool_mode = {mode}\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            f"ignore_startup_parameters = extra_float_digits,options\n"
        )
        # auth_type any logs in as the user of the database's line
        settings.write_text(
            settings.read_text().replace(f"port={cluster.port}", f"port={cluster.port} user={ROLE}")
        )
        settings.chmod(0o644)
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [program, str(settings)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, **as_owner()
            )
        try:
            eventually(lambda: listens(port) or process.poll() is not None, "PgBouncer listens")
            assert process.poll() is None, (directory / "log").read_text()
            yield port
        finally:
            process.kill()
            process.wait()


def test_it_works_in_session_mode(program: Callable[[str], str], tmp_path: Path) -> None:
    path = program("pgbouncer")
    with (
        own_postgres() as cluster,
        cluster.database() as database,
        pgbouncer(path, cluster, "session") as port,
    ):
        conninfo = cluster.conninfo(database.name, port=port)
        group = Group(tmp_path, database, servers=2, workers=1, conninfo=conninfo)
        with group.running():
            with callers(group.addresses, group.runs) as ledger:
                ledger.wait_for(LOADED)
                group.kill(0)
                ledger.wait_for(LOADED)
            ledger.settle(database)


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_server_refuses_to_start_in_other_modes(program: Callable[[str], str], mode: str) -> None:
    path = program("pgbouncer")
    with own_postgres() as cluster, cluster.database() as database, pgbouncer(path, cluster, mode) as port:
        command = [*COMMAND, "server", "-p", "0", "--postgres", cluster.conninfo(database.name, port=port)]
        ended = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, timeout=60)
    code, _, said = outcome(ended)
    assert code != 0
    assert "pool_mode" in said
    assert "session" in said
