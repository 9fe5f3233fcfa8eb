"""A rolling upgrade: servers of older and later code live on one schema, or a step waits for the older ones.

The first code is here as its statements were: a server of that code prepares them from the same texts.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Final
from uuid import uuid4

import psycopg
import pytest

from gearflow.broker.handles import LOT_BITS
from gearflow.broker.storage import Ordered, Setting, Ticked
from gearflow.errors import StoreError
from gearflow.stores.postgres.migration import prepare
from gearflow.stores.postgres.schema import STEPS, Step, quoted
from gearflow.stores.postgres.session import DatabaseSession
from gearflow.stores.shared import OtherLot
from tests.postgres.adapter import SyncStore, settings_for
from tests.postgres.cluster import Database, eventually
from tests.stores.values import a_job, an_end

FIRST: Final = STEPS[:1]
ADDS: Final = Step(1, "ALTER TABLE {s}.meta ADD COLUMN added int DEFAULT 7;")
NEEDS_THE_SECOND: Final = Step(2, "ALTER TABLE {s}.settings ADD COLUMN added int DEFAULT 7;")

_REGISTER: Final = """
INSERT INTO {s}.servers (server, address, version, code, lease)
VALUES (%(me)s, 'first:4730', '1.0', 1, 10)
ON CONFLICT (server) DO UPDATE SET beat = servers.beat + 1, seen = clock_timestamp()
"""
_ORDERS: Final = """
SELECT id, number, verb FROM {s}.orders AS o
WHERE EXISTS (SELECT 1 FROM {s}.lots AS l WHERE l.owner = %(me)s AND l.lot = o.number >> 40)
ORDER BY id LIMIT 1000
"""
_BEAT: Final = (
    "UPDATE {s}.lots SET beat = beat + 1 WHERE owner = %(me)s RETURNING lot, epoch",
    _REGISTER,
    "SELECT lot, owner, epoch, beat FROM {s}.lots WHERE owner IS DISTINCT FROM %(me)s",
    "SELECT server, address, version, beat FROM {s}.servers",
    "SELECT changed, extract(epoch FROM clock_timestamp()), pg_backend_pid() FROM {s}.meta",
    _ORDERS,
)
_TAKE: Final = """
INSERT INTO {s}.lots (lot, owner) SELECT nextval('{s}.lot_numbers'), %(me)s FROM generate_series(1, 1)
ON CONFLICT (lot) DO NOTHING RETURNING lot, epoch
"""
_INSERT: Final = """
WITH f AS MATERIALIZED (SELECT {s}.fence(%(lots)s, %(epochs)s, %(me)s)),
new AS (INSERT INTO {s}.jobs (number, key, submitted, due, attempt, deaths, priority, function, uniq, reducer,
    options, workload)
    SELECT u.* FROM f, (VALUES (%(number)s, NULL::uuid, 1.0, 0.0, 0, 0, 1::smallint, 'f'::bytea, ''::bytea,
        NULL::bytea, ''::bytea, 'w'::bytea)) AS u
    ON CONFLICT DO NOTHING RETURNING number)
SELECT (SELECT count(*) FROM new) FROM f
"""
_END: Final = """
WITH f AS MATERIALIZED (SELECT {s}.fence(%(lots)s, %(epochs)s, %(me)s)),
old AS (DELETE FROM {s}.jobs AS j USING f, unnest(%(numbers)s) AS u (number) WHERE j.number = u.number
    RETURNING j.pieces),
rec AS (INSERT INTO {s}.records (number, expires, token, submitted, started, ended, attempt, deaths, outcome,
    function, uniq, worker, notes, body)
    SELECT u.number, 9e9, NULL, 1, 2, 3, 1, 0, 0, 'f', '', '', '', 'done'
    FROM f, unnest(%(numbers)s) AS u (number) ON CONFLICT (number) DO NOTHING)
SELECT 1 FROM f
"""
_ADOPT: Final = """
WITH wanted AS MATERIALIZED (SELECT lot FROM {s}.lots
    WHERE lot = %(lot)s AND epoch = %(epoch)s AND beat = %(beat)s FOR UPDATE)
