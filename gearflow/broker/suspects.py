"""Suspects: jobs whose next death would be their last. A suspect runs alone.

A job that kills its worker takes the jobs beside it along: each of them counts a death too. Nobody can see
which one it was. So before the last death a job is given only to a connection that runs nothing else, and
that gets nothing else until the job has ended. If the worker dies then, it was that job.

**Setting apart.** A worker with many slots is hardly ever without a job by itself. So for the first suspect
of a function one connection is *set apart*, that with the fewest jobs. It gets no other job, and when its
last one has ended, it is called. Any other connection that asks for a job, and runs none, gets the suspect
too.

**Patience.** A connection that is set apart may take long to end its jobs, or may not ask at all. After
``PATIENCE`` another one is set apart as well, and so on. If that costs slots, half of the connections that
offer the function may be set apart at first, so that other jobs go on.

**Limits.** A suspect of a function with limits takes its places as all jobs do. Nobody is set apart for one
that may not start now. After ``PATIENCE`` no other job of its function starts before it.
"""

from __future__ import annotations

from itertools import islice
from math import inf
from typing import Final

from gearflow.broker.core import Core
from gearflow.broker.functions import FunctionQueue, Sleep
from gearflow.broker.held import SuspectLanes
from gearflow.broker.job import JobState, QueuedJob
from gearflow.broker.session import Session
from gearflow.protocol.constants import HEADER, RES, PacketType

PATIENCE: Final = 10.0
"""Seconds in which a connection that is set apart should have ended its jobs."""

SOON: Final = 0.02
"""Seconds in which a connection that was called should ask for a job."""

_LOOK: Final = 0.25
"""Seconds from one look to the next whether the limits of a function let a suspect start."""

_FIRST: Final = 32
"""Suspects of a function with limits that are looked at."""

_NOOP: Final = HEADER.pack(RES, PacketType.NOOP, 0)

_RUNNING: Final = JobState.RUNNING


class Alone:
    """Why a connection gets no other job: the suspect that it runs, or one of a function that waits."""

    __slots__ = ("function", "job")

    def __init__(self, function: FunctionQueue, job: QueuedJob | None) -> None:
        self.function = function
        self.job = job


class _Search:
    """For a function whose suspects wait: the connections that are set apart for them."""

    __slots__ = ("blocked", "due", "extra", "sessions")

    def __init__(self) -> None:
        self.sessions: dict[Session, None] = {}
        self.extra = 0  # how often patience has ended since the last suspect was given out
        self.due = inf  # when it ends
        self.blocked = 0.0  # since when limits let no suspect start; 0: they let one


