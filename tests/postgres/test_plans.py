"""Statements use indexes from the first moment on, when the tables are empty and have no statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest

from gearflow.broker.storage import (
    DeadOf,
    EndedOf,
    HeadOf,
    JobOf,
    JobOutcome,
    LatestOf,
    PartsOf,
    Question,
    RecordOf,
    WholeRecordOf,
)
from gearflow.stores.postgres import kinds, writer
from gearflow.stores.postgres.kinds import Kind
from gearflow.stores.postgres.reads import QuestionReader
from gearflow.stores.postgres.schema import quoted
from gearflow.stores.postgres.session import DatabaseSession
from tests.postgres.adapter import SyncStore

KINDS: Final = sorted(
    (kind for kind in vars(kinds).values() if isinstance(kind, Kind)), key=lambda kind: kind.place
)


def plan_of(store: SyncStore, session: DatabaseSession, sql: str, types: Sequence[int]) -> str:
    """The plan of a prepared statement in a session of the store."""
    names = store.run(session.simple("SELECT " + ", ".join(f"{oid}::regtype" for oid in types)))[0][0]
    declared = ", ".join(str(name, "ascii") for name in names if name is not None)
    given = ", ".join("NULL" for _ in types)
    statements = (
        f"PREPARE planned ({declared}) AS {sql}; EXPLAIN EXECUTE planned ({given}); DEALLOCATE planned"
    )
    results = store.run(session.simple(statements))
    return "\n".join(str(row[0] or b"", "utf-8") for row in results[1])


@pytest.fixture(autouse=True)
def misled(one: SyncStore) -> None:
    """Statistics that say that the tables have no rows."""
    one.psql("VACUUM ANALYZE {s}.jobs, {s}.records, {s}.stream_parts, {s}.bodies, {s}.pieces, {s}.settings")


def check(plan: str) -> None:
    scans = [line.strip() for line in plan.splitlines() if "Seq Scan on" in line]
    assert [line for line in scans if "meta" not in line] == [], plan  # which has one row
    assert "Hash Join" not in plan
    assert "Merge Join" not in plan


@pytest.mark.parametrize("chosen", [*([kind] for kind in KINDS), KINDS], ids=lambda found: str(len(found)))
def test_groups_use_indexes(one: SyncStore, schema: str, chosen: list[Kind]) -> None:
    statement = kinds.statement(chosen, quoted(schema), fenced=True)
    check(plan_of(one, one.store.sessions[0], statement.sql, statement.types))


def test_questions_use_indexes(one: SyncStore, schema: str) -> None:
    questions: list[Question] = [
        JobOf(1),
        HeadOf(1),
        RecordOf(1),
        WholeRecordOf(1),
        LatestOf(b"f", b"u"),
        DeadOf(None, 0, 10),
        DeadOf(None, 0, 10, descending=True),
        EndedOf(b"f", (JobOutcome.COMPLETED,), None, None, 10),
        PartsOf(1, 0, 100),
    ]
    reader = QuestionReader(one.store.sessions[2], quoted(schema), 1 << 20)
    for question in questions:
        query, _ = reader.query_of(question)
        check(plan_of(one, one.store.sessions[2], query.sql, query.types))


def test_who_has_a_key_is_found_by_its_index(one: SyncStore, schema: str) -> None:
    plan = plan_of(one, one.store.sessions[0], writer.FIND.format(quoted(schema)), writer.FIND_TYPES)
    check(plan)
    assert "jobs_key" in plan
