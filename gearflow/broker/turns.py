"""Long work in steps, so that no turn of the event loop takes long.

A turn is what the shell has the broker do at once: handle what a connection sent, see to its end, or see to
the time. Most turns take microseconds. A few requests are about many jobs, functions or connections, and a
connection may send many requests at once. Work of that kind is a generator of its steps. It goes on until
the turn is late, and the rest is done in later turns, with the work of others in between.

The broker has no clock, so the shell says when a turn is late. Where there is no shell, no turn is, and all
work is done at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gearflow.broker.session import Session

LONG: Final = 2
"""What a handler returns, in place of true or false, if it may have taken long."""

MANY: Final = 100
"""Connections, functions or jobs from which on a request counts as long."""

Steps = Iterator[None]


def _never() -> bool:
    return False


class Turns:
    """Work that continues in later turns. Owns the list of it.

    A generator is work of the broker. A session has sent more than was handled in its turn: ``Broker.resume``
    continues it.
    """

    def __init__(self) -> None:
        self.is_late: Callable[[], bool] = _never
        self.waiting: deque[Session | Steps] = deque()

    def run(self, steps: Steps) -> None:
        """Do work now, as much as the turn has time for; the rest continues in later turns."""
        for _ in steps:
            if self.is_late():
                self.waiting.append(steps)
                return

    def run_before_input(self, session: Session, steps: Steps) -> None:
        """As ``run``. If work remains, a session's further input waits until it is done."""
        for _ in steps:
            if self.is_late():
                session.pending_writes += 1
                session.blocks_pipeline += 1
                session.continues = True
                self.waiting.append(self._then_resume(session, steps))
                return

    def _then_resume(self, session: Session, steps: Steps) -> Steps:
        yield from steps
        session.pending_writes -= 1
        session.blocks_pipeline -= 1
        self.waiting.append(session)

    def resume_later(self, session: Session) -> None:
        """Have a session's input continue in a later turn."""
        if not session.continues:
            session.continues = True
            self.waiting.append(session)

    def next_session(self) -> Session | None:
        """Do some of the work that has waited longest. If a session is first, it is the shell's to resume."""
        first = self.waiting.popleft()
        if isinstance(first, Iterator):
            self.run(first)
            return None
        first.continues = False
        return first
