"""Everything that a stopped server has kept is moved from a file to PostgreSQL, and back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gearflow.broker import Broker
from gearflow.broker.handles import LOT_BITS
from gearflow.broker.storage import HISTORY, Joined, Renumbered, Setting
from gearflow.errors import StoreError
from gearflow.stores import SqliteStore
from gearflow.stores.copying.copy import copy, copy_to_file, copy_to_postgres
from gearflow.stores.copying.entries import CopyGroup, CopyProgress, CopySource, CopyTarget, composed
from gearflow.stores.copying.file_source import FileSource
from gearflow.stores.copying.file_target import FileTarget
from gearflow.stores.copying.postgres_source import PostgresSource
from gearflow.stores.copying.postgres_target import PostgresTarget
from gearflow.stores.postgres.settings import PostgresSettings
from gearflow.stores.sqlite.moved import mark_of, remove_mark
from tests.copying.contents import Everything, everything, groups
from tests.postgres.adapter import SyncStore, settings_for
from tests.postgres.cluster import Database
from tests.stores.values import a_job, an_end

pytestmark = pytest.mark.timeout(120)

NUMBERS = range(1, 1400)


@pytest.fixture
def settings(database: Database) -> PostgresSettings:
    return settings_for(database, timeout=30.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of a stopped server, with entries of all kinds."""
    path = tmp_path / "gearflow.db"
    with closing(SqliteStore(path)) as store:
        store.load()
        for group in groups():
            store.write(group)
    return path


def expected(path: Path) -> tuple[Everything, bytes]:
    """What the file has, and its name."""
    with closing(SqliteStore(path)) as store:
        found = everything(store, NUMBERS)
        return found, store.load().name


def into(path: Path, settings: PostgresSettings, *, keep: bool = False) -> CopyProgress:
    return asyncio.run(copy_to_postgres(path, settings, keep=keep, report=lambda group, total: None))


def out_of(settings: PostgresSettings, path: Path, *, keep: bool = False) -> CopyProgress:
    return asyncio.run(copy_to_file(settings, path, keep=keep, report=lambda group, total: None))


def in_postgres(database: Database, name: bytes) -> tuple[Everything, Renumbered]:
    """What the schema has of the store of that name."""
    store = SyncStore(database)
    try:
        contents = store.run(store.store.open())
        (moved,) = (each for each in contents.renumbered if each.name == name)
        lot = moved.add >> LOT_BITS
        store.lot = lot
        return everything(store, NUMBERS, moved.add), moved
    finally:
        store.close()


def test_a_copied_file_is_in_postgresql_as_it_was(
    path: Path, settings: PostgresSettings, database: Database
) -> None:
    before, name = expected(path)
    copied = into(path, settings)
    assert (copied.jobs, copied.dead, copied.damaged) == (len(before.jobs), len(before.dead), 0)
    assert copied.results == len(before.results)
    assert copied.parts == sum(map(len, before.parts.values()))
    assert copied.settings == len(before.settings) == 4
    after, _ = in_postgres(database, name)
    assert after == before


def test_a_copied_schema_is_in_a_file_as_it_was(
    path: Path, settings: PostgresSettings, database: Database, tmp_path: Path
) -> None:
    before, name = expected(path)
    into(path, settings)
    store = SyncStore(database)
    contents = store.run(store.store.open())
    (handed,) = store.run(store.store.take_lots(1))
    other = handed.number << LOT_BITS | 5
    store.lots = {handed.number: handed.epoch}
    store.commit(a_job(other, unique=b"of a server of the group"))
    store.run(store.store.release())
    store.close()
    target = tmp_path / "back.db"
    copied = out_of(settings, target)
    assert (copied.jobs, copied.results, copied.damaged) == (len(before.jobs) + 1, len(before.results), 0)
    assert copied.settings == 4
    with closing(SqliteStore(target)) as back:
        loaded = back.load()
        handles = Broker(b"H:x-%b:" % loaded.name, lambda line: line).core.handles
        handles.renumber(loaded.renumbered)
        number = handles.number(b"H:x-%b:%d" % (contents.name, other))
        assert number is not None
        job = back.job(number)
        assert job is not None
        assert job.unique == b"of a server of the group"
        first = handles.number(b"H:y-%b:1" % name)
        assert first is not None
        after = everything(back, NUMBERS, first - 1)
        assert after._replace(jobs=[each for each in after.jobs if each.unique != job.unique]) == before
        assert loaded.reserved > max(number, first + max(NUMBERS) - 100)


