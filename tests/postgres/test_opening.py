"""What a server finds when it starts: no tables, those of another version, no rights, or no database."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gearflow.errors import StoreError
from gearflow.stores.postgres import connection
from gearflow.stores.postgres.migration import prepare
from gearflow.stores.postgres.schema import STEPS, Step, quoted
from gearflow.stores.postgres.session import DatabaseSession
from gearflow.stores.postgres.store import PostgresStore
from gearflow.stores.shared import Away
from tests.authority import Authority
from tests.conftest import ROOT, own_postgres
from tests.postgres.adapter import SyncStore, settings_for
from tests.postgres.cluster import GUARDED_ROLE, PASSWORD, Database
from tests.stores.values import a_job


@pytest.fixture
def name(schema: str) -> str:
    """The schema, as an identifier."""
    return quoted(schema)


@pytest.fixture
def newcomer(one_database: Database) -> Iterator[str]:
    """A role without any right."""
    one_database.cluster.psql("DROP ROLE IF EXISTS newcomer; CREATE ROLE newcomer LOGIN")
    yield "newcomer"
    one_database.cluster.psql("DROP OWNED BY newcomer", one_database.name)
    one_database.cluster.psql("DROP ROLE newcomer")


@contextmanager
def opened(database: Database, **fields: Any) -> Generator[SyncStore]:
    store = SyncStore(database, **fields)
    try:
        store.open()
        yield store
    finally:
        store.close()


def refusal(database: Database, **fields: Any) -> StoreError:
    """Why a store cannot be opened."""
    store = SyncStore(database, **fields)
    try:
        with pytest.raises(StoreError) as caught:
            store.open()
        return caught.value
    finally:
        store.close()


def test_all_servers_have_the_same_name(one: SyncStore, other: SyncStore) -> None:
    assert one.contents.name == other.contents.name
    assert len(one.contents.name) == 8
    assert int(one.contents.name, 16) >= 0
    assert one.store.server != other.store.server
    assert set(one.lots).isdisjoint(other.lots)


def test_servers_that_start_at_once_make_the_tables_once(one_database: Database, schema: str) -> None:
    async def start() -> list[bytes]:
        stores = [PostgresStore(settings_for(one_database, schema=schema)) for _ in range(4)]
        try:
            return [contents.name for contents in await asyncio.gather(*(store.open() for store in stores))]
        finally:
            for store in stores:
                await store.close()

    assert len(set(asyncio.run(start()))) == 1


def test_a_wrong_password_is_final(one_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = one_database.cluster
    conninfo = cluster.conninfo(one_database.name, role=GUARDED_ROLE)
    for given in ("", f" password='{PASSWORD}!'"):
        error = refusal(one_database, conninfo=conninfo + given)
        assert not isinstance(error, Away)
        assert "check --postgres, the password" in str(error)
        assert PASSWORD not in str(error)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with opened(one_database, conninfo=conninfo, schema="of the guarded") as store:
        assert store.lots


def test_a_database_that_is_not_there_is_final(one_database: Database) -> None:
    error = refusal(one_database, conninfo=one_database.cluster.conninfo("nowhere"))
    assert not isinstance(error, Away)
    assert '"nowhere" does not exist' in str(error)


@pytest.mark.parametrize("conninfo", ["host='", "nonsense", "colour=blue"])
def test_a_connection_string_that_cannot_be_read_is_named(one_database: Database, conninfo: str) -> None:
    error = refusal(one_database, conninfo=conninfo)
    assert not isinstance(error, Away)
    assert "--postgres is not a connection string" in str(error)


def test_hosts_that_cannot_be_reached_are_named_and_may_come(one_database: Database) -> None:
    error = refusal(one_database, conninfo="host=127.0.0.1,no-such-host.invalid port=1,2 dbname=x")
    assert isinstance(error, Away)
    assert not error.sent
    assert "127.0.0.1" in str(error)
    assert "no-such-host.invalid" in str(error)


def test_the_next_host_is_tried(one_database: Database, schema: str) -> None:
    conninfo = one_database.conninfo.replace(
        "host=127.0.0.1", "host=no-such-host.invalid,127.0.0.1,localhost"
    )
    conninfo = conninfo.replace("port=", "port=1,2,")
    with opened(one_database, conninfo=conninfo, schema=schema) as store:
        assert store.lots


def test_tls_is_spoken_with_a_server_whose_certificate_is_right(authority: Authority) -> None:
    with own_postgres() as cluster, cluster.database() as database:
        cert, key = authority.parts("127.0.0.1")
        for path, name in ((cert, "server.crt"), (key, "server.key")):
            target = cluster.data / name
            target.write_bytes(path.read_bytes())
            target.chmod(0o600)
            owner = cluster.data.stat()
            os.chown(target, owner.st_uid, owner.st_gid)
        cluster.stop()
        cluster.start(ssl="on")
        conninfo = f"{database.conninfo} sslmode=verify-full sslrootcert="
        with opened(database, conninfo=f"{conninfo}{authority.ca}") as store:
            body = bytes(range(256)) * 20_000
            assert store.commit(a_job(store.number(1), body)) == [None]
            assert store.job(store.number(1)) == a_job(store.number(1), body)
            assert store.psql("SELECT count(*) FROM pg_stat_ssl WHERE ssl AND pid <> pg_backend_pid()") != "0"
        error = refusal(database, conninfo=f"{conninfo}{authority.server}")
        assert not isinstance(error, Away)
        assert "certificate verify failed" in str(error)


@pytest.mark.parametrize("named", ["in the environment", "in the connection string"])
def test_a_service_is_found_in_its_file(
    one_database: Database, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    lines = one_database.conninfo.replace("host=127.0.0.1", "host=localhost").split()
    file = tmp_path / "services"
    file.write_text(
        "\n".join(["# a comment", "[other]", "host=other", "", "[mine]", *lines, "[third]", "port=1"])
    )
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    conninfo = "service=mine"
    if named == "in the environment":
        monkeypatch.setenv("PGSERVICE", "mine")
        conninfo = ""
    with opened(one_database, conninfo=conninfo, schema=schema) as store:
        assert store.lots
    error = refusal(one_database, conninfo="service=nowhere", schema=schema)
    assert "nowhere" in str(error)


def test_a_version_of_postgresql_that_is_too_old_is_named(
    one_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "OLDEST", 99)
    assert "needs PostgreSQL 99 or later" in str(refusal(one_database))


def test_missing_rights_are_named_with_the_statements_that_give_them(
    one_database: Database, schema: str, newcomer: str
) -> None:
    conninfo = one_database.cluster.conninfo(one_database.name, role=newcomer)
    error = refusal(one_database, conninfo=conninfo, schema=schema)
    assert f"GRANT CREATE ON DATABASE {one_database.name} TO newcomer;" in str(error)
    with opened(one_database, schema=schema):
        error = refusal(one_database, conninfo=conninfo, schema=schema)
        grants = [
            line for line in str(error).splitlines() if line.startswith("GRANT") and "CREATE" not in line
        ]
        assert len(grants) == 4
        one_database.psql("\n".join(grants))
        with opened(one_database, conninfo=conninfo, schema=schema) as store:
            assert store.lots
        one_database.psql(f"REVOKE DELETE ON {quoted(schema)}.jobs FROM newcomer")
        error = refusal(one_database, conninfo=conninfo, schema=schema)
        assert "these tables" in str(error)
        assert "jobs" in str(error)


def test_psycopg_is_imported_when_it_is_needed_and_named_if_it_is_missing() -> None:
    program = """
