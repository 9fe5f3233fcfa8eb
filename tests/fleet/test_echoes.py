"""Which signal is the echo of another."""

import signal

from gearflow.fleet import Echoes


def test_a_signal_is_an_echo_for_a_moment_only() -> None:
    times = iter([10.0, 10.01, 10.04, 10.04, 10.5, 10.52])
    echoes = Echoes(clock=lambda: next(times))
    term, interrupt = signal.SIGTERM, signal.SIGINT
    heard = [echoes.has(number) for number in (term, term, term, interrupt, term, term)]
    assert heard == [False, True, True, False, False, True]