@pytest.mark.parametrize("way", ["to postgres", "to a file"])
def test_a_copy_that_ends_anywhere_goes_on(
    way: str,
    path: Path,
    settings: PostgresSettings,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("file_source", "postgres_source"):
        monkeypatch.setattr(f"gearflow.stores.copying.{module}.GROUP", 50)
    before, name = expected(path)
    target = tmp_path / "back.db"
    if way == "to a file":
        into(path, settings)
    cuts = 0
    while True:
        source: CopySource = FileSource(path) if way == "to postgres" else PostgresSource(settings)
        goal: CopyTarget = PostgresTarget(settings) if way == "to postgres" else FileTarget(target)
        try:
            copied = asyncio.run(_cut(source, goal, cuts))
            break
        except Cut:
            cuts += 1
        if way == "to postgres":
            with pytest.raises(StoreError, match=r"did not end; run that|were copied"):
                SqliteStore(path)
        else:
            assert not target.exists() or cuts > 3
    assert cuts > 10
    assert copied.damaged == 0
    if way == "to postgres":
        assert in_postgres(database, name)[0] == before
        with pytest.raises(StoreError, match="were copied to the schema gearflow in PostgreSQL's database"):
            SqliteStore(path)
    else:
        with closing(SqliteStore(target)) as back:
            (first,) = (each for each in back.load().renumbered if each.name == name)
            assert everything(back, NUMBERS, first.add) == before


class Cut(Exception):
    """The copy is to end here."""


async def _cut(source: CopySource, target: CopyTarget, attempt: int) -> CopyProgress:
    """Copy, and end before or after the second, third or fourth transaction."""
    most = 1 + attempt % 3
    done = 0
    write, finish, end = target.write, target.finish, source.end

    async def cut(call: Coroutine[Any, Any, None]) -> None:
        nonlocal done
        if done == most:
            call.close()
            raise Cut
        await call
        done += 1
        if done == most and attempt % 2:
            raise Cut

    def cut_write(group: CopyGroup) -> Coroutine[Any, Any, None]:
        return cut(write(group))

    def cut_finish(
        paused: Sequence[bytes], settings: Sequence[Setting], progress: CopyProgress
    ) -> Coroutine[Any, Any, None]:
        return cut(finish(paused, settings, progress))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "write", cut_write)
        patch.setattr(target, "finish", cut_finish)
        patch.setattr(source, "end", lambda: cut(end()))
        return await copy(source, target, keep=False, report=lambda group, total: None)


def test_files_of_several_servers_are_copied_into_one_schema(
    settings: PostgresSettings, database: Database, tmp_path: Path
) -> None:
    names: list[bytes] = []
    for number in range(2):
        path = tmp_path / f"{number}.db"
        with closing(SqliteStore(path)) as file:
            names.append(file.load().name)
            file.write([a_job(1, b"of %d" % number, unique=b"order-7"), an_end(2, b"of %d" % number)])
        into(path, settings)
    store = SyncStore(database)
    with closing(store):
        contents = store.run(store.store.open())
        handles = Broker(b"H:x-%b:" % contents.name, lambda line: line).core.handles
        handles.renumber(contents.renumbered)
        for place, name in enumerate(names):
            job, ended = (handles.number(b"H:old-%b:%d" % (name, number)) for number in (1, 2))
            assert job is not None
            assert ended is not None
            found, record = store.job(job), store.ended(ended)
            assert found is not None
            assert found.workload == b"of %d" % place
            assert record is not None
            assert record.body == b"of %d" % place
        # both were acknowledged, so both run; a new submission joins the first one
        assert store.psql("SELECT count(*), count(key) FROM {s}.jobs") == "2\t1"
        (lot,) = store.run(store.store.take_lots(1))
        store.lots = {lot.number: lot.epoch}
        first = handles.number(b"H:old-%b:1" % names[0])
        assert first is not None
        assert store.commit(a_job(lot.number << LOT_BITS | 1, unique=b"order-7")) == [Joined(first)]


