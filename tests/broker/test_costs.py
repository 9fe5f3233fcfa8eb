"""n requests cost n times one, with n jobs, functions or connections around them, in turns of any length."""

import sys
from math import inf
from types import FrameType
from typing import Any

import pytest

from gearflow.protocol import packets as p
from tests.broker import costs
from tests.broker.costs import Shell, Turn
from tests.broker.limit_costs import LIMIT_KINDS, ONE, grab, keyed, limit, submit, use

KINDS = {**costs.KINDS, **LIMIT_KINDS}

FEW = 150


class CountingShell(Shell):
    """Counts bytecodes: all of them, and those of the longest turn."""

    def __init__(self, late_after: float = inf) -> None:
        super().__init__(late_after)
        self.steps = self.most = 0

    def time(self, call: Turn) -> None:
        before = self.steps
        super().time(call)
        self.most = max(self.most, self.steps - before)

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self.steps += event == "opcode"
        return self.trace


def counted(name: str, count: int, late_after: float = inf) -> CountingShell:
    """A shell that has counted what the requests of a kind take."""
    shell = CountingShell(late_after)
    work = KINDS[name].prepare(shell, count)
    next(work)
    shell.most = 0
    before = sys.gettrace()
    sys.settrace(shell.trace)
    try:
        next(work, None)
    finally:
        sys.settrace(before)
    return shell


@pytest.mark.parametrize("name", KINDS)
def test_twice_as_many_requests_take_twice_as_many_steps(name: str) -> None:
    assert counted(name, 2 * FEW).steps < 2.5 * counted(name, FEW).steps


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.few])
def test_a_request_about_twice_as_many_things_takes_no_longer_turns(name: str) -> None:
    turns = [counted(name, count, late_after=-1).most for count in (4 * FEW, 8 * FEW)]
    assert turns[1] < 1.2 * turns[0] + 2 * FEW  # a step for each would be twice as many more at least


def outcome(name: str, late_after: float) -> tuple[list[bytes], int, int, list[bytes]]:
    """What is sent, and what is left, when each turn is late after so many seconds."""
    shell = Shell(late_after)
    work = KINDS[name].prepare(shell, FEW)
    next(work)
    shell.sent = []
    next(work, None)
    core = shell.broker.core
    left = sorted(core.functions.by_name)
    return sorted(shell.sent), len(core.jobs.by_number), len(core.timers), left


@pytest.mark.parametrize("name", KINDS)
def test_in_however_many_turns_work_is_done_the_outcome_is_the_same(name: str) -> None:
    assert outcome(name, late_after=-1) == outcome(name, late_after=inf)


def steps_of_starts(keys: int, jobs: int) -> int:
    """What it takes to start a hundred jobs, beside so many that wait under so many keys."""
    shell = CountingShell()
    limit(shell, ONE)
    use(shell, keyed("/k"))
    submit(shell, jobs, keys)
    worker = grab(shell, keys)  # all keys are full
    running = [*worker.running]
    before = sys.gettrace()
    sys.settrace(shell.trace)
    try:
        for _ in range(100):
            shell.send(worker, p.WorkComplete(running.pop(0), b""), p.GrabJob())
            running.append(next(reversed(worker.running)))
    finally:
        sys.settrace(before)
    return shell.steps


def test_to_start_a_job_costs_as_much_among_thousands_of_keys_as_among_ten() -> None:
    assert steps_of_starts(5000, 20_000) < 1.1 * steps_of_starts(10, 1100)
