"""What holds for every store. A new one joins by one line in ``values.STORES``."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any, Final

import pytest

from gearflow.broker.storage import (
    EndedOf,
    Forgotten,
    JobOutcome,
    JobRecord,
    Rescheduled,
    Reserved,
    Revived,
    Store,
    StoredJob,
)
from gearflow.errors import StoreError
from gearflow.stores import OVERHEAD
from tests.stores.values import STORES, a_dead_letter, a_job, an_end, whole_result

LONG: Final = b"0123456789abcdef" * 1000


def held(store: Store, number: int) -> StoredJob | None:
    job = store.job(number)
    if job is None:
        return None
    assert not isinstance(job.workload, int)
    return job._replace(workload=bytes(job.workload))


def expire_all(store: Store, now: float) -> None:
    while store.expire(now, 1000):
        pass


# ------------------------------------------------------------------------------------------- jobs that wait


def test_the_name_is_eight_hexadecimal_digits(tmp_path: Path) -> None:
    for make in STORES.values():
        store = make(tmp_path, None)
        name = store.load().name
        store.close()
        assert len(name) == 8
        assert int(name, 16) >= 0


def test_a_job_comes_back_as_it_was_given(store: Store) -> None:
    job = StoredJob(
        number=7,
        function="größe".encode(),
        unique=bytes(range(1, 256)),
        priority=2,
        submitted=1234567890.123456,
        due=1234567899.9,
        reducer=b"total",
        options=b'{"keep":60}',
        attempt=2,
        deaths=1,
        workload=bytes(range(256)),
    )
    store.write([job])
    assert held(store, 7) == job


@pytest.mark.parametrize("reducer", [None, b"", b"0", b"total"])
def test_no_reducer_is_not_an_empty_one(store: Store, reducer: bytes | None) -> None:
    store.write([a_job(1, reducer=reducer)])
    assert held(store, 1) == a_job(1, reducer=reducer)


@pytest.mark.parametrize("length", [0, 1, 1023, 1024, 1025, 5000, 100_000])
def test_a_workload_comes_back_whole(store: Store, length: int) -> None:
    workload = (LONG * 7)[:length]
    store.write([a_job(1, workload), a_job(2, memoryview(workload))])
    assert held(store, 1) == a_job(1, workload)
    assert held(store, 2) == a_job(2, workload)


def test_a_body_of_many_parts_comes_back_whole(store: Store) -> None:
    store.write([a_job(1, memoryview(LONG)), a_job(2, LONG[:4097]), a_job(3, LONG)])
    store.write([an_end(2, memoryview(LONG)), a_dead_letter(3, len(LONG))])
    assert held(store, 1) == a_job(1, LONG)
    assert held(store, 3) == a_dead_letter(3, LONG).letter
    assert whole_result(store, 2) == an_end(2, LONG)
    store.write([Forgotten(1), Forgotten(2), Revived(3)])
    assert held(store, 3) == a_job(3, LONG)
    store.write([an_end(3, b"")])
    assert held(store, 3) is None


def test_a_body_that_is_written_ahead_comes_back_whole(store: Store) -> None:
    store.write([a_job(2)])
    for change in (a_job(1, memoryview(LONG)), an_end(2, LONG)):
        for _ in store.write_ahead(change):
            assert store.job(1) is None
            assert store.ended(2) is None
    store.write([a_job(1, memoryview(LONG)), an_end(2, LONG)])
    assert not store.untidy or list(store.tidy())
    assert held(store, 1) == a_job(1, LONG)
    assert whole_result(store, 2) == an_end(2, LONG)
    store.write([Forgotten(1), Forgotten(2)])
    for _ in store.tidy():
        pass
    assert not store.untidy
    assert [held(store, 1), whole_result(store, 2)] == [None, None]


def test_a_body_that_is_written_ahead_and_not_needed_is_removed(store: Store) -> None:
    change = a_job(1, LONG)
    for _ in store.write_ahead(change):
        pass
    store.drop_ahead(change)
    for _ in store.tidy():
        pass
    assert not store.untidy
    store.write([a_job(1, LONG[1:])])
    assert held(store, 1) == a_job(1, LONG[1:])


def test_the_next_large_result_under_a_number_replaces_the_first(store: Store) -> None:
    store.write([a_job(1), an_end(1, LONG)])
    store.write([Forgotten(1)])
    for _ in store.write_ahead(an_end(1, LONG[1:])):
        pass
    store.write([an_end(1, LONG[1:])])
    for _ in store.tidy():
        pass
    assert whole_result(store, 1) == an_end(1, LONG[1:])


def test_a_job_is_fetched_in_steps(store: Store) -> None:
    store.write([a_job(1, LONG), a_job(2)])
    assert list(store.fetch(3)) in ([], [None])
    for number, workload in ((1, LONG), (2, b"payload")):
        steps = store.fetch(number)
        found: list[StoredJob | None] = []
        while not found:
            try:
                next(steps)
            except StopIteration as end:
                found.append(end.value)
        (job,) = found
        assert job is not None
        assert not isinstance(job.workload, int)
        assert bytes(job.workload) == workload


def test_what_is_not_there_is_none(store: Store) -> None:
    assert store.job(1) is None
    assert store.ended(1) is None
    assert store.latest(b"resize", b"key-1") is None
    assert store.dead(None, 0, 10) == []


def test_a_rescheduled_job_keeps_all_else(store: Store) -> None:
    store.write([a_job(1, b"short"), a_job(2, LONG), a_job(3)])
    store.write([Rescheduled(1, 99.5, 2, 0), Rescheduled(2, 88.25, 0, 1)])
    assert held(store, 1) == a_job(1, b"short", due=99.5, attempt=2)
    assert held(store, 2) == a_job(2, LONG, due=88.25, deaths=1)
    assert held(store, 3) == a_job(3)


def test_a_rescheduled_job_may_get_other_options(store: Store) -> None:
    store.write([a_job(1, LONG, options=b'{"keep": 9}'), a_job(2, options=b'{"keep": 9}')])
    store.write([Rescheduled(1, 5.0, 1, 0, b"{}"), Rescheduled(2, 5.0, 1, 0)])
    assert held(store, 1) == a_job(1, LONG, due=5.0, attempt=1, options=b"{}")
    assert held(store, 2) == a_job(2, due=5.0, attempt=1, options=b'{"keep": 9}')


def test_a_job_that_is_stored_again_replaces_the_first(store: Store) -> None:
    store.write([a_job(1, b"first"), a_job(2)])
    store.write([a_job(3), a_job(1, b"second", priority=0)])
    assert held(store, 1) == a_job(1, b"second", priority=0)
    store.write([Forgotten(1)])
    assert held(store, 1) is None


def test_a_job_can_be_stored_again_without_its_workload(store: Store) -> None:
    store.write([a_job(1, LONG), a_job(2, b"short")])
    store.write([a_job(1, len(LONG), options=b"{}"), a_job(2, 5, priority=2)])
    assert held(store, 1) == a_job(1, LONG, options=b"{}")
    assert held(store, 2) == a_job(2, b"short", priority=2)


def test_changes_of_unknown_jobs_are_no_error(store: Store) -> None:
    store.write([Rescheduled(1, 5.0, 1, 0), Forgotten(2), Revived(3)])
    store.write([an_end(4)])
    assert store.job(1) is None
    assert whole_result(store, 4) == an_end(4)


def test_an_empty_group_is_no_error(store: Store) -> None:
    store.write([])


def test_changes_of_one_job_hold_in_their_order(store: Store) -> None:
    store.write([a_job(1), Rescheduled(1, 9.0, 1, 0), a_job(2), an_end(2), a_job(3), Forgotten(3)])
    assert held(store, 1) == a_job(1, due=9.0, attempt=1)
    assert store.job(2) is None
    assert whole_result(store, 2) == an_end(2)
    assert store.job(3) is None
    store.write([a_dead_letter(1, 7), Revived(1), an_end(1), Forgotten(2), a_job(2)])
    assert store.dead(None, 0, 10) == []
    assert whole_result(store, 1) == an_end(1)
    assert held(store, 2) == a_job(2)
    assert store.ended(2) is None


def test_a_large_group_of_all_kinds_is_kept(store: Store) -> None:
    store.write([a_job(number) for number in range(1, 1001)])
    store.write(
        [
            change
            for number in range(1, 1001, 4)
            for change in (
                an_end(number),
                Forgotten(number + 1),
                Rescheduled(number + 2, 5.0, 1, 0),
                a_dead_letter(number + 3, 7),
            )
        ]
    )
    kept = [number for number in range(1, 1001) if store.job(number) is not None]
    assert kept == [number for number in range(1, 1001) if number % 4 in (3, 0)]
    assert len(store.dead(None, 0, 1000)) == 250
    assert whole_result(store, 997) == an_end(997)


# ---------------------------------------------------------------------------------------- what became of it


@pytest.mark.parametrize("outcome", JobOutcome)
def test_an_end_comes_back_as_it_was_given(store: Store, outcome: JobOutcome) -> None:
    end = JobRecord(
        number=3,
        function=b"resize",
        unique="schlüssel".encode(),
        outcome=outcome,
        body=bytes(range(256)),
        submitted=1.5,
        started=0.0,
        ended=2.000001,
        attempt=3,
        deaths=2,
        worker=b"10.0.0.1:4000 worker",
        notes='{"warnings":["ü"]}'.encode(),
        expires=inf,
    )
    store.write([end])
    found = whole_result(store, 3)
    assert found == end
    assert found is not None
    assert isinstance(found.outcome, JobOutcome)


@pytest.mark.parametrize("length", [0, 1024, 1025, 100_000])
def test_a_result_comes_back_whole(store: Store, length: int) -> None:
    body = (LONG * 7)[:length]
    store.write([an_end(1, body), an_end(2, memoryview(body))])
    assert whole_result(store, 1) == an_end(1, body)
    assert whole_result(store, 2) == an_end(2, body)


def test_a_job_that_ended_is_no_job_any_more(store: Store) -> None:
    store.write([a_job(1), a_job(2)])
    store.write([an_end(1)])
    assert store.job(1) is None
    assert held(store, 2) == a_job(2)


@pytest.mark.parametrize("gone", [(5,), (1, 2, 3), (9, 8, 7, 3, 2, 5), (10, 1), tuple(range(1, 11))])
def test_no_other_job_goes_with_those_that_ended(store: Store, gone: tuple[int, ...]) -> None:
    numbers = range(1, 11)
    for change in (an_end, Forgotten):
        store.write([a_job(number) for number in numbers])
        store.write([change(number) for number in gone])
        assert [number for number in numbers if store.job(number) is None] == sorted(gone)
        store.write([Forgotten(number) for number in numbers])


def test_the_last_end_under_a_number_counts(store: Store) -> None:
    store.write([an_end(1, b"first")])
    store.write([an_end(1, b"second")])
    assert whole_result(store, 1) == an_end(1, b"second")
    expire_all(store, inf)
    assert store.ended(1) is None


def test_what_is_forgotten_is_gone(store: Store) -> None:
    store.write([a_job(1), an_end(2), a_dead_letter(3), a_job(4)])
    store.write([Forgotten(1), Forgotten(2), Forgotten(3)])
    assert [store.job(number) for number in (1, 2, 3)] == [None] * 3
    assert [store.ended(number) for number in (1, 2, 3)] == [None] * 3
    assert store.dead(None, 0, 10) == []
    assert held(store, 4) == a_job(4)


def test_the_latest_of_a_unique_is_the_one_that_ended_last(store: Store) -> None:
    store.write([an_end(5, b"first", unique=b"k")])
    store.write([an_end(9, b"second", unique=b"k"), an_end(7, b"third", unique=b"k")])
    store.write([an_end(10, unique=b"other"), an_end(11, unique=b"k", function=b"other")])
    assert store.latest(b"resize", b"k") == an_end(7, b"third", unique=b"k")
    assert store.latest(b"other", b"k") == an_end(11, unique=b"k", function=b"other")
    assert store.latest(b"resize", b"key-7") is None
    store.write([Forgotten(7)])
    assert store.latest(b"resize", b"k") == an_end(9, b"second", unique=b"k")


def test_no_unique_is_found_by_none(store: Store) -> None:
    store.write([an_end(1, unique=b"")])
    assert store.latest(b"resize", b"") is None


def test_the_latest_is_found_among_many(store: Store) -> None:
    for start in range(0, 80_000, 8000):
        store.write(
            [an_end(number, unique=b"k%d" % (number % 70_000)) for number in range(start, start + 8000)]
        )
    for number, last in ((5, 70_005), (12_000, 12_000), (69_999, 69_999)):
        found = store.latest(b"resize", b"k%d" % number)
        assert found is not None
        assert found.number == last


# -------------------------------------------------------------------------------------------- dead letters


def test_a_dead_letter_is_there_twice(store: Store) -> None:
    dead = a_dead_letter(1, b"payload")
    store.write([a_job(1, b"payload")])
    store.write([dead])
    assert held(store, 1) == dead.letter
    assert whole_result(store, 1) == dead._replace(letter=None)
    assert store.dead(None, 0, 10) == [dead._replace(letter=None)]


@pytest.mark.parametrize("workload", [b"", b"short", LONG])
def test_a_dead_letter_keeps_the_workload_that_the_store_has(store: Store, workload: bytes) -> None:
    store.write([a_job(1, workload)])
    store.write([a_dead_letter(1, len(workload))])
    assert held(store, 1) == a_dead_letter(1, workload).letter


def test_a_dead_letter_of_an_unknown_job_without_its_workload_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="job 1 "):
        store.write([a_dead_letter(1, 7)])
    assert store.ended(1) is None


def test_dead_letters_are_listed_by_function_in_pages(store: Store) -> None:
    functions = {number: b"even" if number % 2 == 0 else b"odd" for number in (9, 2, 5, 4, 8)}
    store.write([a_dead_letter(number, function=function) for number, function in functions.items()])
    store.write([an_end(3, function=b"even"), a_job(6, function=b"even")])
    assert [record.number for record in store.dead(None, 0, 10)] == [2, 4, 5, 8, 9]
    assert [record.number for record in store.dead(None, 2, 2)] == [4, 5]
    assert [record.number for record in store.dead(b"even", 0, 10)] == [2, 4, 8]
    assert [record.number for record in store.dead(b"even", 2, 1)] == [4]
    assert store.dead(b"none", 0, 10) == []


@pytest.mark.parametrize("workload", [b"short", LONG])
def test_a_revived_letter_is_a_job_that_has_not_run(store: Store, workload: bytes) -> None:
    store.write([a_job(1, workload)])
    store.write([a_dead_letter(1, len(workload))])
    store.write([Revived(1)])
    assert held(store, 1) == a_job(1, workload)
    assert store.ended(1) is None
    assert store.latest(b"resize", b"key-1") is None
    assert store.dead(None, 0, 10) == []


def test_a_letter_can_be_revived_with_other_options(store: Store) -> None:
    store.write([a_job(1, LONG, options=b'{"expires": 9}')])
    store.write([a_dead_letter(1, len(LONG))])
    store.write([Revived(1, b"{}")])
    assert held(store, 1) == a_job(1, LONG, options=b"{}")
    assert store.dead(None, 0, 10) == []


def test_dead_letters_are_counted(store: Store) -> None:
    assert store.dead_total() == 0
    for number in (1, 2, 3):
        store.write([a_job(number)])
        store.write([a_dead_letter(number)])
    store.write([a_job(4)])
    store.write([an_end(4)])
    assert store.dead_total() == 3
    store.write([Forgotten(2)])
    assert store.dead_total() == 2


def test_only_dead_letters_are_revived(store: Store) -> None:
    job = a_job(1, attempt=2)
    store.write([job, an_end(2)])
    store.write([Revived(1), Revived(2)])
    assert held(store, 1) == job
    assert store.job(2) is None
    assert whole_result(store, 2) == an_end(2)


def test_a_dead_letter_is_not_rescheduled(store: Store) -> None:
    store.write([a_dead_letter(1)])
    store.write([Rescheduled(1, 5.0, 9, 9)])
    assert held(store, 1) == a_dead_letter(1).letter


# -------------------------------------------------------------------------------------------- its expiry


def test_what_expires_is_removed_and_nothing_else(store: Store) -> None:
    store.write([a_job(1), an_end(2, expires=10.5), an_end(3, expires=10.75), a_dead_letter(4, expires=9.0)])
    store.write([an_end(5, expires=inf)])
    assert store.expire(8.9, 100) is False
    assert whole_result(store, 4) is not None
    assert store.expire(10.5, 100) is False
    assert [store.ended(number) is None for number in (2, 3, 4, 5)] == [True, False, True, False]
    assert store.job(4) is None
    assert store.dead(None, 0, 10) == []
    assert held(store, 1) == a_job(1)
    assert store.expire(11.0, 100) is False
    assert store.ended(3) is None
    assert store.ended(5) is not None


def test_one_call_removes_no_more_than_asked(store: Store) -> None:
    for number in range(1, 11):  # one by one, because a pack goes as a whole
        store.write([an_end(number, expires=float(number))])
    calls = [store.expire(10.0, 3) for _ in range(4)]
    assert calls == [True, True, True, False]
    assert [store.ended(number) for number in range(1, 11)] == [None] * 10
    assert store.expire(1e9, 3) is False


def test_what_is_more_than_may_be_kept_goes_oldest_first(make: Callable[..., Store]) -> None:
    store = make(keep_bytes=3 * (OVERHEAD + 100))
    for number in (5, 4, 3, 2, 1):  # in this order they ended
        store.write([an_end(number, b"x" * 100)])
    expire_all(store, 0.0)
    assert [number for number in range(1, 6) if store.ended(number) is not None] == [1, 2, 3]


def test_notes_and_letters_count_as_kept(make: Callable[..., Store]) -> None:
    store = make(keep_bytes=2 * OVERHEAD + 3000)
    store.write([an_end(1, b"", notes=b"x" * 2000)])
    store.write([a_job(2, b"x" * 2000)])
    expire_all(store, 0.0)
    assert whole_result(store, 1) is not None
    store.write([a_dead_letter(2, 2000)])
    expire_all(store, 0.0)
    assert store.ended(1) is None
    assert held(store, 2) is not None
    store.write([Revived(2), an_end(3, b"x" * 2900), a_job(4, b"x" * 9000)])
    expire_all(store, 0.0)
    assert whole_result(store, 3) is not None
    assert held(store, 2) is not None


def test_what_is_more_than_may_be_kept_by_itself_takes_no_place_from_others(
    make: Callable[..., Store],
) -> None:
    store = make(keep_bytes=OVERHEAD + 1000)
    store.write([an_end(1, b""), a_job(2), a_job(3, b"x" * 600), a_job(4, b"x" * 1000)])
    store.write([an_end(2, b"x" * 1001), a_dead_letter(3, 600)._replace(body=b"x" * 401)])
    store.write([a_dead_letter(4, b"x" * 1001)])
    expire_all(store, 0.0)
    assert whole_result(store, 1) == an_end(1, b"")
    for number in (2, 3, 4):
        assert store.ended(number) is None
        assert store.job(number) is None
    assert store.dead(None, 0, 10) == []
    store.write([an_end(5, b"x" * 1000)])
    expire_all(store, 0.0)
    assert whole_result(store, 5) == an_end(5, b"x" * 1000)


def test_nothing_is_kept_where_nothing_may_be(make: Callable[..., Store]) -> None:
    store = make(keep_bytes=0)
    store.write([an_end(1, b""), a_dead_letter(2), a_job(3)])
    expire_all(store, 0.0)
    assert store.ended(1) is None
    assert store.job(2) is None
    assert held(store, 3) == a_job(3)


# ------------------------------------------------------------------------------------------ and the rest


def test_reserved_numbers_are_no_error(store: Store) -> None:
    store.write([Reserved(100), a_job(99)])
    store.write([Reserved(50)])
    assert held(store, 99) == a_job(99)


def test_sync_and_close_may_be_called_at_any_time(store: Store) -> None:
    store.sync()
    store.write([a_job(1)])
    store.sync()
    store.sync()
    store.close()
    store.close()


# --------------------------------------------------------------------- jobs in the order of their ends

ALL: Final = tuple(JobOutcome)


def ended(store: Store, limit: int = 1000, **fields: Any) -> list[tuple[int, bool]]:
    """The numbers of the jobs that have ended, and whether they are dead letters: all pages together."""
    found: list[tuple[int, bool]] = []
    question = EndedOf(None, ALL, None, None, limit)._replace(**fields)
    while True:
        page = store.ended_before(question)
        assert len(page.entries) <= limit
        found += [(entry.record.number, entry.dead) for entry in page.entries]
        if page.next is None:
            return found
        question = question._replace(before=page.next)


def numbers(found: list[tuple[int, bool]]) -> list[int]:
    return [number for number, _ in found]


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_ended_jobs_are_listed_the_last_one_first(store: Store, limit: int) -> None:
    store.load()
    assert ended(store, limit) == []
    for number in range(1, 41):
        store.write([an_end(number, ended=3000.0 + number)])
    store.write([an_end(number, ended=3000.0 + number) for number in range(41, 121)])
    store.write([a_dead_letter(200, ended=4000.0)])
    assert ended(store, limit) == [(200, True), *((number, False) for number in range(120, 0, -1))]


def test_ended_jobs_are_listed_by_function_outcome_and_time(store: Store) -> None:
    store.load()
    cancelled = an_end(50, b"", outcome=JobOutcome.CANCELLED, ended=3500.0, function=b"other")
    ends = [an_end(number, ended=3000.0 + 10 * number) for number in range(1, 50)]
    store.write([*ends, cancelled])
    store.write([a_dead_letter(51, ended=3600.0)])
    assert numbers(ended(store, function=b"other")) == [50]
    assert numbers(ended(store, outcomes=(JobOutcome.CANCELLED, JobOutcome.RAISED))) == [51, 50]
    assert numbers(ended(store, outcomes=(JobOutcome.RAISED,), function=b"resize")) == [51]
    assert ended(store, outcomes=(JobOutcome.FAILED,)) == []
    found = ended(store, until=3210.0, limit=5)
    assert [number for number in numbers(found) if number <= 20] == list(range(20, 0, -1))
    assert len(found) <= 20 + 32  # a pack is left out only as a whole


def test_ended_jobs_that_are_removed_or_come_meanwhile_leave_the_others_in_order(store: Store) -> None:
    store.load()
    store.write([an_end(number) for number in range(1, 101)])
    first = store.ended_before(EndedOf(None, ALL, None, None, 10))
    assert [entry.record.number for entry in first.entries] == list(range(100, 90, -1))
    store.write([Forgotten(number) for number in (91, 90, 85)])
    store.write([an_end(101)])
    rest = ended(store, limit=9, before=first.next)
    assert numbers(rest) == [number for number in range(89, 0, -1) if number != 85]


def test_a_job_that_ends_again_is_listed_once(store: Store) -> None:
    store.load()
    store.write([a_dead_letter(1), an_end(2)])
    store.write([Revived(1)])
    assert numbers(ended(store)) == [2]
    store.write([an_end(1, ended=4000.0)])
    assert ended(store) == [(1, False), (2, False)]


def test_the_error_of_an_ended_job_is_listed_with_it(store: Store) -> None:
    store.load()
    store.write([an_end(1, b"e" * 3000, outcome=JobOutcome.RAISED), an_end(2, b"r" * 100)])
    last, first = store.ended_before(EndedOf(None, ALL, None, None, 10)).entries
    assert isinstance(first.record, JobRecord)
    assert isinstance(last.record, JobRecord)
    assert (bytes_of(first.record), bytes_of(last.record)) == (b"e" * 3000, b"r" * 100)


def bytes_of(record: JobRecord) -> bytes:
    assert not isinstance(record.body, int)
    return bytes(record.body)


@pytest.mark.parametrize("function", [None, b"resize"])
def test_dead_letters_are_listed_in_descending_order_too(store: Store, function: bytes | None) -> None:
    store.load()
    store.write([a_dead_letter(number) for number in (1, 2, 5)])
    store.write([a_dead_letter(3, function=b"other")])
    others = [] if function else [3]
    found = store.dead(function, 0, 10, True)
    assert [each.number for each in found] == sorted([1, 2, 5, *others], reverse=True)
    assert [each.number for each in store.dead(function, 5, 1, True)] == [*others, 2][:1]
    assert store.dead(function, 1, 10, True) == []