UPDATE {s}.lots AS l SET owner = %(me)s, epoch = epoch + 1, beat = beat + 1 FROM wanted
WHERE l.lot = wanted.lot RETURNING epoch
"""
_JOBS: Final = """
SELECT number, function, uniq, priority, submitted, due, reducer, options, attempt, deaths, workload
FROM {s}.jobs WHERE number > %(first)s AND number < %(end)s AND NOT dead ORDER BY number
"""


class FirstServer:
    """A server of the first code."""

    def __init__(self, database: Database, schema: str) -> None:
        self.me = uuid4()
        self._schema = quoted(schema)
        self._connection = psycopg.connect(database.conninfo, autocommit=True)
        self._run(_REGISTER)
        self.lot: int
        ((self.lot, self.epoch),) = self._run(_TAKE)

    def close(self) -> None:
        """It is killed."""
        self._connection.close()

    def _run(self, sql: str, **params: Any) -> list[tuple[Any, ...]]:
        lots = {"lots": [self.lot], "epochs": [self.epoch]} if "fence" in sql else {}
        cursor = self._connection.execute(
            sql.replace("{s}", self._schema).encode(), {"me": self.me, **lots, **params}
        )
        return cursor.fetchall() if cursor.description else []

    def beat(self) -> list[list[tuple[Any, ...]]]:
        """Its own lots, itself, the others' lots, the servers, the clock, and the orders."""
        return [self._run(sql) for sql in _BEAT]

    def number(self, n: int) -> int:
        """A number in its lot."""
        return self.lot << LOT_BITS | n

    def store(self, n: int) -> None:
        """Keep a job."""
        assert self._run(_INSERT, number=self.number(n)) == [(1,)]

    def end(self, n: int) -> None:
        """Keep a result in place of the job."""
        assert self._run(_END, numbers=[self.number(n)]) == [(1,)]

    def adopt(self, lot: int) -> list[int]:
        """Own the lot of another server. The numbers of its jobs."""
        (seen,) = [row for row in self.beat()[2] if row[0] == lot]
        assert self._run(_ADOPT, lot=lot, epoch=seen[2], beat=seen[3]) == [(seen[2] + 1,)]
        rows = self._run(_JOBS, first=(lot << LOT_BITS) - 1, end=(lot + 1) << LOT_BITS)
        return [row[0] for row in rows]


def migrated(database: Database, schema: str, *steps: Step) -> None:
    """Prepare the schema as code with these steps does when a server starts. Raises StoreError."""

    async def prepare_it() -> None:
        session = DatabaseSession(settings_for(database, schema=schema), "test")
        try:
            await prepare(session, schema, steps)
        finally:
            session.close()

    asyncio.run(prepare_it())


def version(database: Database, schema: str) -> str:
    return database.psql(f"SELECT version, oldest FROM {quoted(schema)}.meta")


@pytest.fixture
def first(one_database: Database, schema: str) -> Iterator[FirstServer]:
    """A server of the first code, on tables that it has made."""
    migrated(one_database, schema, *FIRST)
    assert version(one_database, schema) == "1\t1"
    with closing(FirstServer(one_database, schema)) as server:
        yield server


def test_servers_of_the_first_code_go_on_beside_later_ones(
    first: FirstServer, make: Callable[..., SyncStore], one_database: Database, schema: str
) -> None:
    first.store(1)
    first.store(2)
    later = make()  # a server of the first code is alive while the tables change
    assert version(one_database, schema) == f"{len(STEPS)}\t1"
    # Both store, end and order.
    first.store(3)
    first.end(1)
    assert later.commit(a_job(later.number(1)), a_job(later.number(2)), an_end(later.number(2))) == [None] * 3
    assert later.ended(first.number(1)) is not None
    assert later.commit(Ordered(first.number(2), "cancel")) == [None]
    mine, _, others, servers, _, orders = first.beat()
    assert mine == [(first.lot, first.epoch)]
    assert later.lots.keys() <= {row[0] for row in others}
    assert len(servers) == 2
    assert [row[1:] for row in orders] == [(first.number(2), "cancel")]
    # What the first code does not know of is set by the later one, and does no harm to it.
    nightly = Setting(b"nightly", "schedule", b"1")
    assert later.commit(nightly, Ticked(b"nightly", b"1", b"2", a_job(later.number(3)))) == [None, None]
    first.beat()
    # A server of the first code may even start, and adopt jobs of a later one.
    migrated(one_database, schema, *FIRST)
    with closing(FirstServer(one_database, schema)) as second:
        (lot,) = later.lots
        assert second.adopt(lot) == [later.number(1), later.number(3)]


