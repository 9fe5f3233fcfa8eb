"""The queue of what is to happen at a certain time, beside a model that is a sorted list."""

from collections.abc import Callable
from functools import partial
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from gearflow.broker.timers import TimerQueue

MANY = 20_000


def nothing() -> None:
    pass


def test_a_new_entry_has_few_others_tested() -> None:
    queue, tested = TimerQueue(), 0

    def is_valid() -> bool:
        nonlocal tested
        tested += 1
        return True

    for time in range(MANY):
        before = tested
        queue.add(float(time), nothing, is_valid)
        assert tested - before <= 3


def test_entries_that_became_invalid_are_removed_as_new_ones_come() -> None:
    queue, jobs = TimerQueue(), set[int]()

    def is_valid(job: int) -> bool:
        return job in jobs

    for job in range(MANY):
        jobs = {job}
        queue.add(1e9 + job, nothing, partial(is_valid, job))
    assert len(queue) < 2000


@given(st.integers(0, 10_000), st.integers(0, 100))
def test_what_is_valid_is_due_at_its_time_and_in_order(seed: int, percent: int) -> None:
    queue, random = TimerQueue(), Random(seed)
    entries = [(random.randrange(3001), random.randrange(100) < percent) for _ in range(2000)]
    done: list[tuple[int, int]] = []

    def action(time: int, place: int) -> Callable[[], None]:
        return lambda: done.append((time, place))

    def validity(valid: bool) -> Callable[[], bool]:
        return lambda: valid

    for place, (time, valid) in enumerate(entries):
        queue.add(float(time), action(time, place), validity(valid))
    expected = sorted((time, place) for place, (time, valid) in enumerate(entries) if valid)
    for now in (0, 1, 1500, 3000):
        for act in queue.due(float(now)):
            act()
        assert done == [(time, place) for time, place in expected if time <= now]
    assert len(queue) == 0
    assert queue.next_due() is None
