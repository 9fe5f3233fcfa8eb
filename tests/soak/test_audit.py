"""What the soak's account makes of what was written down."""

import pytest

from tests.soak.audit import Account, Mark, Outage

BEGUN = Mark(10.0, "key", "H:host-1:7", 100, False)
ENDED = Mark(10.5, "key", "H:host-1:7", 100, True)
AGAIN = Mark(12.0, "key", "H:host-1:7", 200, False)


def test_a_mark_is_read_as_it_was_written() -> None:
    assert [Mark.from_line(mark.to_line().decode()) for mark in (BEGUN, ENDED)] == [BEGUN, ENDED]


def test_a_promise_without_a_run_that_ended_is_missing() -> None:
    account = Account(promised={"key", "other"})
    assert account.missing([BEGUN]) == {"key", "other"}
    assert account.missing([BEGUN, ENDED]) == {"other"}


def test_a_run_without_a_reason_is_told_with_its_marks() -> None:
    (reason,) = Account().repeated([BEGUN, ENDED, AGAIN])
    assert reason.startswith("no reason")
    assert repr(AGAIN) in reason


def test_a_kill_between_two_runs_is_the_reason_of_the_second() -> None:
    account = Account(workers={100: Outage(11.0, 11.5)})
    assert account.repeated([BEGUN, AGAIN]) == {"its worker was killed": 1}


@pytest.mark.parametrize("outage", [Outage(8.0, 9.0), Outage(13.0, 14.0)])
def test_a_kill_before_or_after_both_is_no_reason(outage: Outage) -> None:
    account = Account(workers={100: outage}, servers={"H:host-1": [outage]})
    (reason,) = account.repeated([BEGUN, AGAIN])
    assert reason.startswith("no reason")


def test_an_outage_of_the_first_runs_server_is_a_reason_and_one_of_another_server_is_none() -> None:
    down = [Outage(11.0, 11.5)]
    assert Account(servers={"H:host-1": down}).repeated([BEGUN, AGAIN]) == {"its server was down": 1}
    (reason,) = Account(servers={"H:host-2": down}).repeated([BEGUN, AGAIN])
    assert reason.startswith("no reason")


def test_a_run_that_a_server_gave_out_before_it_went_may_begin_after_its_repetition() -> None:
    late = Mark(12.0, "key", "H:host-2:7", 200, False)
    account = Account(servers={"H:host-2": [Outage(9.0, 13.0)]})
    assert account.repeated([BEGUN, late]) == {"its server was down": 1}


def test_a_caller_that_could_not_know_is_a_reason() -> None:
    account = Account(submitted_again={"key"})
    assert account.repeated([BEGUN, AGAIN]) == {"its caller submitted it again": 1}