class Suspects:
    """Finds a connection for each suspect. Owns which connections are set apart (``Session.alone``)."""

    def __init__(self, core: Core) -> None:
        self.exist = False
        """Whether a suspect waits or runs. While this is false, nothing here has to be called."""
        self._most = core.limits.deaths
        self._clock = core.clock
        self._limiter = core.limiter
        self._outgoing = core.outgoing
        self._sessions = core.sessions
        self._searches: dict[FunctionQueue, _Search] = {}  # all functions whose suspects wait
        self._apart: dict[Session, Alone] = {}

    # ------------------------------------------------------------------------------ jobs that wait

    def takes(self, job: QueuedJob) -> bool:
        """Take a job with deaths that begins to wait, if it is a suspect."""
        details = job.details
        if self._most is None or details is None or not details.deaths or details.deaths < self._most - 1:
            return False
        function = job.function
        if function.suspects is None:
            function.suspects = SuspectLanes()
        function.suspects.add(job)
        if function not in self._searches:
            self._searches[function] = _Search()
        self.exist = True
        self.arrange(function)
        return True

    def arrange(self, function: FunctionQueue) -> None:
        """Suspects of a function may wait, or may not any more: set connections apart, or let go of them."""
        search = self._searches.get(function)
        if search is None:
            return
        if not function.suspects or function.is_stopped:
            self._let_go(search)
            search.due = inf
            search.blocked = 0.0
            self._yield(function, False)
            if not function.suspects:
                del self._searches[function]
                self._update()
            return
        if self._startable(function) is None:
            self._wait_for_limits(function, search)
            return
        search.blocked = 0.0
        if len(search.sessions) > search.extra:
            return
        best = self._best(function)
        if best is None:
            search.due = inf  # until a worker comes, or one ends its suspect
        elif best.running and self._is_much(function, search):
            search.due = self._clock.now + PATIENCE
        else:
            self._set_apart(function, search, best)

    def _startable(self, function: FunctionQueue) -> QueuedJob | None:
        """The suspect whose turn it is, of those that may start now."""
        suspects = function.suspects
        if not suspects or function.is_stopped:
            return None
        queue = function.limited
        if queue is None:
            return suspects.first()
        for job in islice(suspects, _FIRST):
            if self._limiter.may_start(queue, job):
                return job
        return None

    def _wait_for_limits(self, function: FunctionQueue, search: _Search) -> None:
        """Look again soon. After a while, let no other job of the function start before."""
        now = self._clock.now
        self._let_go(search)
        search.due = now + _LOOK
        if not search.blocked:
            search.blocked = now
        elif now >= search.blocked + PATIENCE:
            self._yield(function, True)

    @staticmethod
    def _yield(function: FunctionQueue, yields: bool) -> None:
        queue = function.limited
        if queue is not None and queue.yields is not yields:
            queue.yields = yields
            queue.opened()

    def _best(self, function: FunctionQueue) -> Session | None:
        """The connection with the fewest jobs, and of those one that sleeps."""
        best: Session | None = None
        rank = (0, False)
        for session in self._sessions:
            if function in session.abilities and session.alone is None:
                its = (len(session.running), session.sleep is None)
                if best is None or its < rank:
                    best, rank = session, its
        return best

    def _is_much(self, function: FunctionQueue, search: _Search) -> bool:
        """Whether the other jobs of a function need the connections that are left."""
        apart = sum(alone.function is function for alone in self._apart.values())
        return apart >= (function.workers + 1) // 2 + search.extra

    def _set_apart(self, function: FunctionQueue, search: _Search, session: Session) -> None:
        self._outgoing.release_grab(session)
        session.alone = self._apart[session] = Alone(function, None)
        search.sessions[session] = None
        search.due = self._clock.now + (PATIENCE if session.running else SOON)
        if session.sleep is not None:
            if session.running:
                session.sleep = Sleep(session)  # which no function has among its sleepers
            else:
                self._call(session)

    def _let_go(self, search: _Search) -> None:
        """The connections that are set apart are not needed any more."""
        for session in list(search.sessions):
            self._free(session)

    def _call(self, session: Session) -> None:
        """Call a connection that sleeps."""
        session.sleep = None
        self._outgoing.send(session, _NOOP)

    # ------------------------------------------------------------------------ connections that ask

    def waits_for(self, session: Session) -> bool:
        """Whether a suspect waits that this connection may be given: it runs nothing."""
        return self._for(session) is not None

    def take(self, session: Session) -> QueuedJob | None:
        """The suspect for a connection that asks for a job, if there is one. It has no other job then."""
        job = self._for(session)
        if job is None:
            return None
        function = job.function
        assert function.suspects is not None
        function.suspects.remove(job)
        if function.limited is not None:
            self._limiter.start(function.limited, job)
            self._yield(function, False)
        before = session.alone
        if before is not None:
            self._searches[before.function].sessions.pop(session, None)
        session.alone = self._apart[session] = Alone(function, job)
        job.worker = session
        self._searches[function].extra = 0
        self.arrange(function)
        if before is not None and before.function is not function:
            self.arrange(before.function)
        return job

    def _for(self, session: Session) -> QueuedJob | None:
        """The suspect that a connection may be given."""
        if session.running or (session.alone is not None and session.alone.job is not None):
            return None
        best: QueuedJob | None = None
        for function in self._searches:
            if function in session.abilities:
                job = self._startable(function)
                if job is not None and (best is None or job.priority < best.priority):
                    best = job
        return best

    # ------------------------------------------------------------------- what happens to connections

    def ended(self, session: Session | None) -> None:
        """A job that a connection ran has ended, or is not its own any more."""
        if session is None or not session.is_open:
            return
        alone = session.alone
        if alone is not None and alone.job is not None:
            job = alone.job
            if job.state is not _RUNNING or job.worker is not session:
                self._free(session)
                self.arrange(alone.function)
        elif session.sleep is not None and self._for(session) is not None:
            self._call(session)
            if alone is not None:
                self._searches[alone.function].due = self._clock.now + SOON

    def offered(self, session: Session, function: FunctionQueue) -> None:
        """A worker offers a function whose suspects may wait."""
        if session.sleep is not None and session.alone is None and self._for(session) is not None:
            self._call(session)
        self.arrange(function)

    def withdrew(self, session: Session) -> None:
        """A worker has withdrawn functions."""
        alone = session.alone
        if alone is not None and alone.job is None and alone.function not in session.abilities:
            self._free(session)
            self.arrange(alone.function)

    def forget(self, session: Session) -> None:
        """The connection is closed."""
        alone = session.alone
        if alone is not None:
            self._free(session)
            self.arrange(alone.function)

    def _free(self, session: Session) -> None:
        """A connection may be given other jobs again."""
        alone = self._apart.pop(session)
        session.alone = None
        if alone.job is None:
            self._searches[alone.function].sessions.pop(session, None)
        if session.is_open and session.sleep is not None:
            self._rejoin(session, session.sleep)
        self._update()

    def _rejoin(self, session: Session, sleep: Sleep) -> None:
        """A connection that sleeps is one of the sleepers again, or is called if there is a job for it."""
        ready = session.ready
        if ready is not None:
            has_jobs = ready.has_jobs()  # if not, a function that reports a job adds it to its sleepers
        else:
            has_jobs = any(function.has_job() for function in session.abilities)
        if has_jobs or self._for(session) is not None:
            self._call(session)
        elif ready is None:
            for function in session.abilities:
                function.add_sleeper(sleep)

    def _update(self) -> None:
        self.exist = bool(self._searches or self._apart)

    # ----------------------------------------------------------------------------------------- time

    def tick(self) -> None:
        """Set another connection apart where patience has ended."""
        now = self._clock.now
        for function, search in list(self._searches.items()):
            if search.due <= now:
                search.due = inf
                if not search.blocked:
                    search.extra += 1
                self.arrange(function)

    def next_due(self) -> float | None:
        """When ``tick`` has something to do."""
        due = min((search.due for search in self._searches.values()), default=inf)
        return None if due == inf else due
