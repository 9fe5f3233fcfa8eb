"""Jobs that other servers have, at a store that several servers share.

A server sees of them what the store has: that they are there, their kept parts, and at last what became of
them. Nothing tells it when that changes. So a call that waits for such a job looks again after each
``SECONDS``. All calls look in the same turn, so the store is asked for all of it at once. A call also looks
again when this server adopts the job, and waits for it from then on as for any other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from gearflow.broker.core import Core
from gearflow.broker.parts import PartLog, far_log
from gearflow.broker.session import Session
from gearflow.broker.storage import PENDING, Answer, HeadOf, Pending, Question, RecordOf
from gearflow.broker.streams import Streams
from gearflow.broker.turns import Steps
from gearflow.errors import StoreError

SECONDS: Final = 1.0
"""From one look to the next."""


class FarWaiter:
    """A call that is to look again."""

    __slots__ = ("call", "resume", "session", "waiting")

    def __init__(
        self, session: Session, call: bytes, resume: Callable[[], None], waiting: dict[FarWaiter, None]
    ) -> None:
        self.session = session
        self.call = call  # its handle
        self.resume = resume
        self.waiting = waiting
        waiting[self] = None
        session.waits[call] = self

    def is_waiting(self) -> bool:
        """Whether it has not looked again."""
        return self in self.waiting

    def stop(self) -> None:
        """Look no more."""
        self.waiting.pop(self, None)
        if self.session.waits.get(self.call) is self:
            del self.session.waits[self.call]

    def look(self) -> None:
        """Look again."""
        if self.is_waiting():
            self.stop()
            self.resume()


class FarJobs:
    """Has calls look again. Owns those that wait for that, and the logs of far jobs that are read."""

    def __init__(self, core: Core, streams: Streams) -> None:
        self._core = core
        self._streams = streams
        self._waiting: dict[FarWaiter, None] = {}
        self._logs: dict[int, PartLog] = {}
        self._is_set = False  # a timer is

    def owner(self, number: int) -> str:
        """The address of the server that has a job, as far as this one knows."""
        group = self._core.group
        return group.owner(number) if group is not None else ""

    def wait(
        self, session: Session, call: bytes, resume: Callable[[], None], until: float | None = None
    ) -> None:
        """Have a call look again: at a certain time at the latest, in Unix time."""
        if not session.is_open:
            return
        waiter = FarWaiter(session, call, resume, self._waiting)
        self._set()
        if until is not None:
            self._core.timers.add(until, waiter.look, waiter.is_waiting)

    def log(self, number: int, run: int, after: int) -> PartLog:
        """A log of the parts of a far job, which are at the store. It may have some after that position."""
        log = self._logs.get(number)
        if log is None or log.run != run:
            if log is not None:
                self._streams.lose(log)
            log = self._logs[number] = far_log(number, run)
        log.available = max(log.available, after + 1)
        self._set()
        return log

    def _set(self) -> None:
        if not self._is_set:
            self._is_set = True
            self._core.timers.add(self._core.clock.unix() + SECONDS, self._look, _always)

    def _look(self) -> None:
        self._is_set = False
        self._core.turns.run(self._look_all())
        if self._waiting or self._logs:
            self._set()

    def _look_all(self) -> Steps:
        for waiter in list(self._waiting):
            waiter.look()
            yield
        for number, log in list(self._logs.items()):
            if not log.readers:
                if self._logs.get(number) is log:
                    del self._logs[number]
            elif number in self._core.jobs.by_number:
                self._lose(log)
            else:
                self._streams.look_further(log)
                self._ask(RecordOf(number), partial(self._on_record, log))
            yield

    def _ask(self, question: Question, done: Callable[[Answer | Pending], None]) -> None:
        answer = self._core.journal.ask(question, done)
        if answer is not PENDING:
            done(answer)

    def _on_record(self, log: PartLog, answer: Answer | Pending) -> None:
        """What became of a job that is read. Its readers look again once it has ended."""
        if answer is None:
            self._ask(HeadOf(log.number), partial(self._on_head, log))
        else:
            self._on_head(log, None if not isinstance(answer, StoreError) else answer)

    def _on_head(self, log: PartLog, answer: Answer | Pending) -> None:
        if answer is None:
            self._lose(log)

    def _lose(self, log: PartLog) -> None:
        if self._logs.get(log.number) is log:
            del self._logs[log.number]
            self._streams.lose(log)


def _always() -> bool:
    return True
