"""Retry schedules as values."""

import math
from datetime import timedelta
from typing import Any, cast

import pytest

from gearflow.errors import PayloadInvalid
from gearflow.protocol.server_calls import RetryPlan
from gearflow.tasks import Retry
from gearflow.tasks.durations import LONGEST
from gearflow.tasks.retry import MOST_ATTEMPTS


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
    assert Retry(MOST_ATTEMPTS).schedule()[-1] == 3600


def test_a_schedule_without_a_cap_can_travel() -> None:
    endless = Retry(3, backoff=math.inf, max_delay=math.inf)
    assert endless.to_plan().delays == Retry(3, backoff=lambda _: 1e300, max_delay=1e300).to_plan().delays
    assert set(endless.schedule()) == {LONGEST}


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
    for nonsense in (-1.0, math.nan, None, "1", True, timedelta(1)):
        with pytest.raises(ValueError, match=r"backoff\(1\) returned"):
            Retry(backoff=cast(Any, {1: nonsense}.__getitem__)).to_plan()


def test_it_prints_its_schedule() -> None:
    assert str(Retry(3, backoff=0.5)) == "3 attempts, after at most 0.5 s, 1 s"
    assert str(Retry(1)) == "1 attempts"


@pytest.mark.parametrize(
    ("nonsense", "error", "message"),
    [
        ({"attempts": 0}, ValueError, "attempts=0.*at least once"),
        ({"attempts": 1.5}, TypeError, "attempts=1.5.*whole number"),
        ({"attempts": True}, TypeError, "attempts=True.*whole number"),
        ({"backoff": -1}, ValueError, "backoff=-1.*not negative"),
        ({"backoff": math.nan}, ValueError, "backoff=nan.*or a function"),
        ({"backoff": timedelta(1)}, ValueError, "a number of seconds"),
        ({"max_delay": -1}, ValueError, "max_delay=-1.*not negative"),
        ({"max_delay": "1"}, ValueError, "max_delay='1'"),
        ({"jitter": "no"}, TypeError, "jitter='no'.*True or False"),
        ({"on": OSError()}, TypeError, "give the class: on=OSError"),
        ({"on": [OSError, 7]}, TypeError, "7 is no class of exceptions"),
        ({"on": (int,)}, TypeError, "'int'> is no class of exceptions"),
        ({"on": KeyboardInterrupt}, TypeError, "no class of exceptions; give such as OSError"),
    ],
    ids=str,
)
def test_nonsense_is_refused_where_it_is_written(
    nonsense: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Retry(**nonsense)


def test_several_errors_may_come_in_a_list() -> None:
    assert Retry(on=[OSError, "KeyError"]) == Retry(on=(OSError, "KeyError"))
    assert Retry(on=[OSError]).wants(FileNotFoundError())
    assert hash(Retry(on=[OSError]))
