"""The window that a batch chooses itself, against workers of so many slots that a job takes so long on."""

import heapq

import pytest

from gearflow.tasks.mapping.inflight import BYTES, LEAST, MOST, Window


class Workers:
    """Runs the jobs of a batch in a time of its own. Its window is refilled as soon as a job ends."""

    def __init__(self, slots: int, seconds: float, *, payload: int = 100, result: int = 100) -> None:
        self.window = Window()
        self.most = 0
        self.seconds = seconds
        self.payload = payload
        self.result = result
        self._now = 1000.0
        self._free = [self._now] * slots  # when each slot is free
        self._ends: list[tuple[float, int]] = []
        self._submitted = 0

    def run(self, jobs: int) -> int:
        """The window after so many further jobs."""
        for _ in range(jobs):
            if (room := self.window.size - len(self._ends)) > 0:
                self._submit(room)
            self.most = max(self.most, len(self._ends))
            self._now, place = heapq.heappop(self._ends)
            self.window.ended({place}, [self.result], self._now)
        return self.window.size

    def _submit(self, count: int) -> None:
        self.window.submitted(self._submitted, [self.payload] * count, self._now)
        for place in range(self._submitted, self._submitted + count):
            end = max(heapq.heappop(self._free), self._now) + self.seconds
            heapq.heappush(self._free, end)
            heapq.heappush(self._ends, (end, place))
        self._submitted += count


def test_short_jobs_get_the_largest_window_soon() -> None:
    workers = Workers(10, 0.0001)
    assert workers.run(LEAST - 1) == LEAST
    assert workers.run(2_000) == MOST
    assert workers.run(20_000) == workers.most == MOST


@pytest.mark.parametrize("slots", [1, 4, 16])
def test_long_jobs_keep_the_least(slots: int) -> None:
    workers = Workers(slots, 2.0)
    workers.run(500)
    assert workers.most == LEAST


def test_long_jobs_get_a_window_for_all_slots() -> None:
    workers = Workers(200, 2.0)
    assert 200 <= workers.run(5_000) <= 600
    assert workers.most <= 600


def test_what_waits_is_worked_off_soon() -> None:
    workers = Workers(10, 0.005)
    size = workers.run(5_000)
    assert LEAST < size <= 10 * 0.1 / 0.005


def test_when_jobs_become_long_the_window_shrinks() -> None:
    workers = Workers(4, 0.0001)
    assert workers.run(5_000) == MOST
    workers.seconds = 1.0
    assert workers.run(6_000) == LEAST


@pytest.mark.parametrize(("payload", "result"), [(1 << 20, 0), (0, 1 << 20), (1 << 19, 1 << 19)])
def test_large_payloads_and_results_keep_it_small(payload: int, result: int) -> None:
    workers = Workers(10, 0.0001, payload=payload, result=result)
    workers.run(5_000)
    assert workers.most == LEAST


def test_what_is_in_flight_is_bounded_in_bytes() -> None:
    workers = Workers(10, 0.0001, payload=50_000, result=50_000)
    workers.run(5_000)
    assert LEAST < workers.most <= BYTES / 100_000
    workers.payload = 1_000_000
    workers.run(BYTES // 100_000)
    assert workers.window.size == LEAST


def test_a_window_that_was_given_stays() -> None:
    window = Window(7)
    window.submitted(0, [1 << 30], 1000.0)
    window.ended({0}, [1 << 30], 1000.1)
    assert window.size == 7
