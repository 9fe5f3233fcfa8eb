"""The port to a local store, which answers at once.

Only bodies of ``large`` bytes or more would take too long for that. They are written and read in steps, and
the journal has the shell do these one by one (``Journal.work``).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from gearflow.broker.storage import (
    Answer,
    DeadOf,
    DeadTotal,
    EndedOf,
    HeadOf,
    JobOf,
    JobRecord,
    LatestOf,
    PartsOf,
    Question,
    RecordOf,
    Store,
    StoredJob,
    WholeRecordOf,
)
from gearflow.errors import StoreError


class LocalPort:
    """Adapts a ``Store``, which it does not own, to what the journal needs (``StorePort``)."""

    shared = False

    def __init__(self, store: Store) -> None:
        self.durable = store.durable
        self.large = store.large
        self._store = store
        self._begin: Callable[[Iterator[None]], None] | None = None

    def attach(self, begin: Callable[[Iterator[None]], None]) -> None:
        """The journal says how long work begins."""
        self._begin = begin

    def ask(self, question: Question, done: Callable[[Answer], None]) -> Answer:
        """Answer a question, in this call."""
        try:
            return self._answer(question)
        except StoreError as error:
            return error

    def ask_in_steps(self, question: JobOf | WholeRecordOf, done: Callable[[Answer], None]) -> None:
        """Call ``done`` with an answer that may have a large body, once it is read."""
        assert self._begin is not None
        self._begin(self._ask_in_steps(question, done))

    def _ask_in_steps(
        self, question: JobOf | WholeRecordOf, done: Callable[[Answer], None]
    ) -> Iterator[None]:
        done((yield from self.read(question)))

    def read(self, question: JobOf | WholeRecordOf) -> Generator[None, None, Answer]:
        """Answer a question about a large body in steps, which the caller takes."""
        try:
            if isinstance(question, JobOf):
                return (yield from self._store.fetch(question.number))
            return (yield from self._store.fetch_result(question.number))
        except StoreError as error:
            return error

    def write_ahead(self, change: StoredJob | JobRecord, done: Callable[[str | None], None]) -> None:
        """Write the large body of a change in steps; see ``StorePort``."""
        assert self._begin is not None
        self._begin(self._write_ahead(change, done))

    def _write_ahead(
        self, change: StoredJob | JobRecord, done: Callable[[str | None], None]
    ) -> Iterator[None]:
        fault: str | None = None
        try:
            yield from self._store.write_ahead(change)
        except StoreError as error:
            fault = str(error)
        done(fault)

    def reopen(self) -> None:
        """See ``StorePort``."""
        self._store.reopen()

    def _answer(self, question: Question) -> Answer:
        store = self._store
        match question:
            case JobOf(number):
                return store.job(number)
            case PartsOf(number, after, limit_bytes, limit):
                return store.parts(number, after, limit_bytes, limit)
            case RecordOf(number):
                return store.ended(number)
            case LatestOf(function, unique):
                return store.latest(function, unique)
            case HeadOf(number):
                return store.head(number)
            case DeadOf(function, after, limit, descending):
                return store.dead(function, after, limit, descending)
            case DeadTotal():
                return store.dead_total()
            case EndedOf():
                return store.ended_before(question)
            case WholeRecordOf():
                steps = self.read(question)
                while True:
                    try:
                        next(steps)
                    except StopIteration as end:
                        answer: Answer = end.value
                        return answer
