"""PostgreSQL does what every store does. ``_OTHERWISE`` has the exceptions, with their reasons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from tests.postgres.adapter import SyncStore
from tests.postgres.cluster import Database
from tests.stores import test_contract, test_settings

_OTHERWISE: Final = {
    "test_the_name_is_eight_hexadecimal_digits": "it makes its own stores",
    "test_what_is_more_than_may_be_kept_goes_oldest_first": "there is no keep_bytes",
    "test_notes_and_letters_count_as_kept": "there is no keep_bytes",
    "test_what_is_more_than_may_be_kept_by_itself_takes_no_place_from_others": "there is no keep_bytes",
    "test_nothing_is_kept_where_nothing_may_be": "there is no keep_bytes",
    "test_a_job_that_is_stored_again_replaces_the_first": "the first counts, as a group may come twice",
    "test_the_last_end_under_a_number_counts": "the first counts, as a group may come twice",
    "test_the_latest_of_a_unique_is_the_one_that_ended_last": "of equal times any one is the last",
    "test_a_dead_letter_of_an_unknown_job_without_its_workload_is_refused": "only that change is refused",
    "test_changes_of_unknown_jobs_are_no_error": "one that is revived may have expired, and says so",
    "test_only_dead_letters_are_revived": "the same",
    "test_the_latest_is_found_among_many": "of equal times any one is the last",
}


@pytest.fixture(params=[{}, {"large": 4096, "piece": 1000}], ids=["", "in small pieces"])
def store(one_database: Database, schema: str, request: pytest.FixtureRequest) -> Iterator[SyncStore]:
    store = SyncStore(one_database, schema=schema, **request.param)
    try:
        store.load()
        yield store
    finally:
        store.close()


_EVERY_STORE: Final = {**vars(test_contract), **vars(test_settings)}

globals().update(
    {name: test for name, test in _EVERY_STORE.items() if name.startswith("test_") and name not in _OTHERWISE}
)


def test_every_exception_is_one() -> None:
    assert set(_OTHERWISE) <= set(_EVERY_STORE)