def test_later_servers_adopt_the_jobs_of_a_server_of_the_first_code(
    first: FirstServer, make: Callable[..., SyncStore]
) -> None:
    first.store(1)
    later = make()
    first.store(2)
    first.close()
    (lost,) = [lot for lot in later.run(later.store.beat([])).others if lot.number == first.lot]
    assert isinstance(lost, OtherLot)
    assert later.run(later.store.adopt(lost)) is not None
    later.lot = first.lot
    assert [job.number for job in later.load().jobs] == [first.number(1), first.number(2)]


def test_a_step_waits_until_no_server_of_older_code_is_alive(
    first: FirstServer, make: Callable[..., SyncStore], one_database: Database, schema: str
) -> None:
    later = make()
    steps = *STEPS, NEEDS_THE_SECOND
    for n in (1, 2):
        first.beat()
        with pytest.raises(StoreError) as refused:
            migrated(one_database, schema, *steps)
        assert "older servers use them: first:4730 (gearflow 1.0); stop these first" in str(refused.value)
        assert version(one_database, schema) == f"{len(STEPS)}\t1"
        first.store(n)
    later.psql("DELETE FROM {s}.servers WHERE address = 'first:4730'")  # an orderly end
    migrated(one_database, schema, *steps)
    assert version(one_database, schema) == f"{len(STEPS) + 1}\t2"
    # The servers of the second code go on, and more of them may start.
    assert later.commit(Setting(b"shopify", "limit", b"1"), a_job(later.number(1))) == [None, None]
    assert make().contents.settings == (Setting(b"shopify", "limit", b"1"),)
    # Those of the first code may not.
    with pytest.raises(StoreError, match=f"is of version {len(STEPS) + 1}.*install the later gearflow"):
        migrated(one_database, schema, *FIRST)


def test_a_further_step_does_not_let_older_servers_in_again(one_database: Database, schema: str) -> None:
    migrated(one_database, schema, *STEPS, NEEDS_THE_SECOND)
    migrated(one_database, schema, *STEPS, NEEDS_THE_SECOND, ADDS)
    assert version(one_database, schema) == f"{len(STEPS) + 2}\t2"
    with pytest.raises(StoreError, match="install the later gearflow"):
        migrated(one_database, schema, *FIRST)


def test_an_older_server_that_starts_while_a_step_is_taken_is_refused(
    make: Callable[..., SyncStore], one_database: Database, schema: str
) -> None:
    make().close()
    one_database.psql(f"DELETE FROM {quoted(schema)}.servers")
    waits = Step(len(STEPS) + 1, "SELECT pg_advisory_xact_lock(4711);")
    errors: list[StoreError] = []

    def start_older() -> None:
        older = SyncStore(one_database, schema=schema)
        with closing(older), pytest.raises(StoreError) as refused:
            older.open()
        errors.append(refused.value)

    def waiting(event: str) -> Callable[[], bool]:
        sql = f"SELECT count(*) FROM pg_stat_activity WHERE wait_event = '{event}'"
        return lambda: one_database.psql(sql) != "0"

    with psycopg.connect(one_database.conninfo, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(4711)")
        migration = threading.Thread(target=migrated, args=(one_database, schema, *STEPS, waits), daemon=True)
        migration.start()
        eventually(waiting("advisory"), "the step is being taken")
        starting = threading.Thread(target=start_older, daemon=True)
        starting.start()
        eventually(
            waiting("transactionid"), "the older server has registered, and looks at the version again"
        )
        holder.execute("SELECT pg_advisory_unlock(4711)")
        migration.join(20)
        starting.join(20)
    assert version(one_database, schema) == f"{len(STEPS) + 1}\t{len(STEPS) + 1}"
    assert ["install the later gearflow" in str(error) for error in errors] == [True]
    assert one_database.psql(f"SELECT count(*) FROM {quoted(schema)}.servers") == "0"