def test_a_setting_that_the_target_has_stays_as_it_is_there(
    path: Path, settings: PostgresSettings, database: Database
) -> None:
    store = SyncStore(database)
    with closing(store):
        store.open()
        store.commit(Setting(b"shopify", "limit", b"theirs"), Setting(b"never", "schedule", b"{}"))
        store.commit(Setting(b"nightly", "schedule", b"1"))
        store.commit(Setting(b"nightly", "schedule", b""))
        left: list[str] = []
        copied = asyncio.run(
            copy_to_postgres(path, settings, keep=False, report=lambda group, _: left.extend(group.left))
        )
        assert left == ["the limit shopify: the target has one of that name"]
        assert copied.settings == 2
        found = {setting.name: setting.value for setting in store.run(store.store.settings())}
    assert found[b"shopify"] == b"theirs"
    assert set(found) == {b"shopify", b"never", b"nightly", b"\x80\xff"}
    assert len(found[b"nightly"]) > 20_000


def test_the_history_of_a_server_is_not_copied(
    path: Path, settings: PostgresSettings, database: Database
) -> None:
    with closing(SqliteStore(path)) as file:
        file.load()
        file.write([Setting(b"7", HISTORY, b"[1,{}]")])
    asyncio.run(copy_to_postgres(path, settings, keep=False, report=lambda group, _: None))
    with closing(SyncStore(database)) as store:
        assert store.psql("SELECT count(*) FROM {s}.settings WHERE kind = 'history'") == "0"


def test_a_file_that_was_used_after_a_copy_that_did_not_end_is_copied_from_the_start(
    path: Path, settings: PostgresSettings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gearflow.stores.copying.file_source.GROUP", 50)
    with pytest.raises(Cut):
        asyncio.run(_cut(FileSource(path), PostgresTarget(settings), 5))
    remove_mark(path)
    with closing(SqliteStore(path)) as store:
        store.load()
        store.write([an_end(1), a_job(1399)])
    before, name = expected(path)
    into(path, settings)
    assert in_postgres(database, name)[0] == before
    assert database.psql("SELECT count(*) FROM gearflow.copies") == "1"


def test_jobs_are_not_copied_back_beside_themselves(
    path: Path, settings: PostgresSettings, database: Database, tmp_path: Path
) -> None:
    into(path, settings)
    back = tmp_path / "back.db"
    out_of(settings, back)
    with pytest.raises(StoreError, match=r"were copied to .*back\.db; serve them from there"):
        into(back, settings)
    database.psql("UPDATE gearflow.meta SET moved = NULL")
    with pytest.raises(StoreError, match="copy them to another --schema"):
        into(back, settings)
    assert not mark_of(back).exists()


def test_handles_of_older_stores_go_through_all_copies() -> None:
    older = [Renumbered(b"a", 1, 100, 1000), Renumbered(b"b", 1, 10, 5000)]
    newer = [Renumbered(b"c", 1001, 1049, -1000), Renumbered(b"c", 1050, 1200, 7000)]
    assert set(composed(older, newer)) == {
        *newer,
        Renumbered(b"a", 1, 49, 0),
        Renumbered(b"a", 50, 100, 8000),
    }


def test_an_empty_schema_makes_an_empty_file(settings: PostgresSettings, tmp_path: Path) -> None:
    target = tmp_path / "gearflow.db"
    copied = out_of(settings, target, keep=True)
    assert (copied.jobs, copied.results) == (0, 0)
    with closing(SqliteStore(target)) as store:
        assert list(store.load().jobs) == []
    assert into(target, replace(settings, schema="other")).jobs == 0
    with pytest.raises(StoreError, match="is there already; name another file"):
        out_of(settings, target)
