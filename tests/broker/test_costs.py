"""n requests cost n times one, with n jobs, functions or connections around them."""

import sys
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
