"""A log of events that others cause: its lines are few, and its counts are right."""

import logging
from collections.abc import Callable

import pytest

from gearflow.runtime.log_bursts import FEW, LONGEST, MOST, BurstLog

REFUSED = "refused a connection"


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        self._timers.append((self.now + seconds, call))

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self._timers and (first := min(self._timers, key=lambda timer: timer[0]))[0] <= end:
            self._timers.remove(first)
            self.now = first[0]
            first[1]()
        self.now = end

    @property
    def is_idle(self) -> bool:
        return not self._timers


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> BurstLog:
    return BurstLog(logging.getLogger("tests.bursts"), clock.time, clock.call_later)


def counts(caplog: pytest.LogCaptureFixture) -> list[int]:
    """The counts of the records that sum a burst up."""
    return [vars(record)["count"] for record in caplog.records if hasattr(record, "count")]


def test_a_few_records_are_logged_as_they_are(log: BurstLog, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(FEW):
        log.warning("refused %d bytes", number, peer="127.0.0.1")
    assert [record.getMessage() for record in caplog.records] == [f"refused {n} bytes" for n in range(FEW)]
    assert vars(caplog.records[0])["peer"] == "127.0.0.1"


def test_a_burst_ends_with_its_count(log: BurstLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(100_000):
        log.warning(REFUSED, peer="127.0.0.1")
    clock.pass_time(2)
    assert [record.getMessage() for record in caplog.records] == [REFUSED] * FEW + [f"repeated: {REFUSED}"]
    assert vars(caplog.records[-1])["count"] == 100_000 - FEW
    assert vars(caplog.records[-1])["seconds"] == 1


def test_a_burst_that_goes_on_has_a_count_now_and_then(
    log: BurstLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(1000):
        for _ in range(100):
            log.warning(REFUSED)
        clock.pass_time(0.1)
    clock.pass_time(2 * LONGEST)
    assert sum(counts(caplog)) == 100_000 - FEW
    assert len(caplog.records) < FEW + 100 / LONGEST + 8


def test_after_a_quiet_period_records_are_logged_again(
    log: BurstLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2 * FEW):
        log.warning(REFUSED)
    clock.pass_time(10)
    caplog.clear()
    log.warning(REFUSED)
    assert [record.getMessage() for record in caplog.records] == [REFUSED]


def test_each_cause_has_its_own_burst(log: BurstLog, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(1000):
        log.warning("refused %d bytes", number)
    log.warning(REFUSED)
    log.log(logging.ERROR, "refused another", cause=REFUSED)
    assert len(caplog.records) == FEW + 2


def test_any_number_of_causes_is_few_records_and_little_memory(
    log: BurstLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(100_000):
        log.warning(f"refused {number}")
    assert len(caplog.records) == MOST + FEW
    clock.pass_time(2)
    assert counts(caplog) == [100_000 - MOST - FEW]


def test_the_counts_are_logged_at_the_end(log: BurstLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(FEW + 3):
        log.warning(REFUSED)
    log.flush()
    log.flush()
    assert counts(caplog) == [3]


def test_no_timer_runs_while_nothing_is_logged(log: BurstLog, clock: Clock) -> None:
    log.warning(REFUSED)
    clock.pass_time(10)
    assert clock.is_idle
    logging.getLogger("tests.bursts").setLevel(logging.ERROR)
    log.warning(REFUSED)
    logging.getLogger("tests.bursts").setLevel(logging.NOTSET)
    assert clock.is_idle
