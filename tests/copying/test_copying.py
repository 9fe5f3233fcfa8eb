"""Everything that a stopped server has kept is moved from a file to PostgreSQL, and back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gearflow.broker import Broker
from gearflow.broker.handles import LOT_BITS
from gearflow.broker.storage import Renumbered
from gearflow.errors import StoreError
from gearflow.stores import SqliteStore
from gearflow.stores.copying.copy import copy, copy_to_file, copy_to_postgres
from gearflow.stores.copying.entries import CopyGroup, CopyProgress, CopySource, CopyTarget
from gearflow.stores.copying.file_source import FileSource
from gearflow.stores.copying.file_target import FileTarget
from gearflow.stores.copying.postgres_source import PostgresSource
from gearflow.stores.copying.postgres_target import PostgresTarget
from gearflow.stores.postgres.settings import PostgresSettings
from tests.copying.contents import Everything, everything, groups
from tests.postgres.adapter import SyncStore, settings_for
from tests.postgres.cluster import Database
from tests.stores.values import a_job

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

    def cut_finish(paused: Sequence[bytes], progress: CopyProgress) -> Coroutine[Any, Any, None]:
        return cut(finish(paused, progress))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "write", cut_write)
        patch.setattr(target, "finish", cut_finish)
        patch.setattr(source, "end", lambda: cut(end()))
        return await copy(source, target, keep=False, report=lambda group, total: None)
