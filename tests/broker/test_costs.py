"""n requests cost n times one, with n jobs, functions or connections around them, in turns of any length."""

import sys
from math import inf
from types import FrameType
from typing import Any

import pytest

from tests.broker.costs import KINDS, Shell

FEW = 150


def steps_of(name: str, count: int) -> int:
    """The bytecodes that the requests of a kind take."""
    steps = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        steps += event == "opcode"
        return trace

    work = KINDS[name].prepare(Shell(), count)
    next(work)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        next(work, None)
    finally:
        sys.settrace(before)
    return steps


@pytest.mark.parametrize("name", KINDS)
def test_twice_as_many_requests_take_twice_as_many_steps(name: str) -> None:
    assert steps_of(name, 2 * FEW) < 2.5 * steps_of(name, FEW)


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
