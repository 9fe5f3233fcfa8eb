"""What becomes of a job after an exception."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.errors import PayloadInvalid, TaskTimeout
from gearflow.tasks import Retry
from gearflow.tasks.control_flow import Discard, Snooze, TryAgain
from gearflow.tasks.control_flow import Fail as PlainFail
from gearflow.worker.retry_policy import LONGEST_DELAY, GiveUp, RetryAfter, RetryDecision, decide

MORE = Retry(3, backoff=2.0, jitter=False)

attempts = st.integers(1, 10)
retries = st.builds(
    Retry,
    st.integers(1, 10),
    on=st.sampled_from([Exception, ValueError, (KeyError, "builtins.OSError")]),
    backoff=st.floats(0, 1e300),
    max_delay=st.floats(0, 1e12),
    jitter=st.booleans(),
)
errors = st.sampled_from(
    [
        ValueError("no"),
        KeyError("key"),
        OSError(5, "disk"),
        PayloadInvalid("no number"),
        TaskTimeout("too long"),
        KeyboardInterrupt(),
        SystemExit(1),
        TryAgain(),
        TryAgain(after=5),
        Snooze(9),
        Discard("why"),
        PlainFail("why"),
    ]
)


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@dataclass(frozen=True)
class Case:
    error: BaseException
    retries: Retry | None
    verdict: RetryDecision
    attempt: int = 1


ERROR = ValueError("no good")
INVALID = PayloadInvalid("no number")
SLOW = TaskTimeout("too long")
DISCARD = Discard("closed")
LAST_TRY = TryAgain()


@pytest.mark.parametrize(
    "case",
    [
        Case(ERROR, None, GiveUp(ERROR)),
        Case(ERROR, MORE, RetryAfter(2, "attempt 1 of 3 failed: ValueError: no good; again in 2 s")),
        Case(
            ERROR, MORE, RetryAfter(4, "attempt 2 of 3 failed: ValueError: no good; again in 4 s"), attempt=2
        ),
        Case(ERROR, MORE, GiveUp(ERROR), attempt=3),
        Case(ERROR, Retry(9, on=KeyError), GiveUp(ERROR)),
        Case(INVALID, MORE, GiveUp(INVALID)),
        Case(SLOW, Retry(9, on=ValueError), GiveUp(SLOW)),
        Case(SLOW, MORE, RetryAfter(2, "attempt 1 of 3 failed: TaskTimeout: too long; again in 2 s")),
        Case(TryAgain(), MORE, RetryAfter(2, "attempt 1 of 3 asks for another; again in 2 s")),
        Case(
            TryAgain(after=0.25), None, RetryAfter(0.25, "attempt 1 of 3 asks for another; again in 0.25 s")
        ),
        Case(
            caused(TryAgain(after=90000), ERROR),
            Retry(2, on=KeyError),
            RetryAfter(90000, "attempt 1 of 2 failed: ValueError: no good; again in 90000 s"),
        ),
        Case(LAST_TRY, None, GiveUp(LAST_TRY), attempt=3),
        Case(caused(TryAgain(), ERROR), MORE, GiveUp(ERROR), attempt=3),
        Case(Snooze(60), None, RetryAfter(60, "too early; again in 60 s", counted=False)),
        Case(Snooze(60), MORE, RetryAfter(60, "too early; again in 60 s", counted=False), attempt=3),
        Case(DISCARD, MORE, GiveUp(DISCARD)),
    ],
    ids=lambda case: f"{type(case.error).__name__}-{case.attempt}",
)
def test_what_becomes_of_a_job(case: Case) -> None:
    assert decide(case.error, case.retries, case.attempt) == case.verdict


@given(error=errors, attempt=attempts)
def test_without_retries_nothing_runs_again_that_does_not_ask_for_it(
    error: BaseException, attempt: int
) -> None:
    verdict = decide(error, None, attempt)
    assert isinstance(verdict, RetryAfter) == (
        isinstance(error, Snooze) or (isinstance(error, TryAgain) and attempt < Retry().attempts)
    )


@given(error=errors, policy=retries, attempt=attempts, drawn=st.floats(0, 1))
def test_attempts_are_bounded_and_delays_can_travel(
    error: BaseException, policy: Retry, attempt: int, drawn: float
) -> None:
    verdict = decide(error, policy, attempt, draw=lambda: drawn)
    if isinstance(verdict, GiveUp):
        assert verdict.error is error
    else:
        assert 0 <= verdict.delay <= LONGEST_DELAY
        assert not verdict.counted or attempt < policy.attempts
        assert verdict.counted == (not isinstance(error, Snooze))
        assert not isinstance(error, Discard | PayloadInvalid | KeyboardInterrupt | SystemExit)
    if isinstance(error, Snooze):
        assert isinstance(verdict, RetryAfter)


@given(error=errors, policy=retries)
def test_a_job_comes_to_an_end_however_its_runs_end(error: BaseException, policy: Retry) -> None:
    runs = 1
    while isinstance(verdict := decide(error, policy, runs), RetryAfter) and verdict.counted:
        runs += 1
    assert runs <= policy.attempts


@pytest.mark.parametrize("delay", [1e300, float("inf")])
def test_a_delay_that_is_too_long_to_travel_is_cut(delay: float) -> None:
    policy = Retry(2, backoff=lambda _: delay, max_delay=float("inf"), jitter=False)
    verdict = decide(ERROR, policy, 1)
    assert isinstance(verdict, RetryAfter)
    assert verdict.delay == LONGEST_DELAY


@given(message=st.text(max_size=2000))
def test_a_reason_is_one_line_that_can_travel(message: str) -> None:
    verdict = decide(ValueError(message + "\ud800\nline"), MORE, 1)
    assert isinstance(verdict, RetryAfter)
    assert "\n" not in verdict.reason
    verdict.reason.encode()


def test_an_error_that_cannot_be_printed_has_a_reason_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise SystemExit

    verdict = decide(Mute(), MORE, 1)
    assert isinstance(verdict, RetryAfter)
    assert "whose str() fails" in verdict.reason
