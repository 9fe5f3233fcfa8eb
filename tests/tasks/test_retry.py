"""Retry schedules as values."""

import pytest

from gearflow.tasks import Retry


def test_delays_double_up_to_a_cap() -> None:
    assert Retry(6, backoff=2, max_delay=10).schedule() == [2, 4, 8, 10, 10]
    assert Retry(1).schedule() == []


def test_delays_may_come_from_a_function_of_the_number_of_failures() -> None:
    assert Retry(4, backoff=lambda failures: failures * 10.0, max_delay=25).schedule() == [10, 20, 25]


def test_a_long_schedule_stays_at_its_cap() -> None:
    assert Retry(3000).schedule()[-1] == 3600


def test_jitter_takes_off_up_to_half() -> None:
    retry = Retry(3, backoff=8)
    assert retry.delay(1, draw=lambda: 0.0) == 4
    assert retry.delay(1, draw=lambda: 1.0) == 8
    assert Retry(3, backoff=8, jitter=False).delay(1) == 8


def test_there_is_no_delay_after_the_last_attempt() -> None:
    assert Retry(3).delay(2) is not None
    assert Retry(3).delay(3) is None


def test_only_the_named_errors_are_worth_a_retry() -> None:
    retry = Retry(on=(OSError, KeyError))
    assert retry.wants(FileNotFoundError())
    assert not retry.wants(ValueError())


def test_it_prints_its_schedule() -> None:
    assert str(Retry(3, backoff=0.5)) == "3 attempts, after at most 0.5 s, 1 s"
    assert str(Retry(1)) == "1 attempts"


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least once"):
        Retry(0)
    with pytest.raises(ValueError, match="negative"):
        Retry(backoff=-1)
