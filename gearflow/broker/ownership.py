"""Which kept jobs are this server's, at a store that several servers share.

The jobs of a lot come with it (``adopt``) and go with it (``disown``). While the server cannot know whether
it still owns its lots, it gives out no kept job (``hold``). Attached jobs are in no lot: they are not kept,
so no other server can have them.

All of that is long work, which is done in turns. But what must not happen ends at once: from when ``hold`` or
``disown`` returns, no kept job is given out that may be another server's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from gearflow.broker.core import Core
from gearflow.broker.dispatch import Dispatcher
from gearflow.broker.endings import Endings
from gearflow.broker.functions import FunctionQueue
from gearflow.broker.handles import lot_of
from gearflow.broker.job import JobState, QueuedJob
from gearflow.broker.lifecycle import Lifecycle
from gearflow.broker.recent_ends import RecentEnds
from gearflow.broker.storage import (
    PENDING,
    Answer,
    Forgotten,
    HeadOf,
    Pending,
    StoredJob,
    StoredParts,
)
from gearflow.broker.turns import MANY, Steps
from gearflow.errors import StoreError
from gearflow.protocol.uniques import is_fresh


class Ownership:
    """Has kept jobs come and go. Owns which lots are on their way out, and which jobs the store may have."""

    def __init__(self, core: Core, endings: Endings, dispatcher: Dispatcher, lifecycle: Lifecycle) -> None:
        self._jobs = core.jobs
        self._functions = core.functions
        self._handles = core.handles
        self._journal = core.journal
        self._turns = core.turns
        self._endings = endings
        self._dispatcher = dispatcher
        self._lifecycle = lifecycle
        self._recent_ends = core.recent_ends or RecentEnds()
        self._is_in_doubt = False
        self._leaving: dict[int, Steps] = {}  # lots that were lost: the steps until their jobs are gone
        self._doubts: dict[int, None] = {}  # jobs of this server that the store may have
        self._changes = 0  # of whether kept jobs are held

    def hold(self, on: bool) -> None:
        """Give out no kept jobs, or give them out again. Attached jobs go on."""
        self._is_in_doubt = on
        self._hold_or_release()

    def adopt(self, jobs: Iterable[StoredJob], parts: Mapping[int, StoredParts]) -> None:
        """The jobs of a lot that this server owns wait here from now on. They may come in several slices.

        A job whose number lives here already is not made again. It may be an attached job that could not be
        kept, as far as this server knew. Nor is one that has ended here meanwhile (``begin_read``).
        """
        for lot in self._handles.lots & self._leaving.keys():  # that were lost a moment ago
            for _ in self._leaving[lot]:
                pass
        for stored in jobs:
            live = self._jobs.by_number.get(stored.number)
            if live is None and stored.number in self._recent_ends:
                continue
            if live is None:
                self._lifecycle.restore(stored, parts.get(stored.number))
            elif live.cancelled:  # but its end was not kept
                self._journal.add(Forgotten(live.number, live.function.name, live.unique))
            elif not live.kept:
                live.background = live.kept = True
                if live.state is JobState.WAITING:
                    live.function.hold_back(live)

    def begin_read(self) -> None:
        """The store is about to be asked for jobs that are to be adopted. ``end_read`` follows."""
        self._recent_ends.begin_read()

    def end_read(self) -> None:
        """They are adopted."""
        self._recent_ends.end_read()

    # ------------------------------------------------------------------- jobs that the store may have

    def doubt(self, job: QueuedJob) -> None:
        """The store may have kept a job, or not. It is a job of this server in the first case.

        With a unique of its own, nobody else has been sent its handle, so it is forgotten. Else others may
        have joined it.
        """
        if not self._handles.owns(job.number):
            return
        if job.unique and not is_fresh(job.unique):
            self._doubts[job.number] = None
        else:
            self._journal.add(Forgotten(job.number, job.function.name, job.unique))

    def resolve(self) -> None:
        """The store answers again, and has all that it was sent before: look for the jobs in doubt."""
        for number in list(self._doubts):
            self._look_for(number)

    def find(self, number: int) -> None:
        """The store has a live job of that number. If it is this server's, it waits here from now on."""
        if self._handles.owns(number) and number not in self._jobs.by_number:
            self._doubts[number] = None
            self._look_for(number)

    def has_ended_here(self, number: int, other: QueuedJob) -> bool:
        """Whether a job has ended here, and the store does not have that yet. The other has its unique."""
        journal = self._journal
        names = other.function.name, other.unique
        return (
            self._handles.owns(number)
            and number not in self._jobs.by_number
            and (journal.has_end(number, *names) or journal.failed_end(number, *names) is not None)
        )

    def _look_for(self, number: int) -> None:
        self.begin_read()
        answer = self._journal.ask(HeadOf(number), partial(self._found, number))
        if answer is not PENDING:
            self._found(number, answer)

    def _found(self, number: int, answer: Answer | Pending) -> None:
        if number in self._doubts and not isinstance(answer, StoreError):
            del self._doubts[number]
            if isinstance(answer, StoredJob):
                self.adopt((answer,), {})
        self.end_read()

    # --------------------------------------------------------------------------------- lots that are lost

    def disown(self, lot: int, done: Callable[[], None] | None = None) -> None:
        """Another server owns a lot now, so its kept jobs go. Their runs and their clients hear of that.

        A job that is on its way to the store stays until the journal says that it is not kept. ``done`` is
        called when the others are gone.
        """
        self._handles.disown(lot)
        self._doubts = {number: None for number in self._doubts if lot_of(number) != lot}
        failed = self._journal.drain_failed()
        self._journal.put_back([entry for entry in failed if not _is_of(entry[0], lot)])
        if lot not in self._leaving:
            steps = self._leaving[lot] = self._disown(lot, done)
            self._hold_or_release()
            self._turns.run(steps)

    def _disown(self, lot: int, done: Callable[[], None] | None) -> Steps:
        for place, job in enumerate(list(self._jobs.by_number.values())):
            if job.kept and lot_of(job.number) == lot and job.state is not JobState.OVER:
                if job.state is JobState.STORING:
                    job.kept = False
                else:
                    self._endings.lose(job)
                yield
            elif not place % MANY:
                yield
        del self._leaving[lot]
        self._hold_or_release()
        if done is not None:
            done()

    # ------------------------------------------------------------------------------------------ holding

    def _hold_or_release(self) -> None:
        """Jobs are held while the server is in doubt, and while jobs of others are still here."""
        functions = self._functions
        holds = self._is_in_doubt or bool(self._leaving)
        if holds == functions.holding:
            return
        functions.holding = holds
        if holds:  # a few pointers for each function: 100,000 of them take about 20 ms
            for function in functions.by_name.values():
                function.hold()
        self._changes += 1
        self._turns.run(self._settle(self._changes))

    def _settle(self, change: int) -> Steps:
        """Do what a change of ``holding`` means for each function, until it changes again."""
        for function in list(self._functions.by_name.values()):
            for _ in self._settle_function(function):
                yield
                if self._changes != change:
                    return

    def _settle_function(self, function: FunctionQueue) -> Steps:
        """Sort the jobs that were set aside, and release them if nothing holds them any more."""
        yield from function.sort()
        if not self._functions.holding:
            function.release()
        yield from self._dispatcher.give_out(function)
        yield


def _is_of(change: object, lot: int) -> bool:
    """Whether a change is about a job of a lot."""
    number = getattr(change, "number", None)
    return number is not None and lot_of(number) == lot
