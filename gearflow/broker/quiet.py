"""Workers that an operator has made quiet: their runs go on, and the server gives them no other jobs.

A quiet connection offers nothing. What it has offered is set aside by name, and so is what it offers while it
is quiet. So every worker can be made quiet, whatever library it uses: to the worker it looks as if there were
no jobs. It asks, gets NO_JOB, and sleeps. When it is to go on, its functions are offered again, and it is
woken if a job waits. A connection that is not quiet costs nothing.

The state is the connection's. A worker that connects again is not quiet.
"""

from __future__ import annotations

from typing import Final

from gearflow.broker.core import Core
from gearflow.broker.dispatch import Dispatcher
from gearflow.broker.parser import Body, integer, name_in, split
from gearflow.broker.session import Session
from gearflow.broker.turns import Steps
from gearflow.protocol.constants import RESERVED_PREFIX, PacketType

_RESET: Final = int(PacketType.RESET_ABILITIES)


class QuietWorkers:
    """Makes workers quiet. Its handlers take the packets by which workers offer functions."""

    def __init__(self, core: Core, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._turns = core.turns
        self._clock = core.clock

    def set_quiet(self, session: Session, quiet: bool) -> bool:
        """Give a worker no more jobs, or give it jobs again. False if it was so before."""
        if session.quiet is quiet:
            return False
        session.quiet = quiet
        steps = self._put_aside(session) if quiet else self._bring_back(session)
        self._turns.run_before_input(session, steps)
        return True

    def _put_aside(self, session: Session) -> Steps:
        for function in list(session.abilities):
            timeout = session.abilities.get(function)
            if timeout is not None:
                session.set_aside[function.name] = timeout
            yield
        if session.quiet:
            self._dispatcher.reset_abilities(session, _RESET, b"")
        else:  # it was to go on meanwhile
            yield from self._bring_back(session)

    def _bring_back(self, session: Session) -> Steps:
        """Offer again what was set aside, the first function first."""
        while session.set_aside and session.is_open and not session.quiet:
            name = next(iter(session.set_aside))
            self._dispatcher.offer(session, name, session.set_aside.pop(name))
            yield

    # ------------------------------------------------------------------------------- packets of workers

    def can_do(self, session: Session, kind: int, body: Body) -> None:
        """CAN_DO: the worker offers a function."""
        self._offer(session, name_in(body), 0.0)

    def can_do_timeout(self, session: Session, kind: int, body: Body) -> None:
        """CAN_DO_TIMEOUT: the same, with a time limit for each run."""
        (name,), milliseconds = split(body, 1, kind)
        self._offer(session, name, integer(bytes(milliseconds)) / 1000)

    def _offer(self, session: Session, name: bytes, timeout: float) -> None:
        if not session.since:
            session.since = self._clock.unix()
        if session.quiet and not name.startswith(RESERVED_PREFIX):
            session.set_aside[name] = timeout
        else:
            self._dispatcher.offer(session, name, timeout)

    def cant_do(self, session: Session, kind: int, body: Body) -> None:
        """CANT_DO: the worker withdraws a function."""
        session.set_aside.pop(name_in(body), None)
        self._dispatcher.cant_do(session, kind, body)

    def reset_abilities(self, session: Session, kind: int, body: Body) -> int | None:
        """RESET_ABILITIES: the worker withdraws all functions."""
        session.set_aside.clear()
        return self._dispatcher.reset_abilities(session, kind, body)
