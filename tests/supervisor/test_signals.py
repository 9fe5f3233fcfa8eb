"""What SIGHUP is taken for.

Which signal is the echo of another.
"""

import signal
from collections.abc import Iterator

import pytest

from gearflow.supervisor import Echoes
from gearflow.supervisor.signals import Terminal


def test_a_signal_is_an_echo_for_a_moment_only() -> None:
    times = iter([10.0, 10.01, 10.04, 10.04, 10.5, 10.52])
    echoes = Echoes(clock=lambda: next(times))
    term, interrupt = signal.SIGTERM, signal.SIGINT
    heard = [echoes.has(number) for number in (term, term, term, interrupt, term, term)]
    assert heard == [False, True, True, False, False, True]


@pytest.fixture
def present() -> list[bool]:
    """Whether there is a terminal: the last one holds."""
    return [True]


@pytest.fixture
def ignored() -> Iterator[None]:
    """The signal is ignored, as ``nohup`` has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_closed_is_gone(present: list[bool]) -> None:
    terminal = Terminal(lambda: present[-1])
    assert not terminal.is_gone()
    present.append(False)
    assert terminal.is_gone()


def test_where_there_was_none_there_is_none_to_go(present: list[bool]) -> None:
    present.append(False)
    assert not Terminal(lambda: present[-1]).is_gone()


@pytest.mark.usefixtures("ignored")
def test_nohup_says_that_it_does_not_matter(present: list[bool]) -> None:
    terminal = Terminal(lambda: present[-1])
    present.append(False)
    assert not terminal.is_gone()