import asyncio, sys
from gearflow.stores.postgres.settings import PostgresSettings
from gearflow.stores.postgres.store import PostgresStore
assert "psycopg" not in sys.modules
sys.modules["psycopg"] = None
try:
    asyncio.run(PostgresStore(PostgresSettings("", "", "")).open())
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    assert done.stdout.startswith("StoreError")
    assert "pip install 'gearflow[postgres]'" in done.stdout


# --------------------------------------------------------------------------------------------- versions


class Steps:
    """Migrates with other steps."""

    def __init__(self, database: Database, schema: str) -> None:
        self._settings = settings_for(database, schema=schema)

    def __call__(self, *steps: Step) -> None:
        asyncio.run(self._migrate(steps))

    async def _migrate(self, steps: tuple[Step, ...]) -> None:
        session = DatabaseSession(self._settings, "test")
        try:
            await prepare(session, self._settings.schema, steps)
        finally:
            session.close()


@pytest.fixture
def migrate(one_database: Database, schema: str) -> Steps:
    return Steps(one_database, schema)


ADDS = Step(1, "ALTER TABLE {s}.meta ADD COLUMN added int DEFAULT 7;")
REPLACES = Step(len(STEPS) + 1, "ALTER TABLE {s}.meta DROP COLUMN changed;")


def version(database: Database, name: str) -> str:
    return database.psql(f"SELECT version, oldest FROM {name}.meta")


def test_a_later_version_adds_while_older_servers_go_on(
    one: SyncStore, one_database: Database, name: str, migrate: Steps, schema: str
) -> None:
    assert version(one_database, name) == f"{len(STEPS)}\t1"
    migrate(*STEPS, ADDS)
    assert version(one_database, name) == f"{len(STEPS) + 1}\t1"
    assert one.psql("SELECT added FROM {s}.meta") == "7"
    with opened(one_database, schema=schema) as store:
        assert store.contents.name == one.contents.name


def test_a_step_that_older_servers_do_not_survive_waits_for_their_end(
    one: SyncStore, one_database: Database, name: str, migrate: Steps, schema: str
) -> None:
    with pytest.raises(StoreError, match=r"localhost:4730 \(gearflow 1.0\).*stop these first"):
        migrate(*STEPS, REPLACES)
    assert version(one_database, name) == f"{len(STEPS)}\t1"
    one.psql("UPDATE {s}.servers SET seen = seen - interval '1 hour'")
    migrate(*STEPS, REPLACES)
    assert version(one_database, name) == f"{len(STEPS) + 1}\t{len(STEPS) + 1}"
    error = refusal(one_database, schema=schema)
    assert "install the later gearflow" in str(error)


def test_a_step_that_fails_leaves_nothing(
    one: SyncStore, one_database: Database, name: str, migrate: Steps
) -> None:
    with pytest.raises(StoreError):
        migrate(*STEPS, ADDS, Step(1, "ALTER TABLE {s}.meta ADD COLUMN added int;"))
    assert version(one_database, name) == f"{len(STEPS)}\t1"
    migrate(*STEPS, ADDS)
    assert version(one_database, name) == f"{len(STEPS) + 1}\t1"
