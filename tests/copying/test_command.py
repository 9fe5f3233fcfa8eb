"""``gearflow server copy`` in real processes, and the servers that go on with what it has copied."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gearflow.broker.storage import JobRecord
from gearflow.stores import SqliteStore
from gearflow.stores.sqlite.moved import mark_of
from tests.cli.shell import Running, Shell, outcome
from tests.copying.contents import Everything, groups
from tests.copying.test_copying import expected, in_postgres
from tests.postgres.adapter import SyncStore
from tests.postgres.cluster import Database, eventually
from tests.stores.values import tamper

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a stopped server, with entries of all kinds that do not expire soon."""
    path = tmp_path / "gearflow.db"
    with closing(SqliteStore(path)) as store:
        store.load()
        for group in groups():
            store.write(
                [
                    change._replace(expires=9e9) if isinstance(change, JobRecord) else change
                    for change in group
                ]
            )
    return path


@contextmanager
def serving(shell: Shell, *arguments: str) -> Generator[tuple[str, Running]]:
    """A server, and its address."""
    with shell.start("server", "-p", "0", *arguments) as server:
        yield server.until("listens on").partition("listens on ")[2].split(";")[0].strip(), server


def ask(shell: Shell, address: str, *arguments: str) -> str:
    """What a command prints."""
    code, stdout, stderr = outcome(shell.run(*arguments, "-s", address))
    assert code == 0, stderr
    return stdout


def test_servers_know_old_handles_after_a_copy_and_after_the_way_back(
    shell: Shell, path: Path, database: Database, tmp_path: Path
) -> None:
    _, name = expected(path)
    old = f"H:old-{name.decode()}"
    code, stdout, stderr = outcome(
        shell.run("server", "copy", "--from", str(path), "--to", database.conninfo)
    )
    assert code == 0, stderr
    assert stdout.startswith("copied ")
    assert "2 dead letters" not in stdout
    assert "3 dead letters" in stdout
    code, _, stderr = outcome(shell.run("server", "-p", "0", "--data", str(path.parent)))
    assert code == 78
    assert f"remove {mark_of(path).name}" in stderr
    with serving(shell, "--postgres", database.conninfo, "--lease", "2s") as (address, server):
        ask_all(shell, address, old)
        back = tmp_path / "back.db"
        code, _, stderr = outcome(shell.run("server", "copy", "--from", database.conninfo, "--to", str(back)))
        assert code == 78
        assert f"servers use the schema gearflow: {address}; stop them first" in stderr
        replayed = ask(shell, address, "dead", "replay", f"{old}:12")
        assert "1" in replayed
        server.signal(signal.SIGTERM)
        server.process.wait(20)
    code, stdout, stderr = outcome(
        shell.run("server", "copy", "--from", database.conninfo, "--to", str(back))
    )
    assert code == 0, stderr
    assert "2 dead letters" in stdout
    code, _, stderr = outcome(shell.run("server", "-p", "0", "--postgres", database.conninfo))
    assert code == 78
    assert "UPDATE" in stderr
    (tmp_path / "data").mkdir()
    back.rename(tmp_path / "data" / "gearflow.db")
    with serving(shell, "--data", str(tmp_path / "data")) as (address, _):
        ask_all(shell, address, old)


def ask_all(shell: Shell, address: str, old: str) -> None:
    """Entries of all kinds are found by their old handles."""
    eventually(lambda: "waiting" in ask(shell, address, "job", f"{old}:5"), "the job is adopted")
    assert ask(shell, address, "result", f"{old}:14").strip() == "the later one"
    assert "raised, a dead letter" in ask(shell, address, "job", f"{old}:11")
    assert "payload" in ask(shell, address, "dead", "show", f"{old}:11")
    assert "paused" in ask(shell, address, "status")


