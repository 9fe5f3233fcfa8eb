"""What holds for settings, ticks and edited jobs in every store."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import pytest

from gearflow.broker.storage import (
    Edited,
    Forgotten,
    Freed,
    JobRecord,
    Rescheduled,
    Setting,
    Store,
    StoredJob,
    Ticked,
)
from tests.stores.values import a_dead_letter, a_job, an_end, whole_result

LONG: Final = b"0123456789abcdef" * 1000

NIGHTLY: Final = Setting(b"nightly", "schedule", b'{"next": 1}')


def settings_of(store: Store) -> set[Setting]:
    found = store.load().settings
    assert len(found) == len(set(found))
    return set(found)


def held(store: Store, number: int) -> StoredJob | None:
    job = store.job(number)
    if job is None:
        return None
    assert not isinstance(job.workload, int)
    return job._replace(workload=bytes(job.workload))


# ------------------------------------------------------------------------------------------------ settings


def test_a_store_has_no_settings_at_first(store: Store) -> None:
    assert settings_of(store) == set()


def test_settings_come_back_as_they_were_given(store: Store) -> None:
    given = [
        Setting(b"nightly", "schedule", b"{}"),
        Setting("größe".encode(), "limit", '{"count": "ü"}'.encode()),
        Setting(b"\xff\x80", "function", b"[1]"),
        Setting(b"long", "schedule", b'"' + LONG * 7 + b'"'),
    ]
    store.write(given)
    assert settings_of(store) == set(given)


def test_a_name_may_be_set_once_for_each_kind(store: Store) -> None:
    given = [Setting(b"resize", kind, b"1") for kind in ("schedule", "limit", "function")]
    store.write(given)
    store.write([Setting(b"resize", "limit", b"")])
    assert settings_of(store) == {given[0], given[2]}


def test_the_last_value_counts_also_in_one_group(store: Store) -> None:
    store.write([NIGHTLY, NIGHTLY._replace(value=b"2"), NIGHTLY._replace(value=b"3")])
    assert settings_of(store) == {NIGHTLY._replace(value=b"3")}
    store.write([NIGHTLY._replace(value=b""), NIGHTLY])
    assert settings_of(store) == {NIGHTLY}
    store.write([NIGHTLY._replace(value=b"4"), NIGHTLY._replace(value=b"")])
    assert settings_of(store) == set()


def test_a_setting_that_is_not_there_can_be_removed(store: Store) -> None:
    store.write([NIGHTLY._replace(value=b"")])
    store.write([NIGHTLY])
    store.write([Setting(b"other", "schedule", b"")])
    assert settings_of(store) == {NIGHTLY}


def test_many_settings_are_kept_among_other_changes(store: Store) -> None:
    many = [Setting(b"limit-%d" % number, "limit", b"%d" % number) for number in range(1, 501)]
    store.write([change for setting in many for change in (setting, a_job(int(setting.value)))])
    store.write([setting._replace(value=b"") for setting in many[::2]])
    assert settings_of(store) == set(many[1::2])
    assert held(store, 500) == a_job(500)


# --------------------------------------------------------------------------------------------------- ticks


def test_a_tick_keeps_the_next_time_and_its_job(store: Store) -> None:
    store.write([NIGHTLY])
    after = NIGHTLY._replace(value=b'{"next": 2}')
    store.write([Ticked(b"nightly", NIGHTLY.value, after.value, a_job(1))])
    assert settings_of(store) == {after}
    assert held(store, 1) == a_job(1)


def test_a_tick_without_a_job_keeps_the_next_time(store: Store) -> None:
    store.write([NIGHTLY])
    store.write([Ticked(b"nightly", NIGHTLY.value, b"2", None)])
    assert settings_of(store) == {NIGHTLY._replace(value=b"2")}


def test_ticks_of_one_schedule_follow_each_other_in_one_group(store: Store) -> None:
    store.write([NIGHTLY])
    values = [NIGHTLY.value, *(b"%d" % number for number in range(2, 12))]
    store.write(
        [
            Ticked(b"nightly", before, after, a_job(number, LONG if number % 2 else b"short"))
            for number, (before, after) in enumerate(pairwise(values), 1)
        ]
    )
    assert settings_of(store) == {NIGHTLY._replace(value=b"11")}
    assert [held(store, number) is not None for number in range(1, 12)] == [True] * 10 + [False]


def test_the_job_of_a_tick_may_go_on_in_the_same_group(store: Store) -> None:
    store.write([NIGHTLY, a_job(9), a_job(8), a_job(7)])
    store.write(
        [
            an_end(9),
            Forgotten(8),
            Rescheduled(7, 5.0, 1, 0),
            Ticked(b"nightly", NIGHTLY.value, b"2", a_job(1)),
            an_end(1),
            Ticked(b"nightly", b"2", b"3", a_job(2)),
            Forgotten(2),
            Ticked(b"nightly", b"3", b"4", a_job(3)),
            Rescheduled(3, 5.0, 1, 0),
        ]
    )
    assert settings_of(store) == {NIGHTLY._replace(value=b"4")}
    assert [held(store, number) is not None for number in (1, 2, 3)] == [False, False, True]
    assert whole_result(store, 1) == an_end(1)
    assert held(store, 3) == a_job(3, due=5.0, attempt=1)


def test_a_schedule_may_be_set_and_come_in_one_group(store: Store) -> None:
    store.write([NIGHTLY, Ticked(b"nightly", NIGHTLY.value, b"2", a_job(1)), a_job(2)])
    assert settings_of(store) == {NIGHTLY._replace(value=b"2")}
    assert [held(store, 1), held(store, 2)] == [a_job(1), a_job(2)]


# -------------------------------------------------------------------------------------------- edited jobs


@pytest.mark.parametrize("workload", [b"short", LONG])
def test_an_edited_job_keeps_all_else(store: Store, workload: bytes) -> None:
    store.write([a_job(1, workload, attempt=2, deaths=1), a_job(2)])
    store.write([Edited(1, 2, 99.5, b'{"expires": 9}')])
    expected = a_job(1, workload, attempt=2, deaths=1, priority=2, due=99.5, options=b'{"expires": 9}')
    assert held(store, 1) == expected
    assert held(store, 2) == a_job(2)


@pytest.mark.parametrize("before", [b"", b"short", LONG, LONG * 2])
@pytest.mark.parametrize("after", [b"", b"other", LONG[1:], LONG * 3])
def test_an_edited_job_may_get_another_workload(store: Store, before: bytes, after: bytes) -> None:
    store.write([a_job(1, before), a_job(2, LONG)])
    store.write([Edited(1, 1, 5.0, b"{}", after)])
    assert held(store, 1) == a_job(1, after, due=5.0, options=b"{}")
    assert held(store, 2) == a_job(2, LONG)
    for _ in store.tidy():
        pass
    assert held(store, 1) == a_job(1, after, due=5.0, options=b"{}")
    store.write([a_dead_letter(1, len(after))])
    assert held(store, 1) == a_dead_letter(1, after).letter


def test_the_last_edit_counts_also_in_one_group(store: Store) -> None:
    store.write([a_job(1, LONG)])
    store.write([Edited(1, 0, 5.0, b"1", b"first"), Edited(1, 2, 0.0, b"2", LONG * 2), a_job(2)])
    assert held(store, 1) == a_job(1, LONG * 2, priority=2, options=b"2")
    store.write([Edited(1, 1, 0.0, b"", b"third"), an_end(1)])
    assert held(store, 1) is None


def test_a_job_whose_body_was_written_ahead_may_be_edited_in_its_group(store: Store) -> None:
    for _ in store.write_ahead(a_job(1, LONG)):
        pass
    store.write([a_job(1, LONG), Edited(1, 1, 0.0, b"", LONG[1:])])
    assert held(store, 1) == a_job(1, LONG[1:])


def test_only_jobs_that_are_to_run_are_edited(store: Store) -> None:
    letter = a_dead_letter(1)
    store.write([letter, an_end(2)])
    store.write([Edited(1, 0, 9.0, b"", b"other"), Edited(2, 0, 9.0, b""), Edited(3, 0, 9.0, b"", b"new")])
    assert held(store, 1) == letter.letter
    ended = whole_result(store, 2)
    assert isinstance(ended, JobRecord)
    assert [held(store, 2), held(store, 3)] == [None, None]


# ---------------------------------------------------------------------------------- uniques that are freed


@pytest.mark.parametrize("workload", [b"short", LONG])
def test_a_unique_that_is_freed_may_be_that_of_another_job(store: Store, workload: bytes) -> None:
    job, other = a_job(1, workload, unique=b"key", attempt=1), a_job(2, unique=b"key")
    store.write([job])
    store.write([Freed(1), Freed(3)])
    store.write([other])
    assert held(store, 1) == job._replace(unique=b"")
    assert held(store, 2) == other
    store.write([an_end(1), an_end(2)])
    store.write([a_job(3, unique=b"key")])
    assert held(store, 3) is not None
