"""What a task raises to say what is to become of its job."""

import pickle
from datetime import timedelta

import pytest

from gearflow.errors import TaskFailed
from gearflow.tasks import Discard, Fail, Snooze, TryAgain
from gearflow.tasks.control_flow import Control
from gearflow.tasks.remote_errors import decode_failure, encode_failure


@pytest.mark.parametrize(
    ("control", "text"),
    [
        (TryAgain(), "to be tried again"),
        (TryAgain(after=30), "to be tried again after 30 s"),
        (Snooze(timedelta(minutes=1)), "to be run in 60 s"),
        (Discard("the account is closed"), "the account is closed"),
        (Discard(), "discarded"),
        (Fail("no such order"), "no such order"),
    ],
)
def test_they_say_what_they_want_and_can_be_pickled(control: Control, text: str) -> None:
    assert str(control) == text
    again = pickle.loads(pickle.dumps(control))
    assert (type(again), str(again), vars(again)) == (type(control), text, vars(control))


def test_durations_are_seconds() -> None:
    assert TryAgain().after is None
    assert TryAgain(timedelta(minutes=1)).after == 60
    assert Snooze(0.5).seconds == 0.5


@pytest.mark.parametrize("wrong", [-1, float("nan"), "soon", True])
def test_what_is_no_duration_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="after="):
        TryAgain(wrong)
    with pytest.raises(ValueError, match="seconds="):
        Snooze(wrong)


@pytest.mark.parametrize("control", [TryAgain(3), Snooze(3), Discard("no"), Fail("no")])
def test_they_are_not_raised_at_a_caller(control: Control) -> None:
    failure = decode_failure(encode_failure(control), "H:1")
    assert type(failure) is TaskFailed
    assert not isinstance(failure, Control)
    assert failure.message == str(control)
