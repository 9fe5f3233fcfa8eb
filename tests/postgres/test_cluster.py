"""What other tests rely on: clusters that can be killed, followed and promoted."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import own_postgres
from tests.postgres.cluster import GUARDED_ROLE, PASSWORD, Cluster, Database, folder

TABLE = "CREATE TABLE kept (number int);"


def insert(number: int) -> str:
    return f"INSERT INTO kept VALUES ({number})"


ALL = "SELECT number FROM kept ORDER BY number"


@pytest.fixture(scope="module")
def primary() -> Iterator[Cluster]:
    with own_postgres() as cluster:
        yield cluster


@contextmanager
def following(primary: Cluster, *, synchronous: bool = False) -> Generator[Cluster]:
    with folder(in_memory=True) as directory:
        standby = primary.standby(directory, synchronous=synchronous)
        try:
            yield standby
        finally:
            standby.stop("immediate")
            primary.set(synchronous_standby_names="", synchronous_commit="")


@pytest.mark.parametrize("end", ["kill", "immediate", "fast"])
def test_what_was_committed_is_there_after_its_end(database: Database, end: str) -> None:
    database.psql(TABLE + insert(1))
    match end:
        case "kill":
            database.cluster.kill()
        case "immediate":
            database.cluster.stop("immediate")
        case _:
            database.cluster.stop("fast")
    database.cluster.start()
    assert database.psql(ALL) == "1"


def test_a_database_is_new_and_gone_after_its_test(postgres: Cluster) -> None:
    with postgres.database() as database:
        assert database.psql("SELECT count(*) FROM pg_class WHERE relname = 'kept'") == "0"
        assert database.psql("SELECT current_user") == "gearflow"
        database.psql(TABLE)
    assert postgres.psql(f"SELECT count(*) FROM pg_database WHERE datname = '{database.name}'") == "0"


def test_a_guarded_role_needs_its_password(postgres: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="password"):
        postgres.psql("SELECT 1", role=GUARDED_ROLE)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert postgres.psql("SELECT 1", role=GUARDED_ROLE) == "1"


def test_a_standby_that_was_cut_off_lacks_what_came_later_and_can_be_promoted(primary: Cluster) -> None:
    with primary.database() as database, following(primary) as standby:
        database.psql(TABLE + insert(1))
        standby.catch_up(primary)
        standby.cut()
        database.psql(insert(2))
        standby.promote()
        standby.psql(insert(3), database.name)
        assert standby.psql(ALL, database.name) == "1\n3"


def test_a_synchronous_standby_has_all_that_was_committed(primary: Cluster) -> None:
    with primary.database() as database, following(primary, synchronous=True) as standby:
        database.psql(TABLE + insert(1))
        assert standby.psql(ALL, database.name) == "1"
        with pytest.raises(AssertionError, match="read-only"):
            standby.psql(insert(2), database.name)


def test_sessions_are_terminated_by_their_name(database: Database) -> None:
    assert database.cluster.terminate("psql", database.name) == 0
