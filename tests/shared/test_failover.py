"""A primary and its standby: the primary is lost, the standby is promoted, and the servers go on there."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import own_postgres
from tests.postgres.cluster import ROLE, Cluster, Database, eventually, folder
from tests.shared.callers import Habits, callers
from tests.shared.group import Group

LOADED = 40


@contextmanager
def pair(directory: Path, *, synchronous: bool) -> Generator[tuple[Group, Cluster, Database]]:
    """Two servers that know both, the standby, and the database there."""
    with own_postgres() as primary, folder(in_memory=True) as other:
        database = primary.new_database()
        standby = primary.standby(other, synchronous=synchronous)
        try:
            ports = f"{primary.port},{standby.port}"
            conninfo = f"host=127.0.0.1,127.0.0.1 port={ports} dbname={database.name} user={ROLE}"
            group = Group(directory, database, servers=2, workers=1, conninfo=conninfo)
            with group.running():
                yield group, standby, Database(standby, database.name)
        finally:
            standby.stop("immediate")


def test_nothing_is_lost_when_a_synchronous_standby_is_promoted(tmp_path: Path) -> None:
    with pair(tmp_path, synchronous=True) as (group, standby, after):
        with callers(group.addresses, group.runs) as ledger:
            ledger.wait_for(LOADED)
            group.database.cluster.kill()
            standby.promote()
            ledger.wait_for(LOADED)
        ledger.settle(after)


def test_what_an_asynchronous_standby_lacked_is_written_again_after_its_promotion(tmp_path: Path) -> None:
    with pair(tmp_path, synchronous=False) as (group, standby, after):
        with callers(group.addresses, group.runs, Habits(delays=(0, 0, 3))) as ledger:
            ledger.wait_for(LOADED)
            standby.cut()
            ledger.wait_for(LOADED)
            group.database.cluster.kill()
            standby.promote()
            ledger.wait_for(LOADED)
        ledger.settle(after)


def test_a_server_that_has_just_started_keeps_its_jobs_when_the_standby_lacked_its_lots(
    tmp_path: Path,
) -> None:
    with pair(tmp_path, synchronous=False) as (group, standby, after):
        standby.catch_up(group.database.cluster)
        standby.cut()
        for number in range(2):
            group.stop(number)
            group.start(number)
        with callers(group.addresses, group.runs) as ledger:
            ledger.wait_for(LOADED)
            group.database.cluster.kill()
            standby.promote()
            ledger.wait_for(LOADED)
        ledger.settle(after)


def test_nobody_writes_to_the_old_primary_that_comes_back_read_only(tmp_path: Path) -> None:
    with pair(tmp_path, synchronous=True) as (group, standby, after):
        old = group.database.cluster
        with callers(group.addresses, group.runs) as ledger:
            ledger.wait_for(LOADED)
            old.kill()
            standby.promote()
            ledger.wait_for(LOADED)
            old.start(default_transaction_read_only="on")
            assert standby.terminate(database=after.name)
            ledger.wait_for(LOADED)
        ledger.settle(after)


def test_the_log_names_a_standby_for_which_all_commits_wait(tmp_path: Path) -> None:
    with pair(tmp_path, synchronous=True) as (group, standby, _):
        with callers(group.addresses, group.runs) as ledger:
            ledger.wait_for(LOADED)
            standby.stop("immediate")
            eventually(
                lambda: any("SyncRep" in server.log for server in group.servers), "a log names SyncRep"
            )
            standby.start()
            ledger.wait_for(LOADED)
        ledger.settle(group.database)