def test_a_damaged_entry_is_reported_and_all_others_are_copied(
    shell: Shell, path: Path, database: Database
) -> None:
    before, name = expected(path)
    tamper(path, "UPDATE jobs SET priority = 9 WHERE number = 2")
    tamper(path, "UPDATE records SET outcome = 3 WHERE number = 15")
    tamper(path, "UPDATE settings SET crc = 1 WHERE name = 'nightly'")
    tamper(path, "DELETE FROM settings WHERE name = 'never'")
    code, stdout, stderr = outcome(
        shell.run("server", "copy", "--from", str(path), "--to", database.conninfo)
    )
    assert code == 78
    assert "not copied: job 2 is not what was written" in stderr
    assert "not copied: the result of job 15 is not what was written" in stderr
    assert "not copied: the schedule nightly is not what was written" in stderr
    assert "not copied: 1 schedules, limits or policies are missing" in stderr
    assert "could not read 4 entries" in stderr
    assert "2 settings" in stdout
    assert stdout.startswith("copied ")
    after, _ = in_postgres(database, name)
    assert after == without(before, job=2, result=15)


def without(found: Everything, job: int, result: int) -> Everything:
    return found._replace(
        jobs=[each for each in found.jobs if each.number != job],
        results=[each for each in found.results if each.number != result],
        settings=[each for each in found.settings if each.kind != "schedule"],
    )


@pytest.mark.parametrize(
    ("source", "target"), [("one.db", "two.db"), ("dbname=one", "postgresql://two"), ("./a=b", "c/d.db")]
)
def test_one_of_both_has_to_be_a_file(shell: Shell, source: str, target: str) -> None:
    code, _, stderr = outcome(shell.run("server", "copy", "--from", source, "--to", target))
    assert code == 2
    assert "one of --from and --to is a file" in stderr


def test_a_file_in_use_is_not_copied(shell: Shell, path: Path, database: Database) -> None:
    with serving(shell, "--data", str(path.parent)) as (_, server):
        code, _, stderr = outcome(
            shell.run("server", "copy", "--from", str(path.parent), "--to", database.conninfo)
        )
        assert code == 78
        assert f"in use by process {server.process.pid}" in stderr
        assert not mark_of(path).exists()


def test_a_file_is_not_copied_twice_unless_that_is_meant(
    shell: Shell, path: Path, database: Database
) -> None:
    command = ("server", "copy", "--from", str(path), "--to", database.conninfo)
    assert shell.run(*command, "--keep-source").returncode == 0
    expected(path)  # a server may have it
    code, _, stderr = outcome(shell.run(*command))
    assert code == 78
    assert "were copied to the schema gearflow in PostgreSQL" in stderr
    assert not mark_of(path).exists()


def test_a_copy_that_is_killed_anywhere_goes_on(shell: Shell, path: Path, database: Database) -> None:
    before, name = expected(path)
    command = ("server", "copy", "--from", str(path), "--to", database.conninfo)
    tables = SyncStore(database)
    tables.run(tables.store.migrate())
    blocked = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
        "AND application_name LIKE 'gearflow copy%'"
    )
    for table in ("copies", "bodies", "jobs", "pieces", "stream_parts", "records", "paused", "lots"):
        lock = tables.hold(f"LOCK TABLE {{s}}.{table} IN EXCLUSIVE MODE")
        with lock, shell.start(*command) as copy:
            eventually(
                lambda: database.psql(blocked, role="postgres").strip() != "0", f"it waits for {table}"
            )
            copy.signal(signal.SIGKILL)
            assert copy.process.wait(20) == -signal.SIGKILL
        # what it has sent goes on now, beside the next one
    tables.close()
    code, stdout, stderr = outcome(shell.run(*command))
    assert code == 0, stderr
    after, _ = in_postgres(database, name)
    assert after == before
    assert f"copied {len(before.jobs)} jobs" in stdout


def test_servers_that_run_get_the_jobs_that_are_copied_into_their_schema(
    shell: Shell, path: Path, database: Database
) -> None:
    _, name = expected(path)
    old = f"H:old-{name.decode()}"
    with serving(shell, "--postgres", database.conninfo, "--lease", "2s") as (address, _):
        code, _, stderr = outcome(shell.run("server", "copy", "--from", str(path), "--to", database.conninfo))
        assert code == 0, stderr

        def is_known() -> bool:
            return b"waiting" in shell.run("job", f"{old}:5", "-s", address).stdout

        eventually(is_known, "the server knows the old handles, and has adopted the jobs")
        ask_all(shell, address, old)
