"""What the ledger of a group makes of what was promised, of the workers' log, and of PostgreSQL."""

from pathlib import Path

import pytest

from tests.postgres.cluster import Database
from tests.shared.ledger import Ledger, Promise, Standing
from tests.soak.audit import Mark

PROMISE = Promise("key", "H:host-shared:7", kept=True)
NOTHING = Standing(frozenset(), {}, frozenset())
ENDED = NOTHING._replace(ended={7: 2.0})


def mark(at: float, *, ended: bool, key: str = "key", handle: str = PROMISE.handle) -> Mark:
    return Mark(at, key, handle, 100, ended)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "runs", promises=[PROMISE])


def run(ledger: Ledger, *marks: Mark) -> None:
    with ledger.runs.open("ab") as file:
        file.writelines(mark.to_line() for mark in marks)


def test_a_job_that_ran_and_has_a_record_is_as_it_should_be(ledger: Ledger) -> None:
    run(ledger, mark(1, ended=False), mark(2, ended=True))
    ledger.check(ENDED)
    assert ledger.repeated() == 0


def test_a_promise_that_never_ran_is_a_fault(ledger: Ledger) -> None:
    run(ledger, mark(1, ended=False))
    with pytest.raises(AssertionError, match="never ran"):
        ledger.check(ENDED)


@pytest.mark.parametrize(
    ("standing", "fault"), [(NOTHING, "no record"), (ENDED._replace(dead=frozenset({7})), "died")]
)
def test_a_promise_without_a_good_record_is_a_fault(ledger: Ledger, standing: Standing, fault: str) -> None:
    run(ledger, mark(1, ended=False), mark(2, ended=True))
    with pytest.raises(AssertionError, match=fault):
        ledger.check(standing)


def test_a_job_that_was_refused_for_certain_must_not_have_run(ledger: Ledger) -> None:
    run(
        ledger,
        mark(1, ended=False),
        mark(2, ended=True),
        mark(3, ended=False, key="b", handle="H:host-shared:8"),
    )
    ledger.failed("b", ValueError("no"), for_certain=False)
    ledger.check(ENDED)
    ledger.failed("b", ValueError("no"), for_certain=True)
    with pytest.raises(AssertionError, match="b has run, but was refused: no"):
        ledger.check(ENDED)


def test_a_second_run_is_counted_and_one_beside_the_first_is_told(ledger: Ledger) -> None:
    one, other = mark(1, ended=False), mark(3, ended=False)
    run(ledger, one, mark(2, ended=True), other, mark(4, ended=True))
    assert ledger.repeated() == 1
    assert not ledger.overlapping(["key"])
    beside = mark(3.5, ended=False)
    run(ledger, beside)
    assert ledger.overlapping(["key"]) == [(other, beside)]


def test_a_run_that_began_long_after_the_end_is_a_fault(ledger: Ledger) -> None:
    run(ledger, mark(1, ended=False), mark(2, ended=True), mark(3, ended=False))
    ledger.check(ENDED)
    run(ledger, mark(6, ended=False))
    with pytest.raises(AssertionError, match="began after the job had ended"):
        ledger.check(ENDED)


def test_postgresql_is_asked_for_what_waits_what_ended_and_what_is_dead(database: Database) -> None:
    database.psql("""
        CREATE SCHEMA gearflow;
        CREATE TABLE gearflow.jobs (number bigint, dead boolean);
        CREATE TABLE gearflow.records (number bigint, dead boolean, ended float8);
        INSERT INTO gearflow.jobs VALUES (1, false), (2, true);
        INSERT INTO gearflow.records VALUES (2, true, 7), (3, false, 8.5);
    """)
    standing = Standing.of(database)
    assert (standing.waiting, set(standing.ended), standing.dead) == (frozenset({1}), {3}, frozenset({2}))
