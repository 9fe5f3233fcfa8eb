"""Retry schedules as values."""

import pytest

from gearflow.errors import PayloadInvalid
from gearflow.protocol.reserved import RetryPlan
from gearflow.tasks import Retry


class Busy(Exception):
    pass


class VeryBusy(Busy):
    pass


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


def test_what_does_not_fit_its_types_is_never_worth_one() -> None:
    for on in (Exception, ValueError, PayloadInvalid):
        assert not Retry(on=on).wants(PayloadInvalid("no"))


def test_errors_may_be_given_by_name() -> None:
    retry = Retry(on=(f"{__name__}.Busy", "OSError"))
    assert retry.wants(Busy())
    assert retry.wants(VeryBusy())
    assert retry.wants(FileNotFoundError())
    assert not retry.wants(KeyError())


def test_a_plan_is_the_same_as_data() -> None:
    plan = Retry(4, on=(OSError, Busy), backoff=lambda n: n * 10.0, max_delay=25, jitter=False).to_plan()
    assert plan == RetryPlan(delays=(10, 20, 25), jitter=False, on=("builtins.OSError", f"{__name__}.Busy"))
    assert Retry().to_plan() == RetryPlan(delays=(1, 2))
    assert Retry(on="OSError").to_plan().on == ("builtins.OSError",)


def test_what_a_plan_says_is_done() -> None:
    retry = Retry.from_plan(RetryPlan(delays=(10, 20), jitter=False, on=(f"{__name__}.Busy",)))
    assert (retry.attempts, retry.schedule()) == (3, [10, 20])
    assert [retry.delay(failures) for failures in (1, 2, 3)] == [10, 20, None]
    assert retry.wants(VeryBusy())
    assert not retry.wants(OSError())
    assert Retry.from_plan(RetryPlan(delays=())).delay(1) is None


def test_a_backoff_that_gives_no_delay_cannot_travel() -> None:
    for nonsense in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=r"backoff\(1\) returned"):
            Retry(backoff={1: nonsense}.__getitem__).to_plan()


def test_it_prints_its_schedule() -> None:
    assert str(Retry(3, backoff=0.5)) == "3 attempts, after at most 0.5 s, 1 s"
    assert str(Retry(1)) == "1 attempts"


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least once"):
        Retry(0)
    with pytest.raises(ValueError, match="negative"):
        Retry(backoff=-1)
