"""Functions: the waiting jobs of each by priority, its uniques, its sleeping workers."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from gearflow.broker.counts import FunctionCounts
from gearflow.broker.held import HeldJobs, Lane, SuspectLanes
from gearflow.broker.job import HIGH, LOW, NORMAL, JobState, QueuedJob
from gearflow.broker.policies import JobPolicy

if TYPE_CHECKING:
    from gearflow.broker.limited_queue import LimitedQueue
    from gearflow.broker.session import Session

_FEW: Final = 32
"""Shells of ended jobs that a function may hold before a sweep."""


NO_LANE: Final[Lane] = deque()
"""In place of a lane that has had no job: most functions use one priority, and a name should cost little."""


class Sleep:
    """One PRE_SLEEP of a worker. It is over when the session's ``sleep`` is another one, or none.

    Two sleeps of one worker are not equal. (No tuple: they would be, and mypyc gives a tuple no identity.)
    """

    __slots__ = ("session",)

    def __init__(self, session: Session) -> None:
        self.session = session


class FunctionQueue:
    """One function's jobs and workers. Owns state.

    A lane gives out its jobs first in, first out. A job that ends while it waits is not searched for: it
    stays in its lane as an empty shell. No shell is ever first in a lane, so a lane that is not empty has a
    job, and a sweep keeps the shells fewer than the jobs.

    In the same way a worker that wakes is not searched for among the sleepers.

    While it ``holds``, its kept jobs are not in the lanes but in ``held``.
    """

    __slots__ = (
        "counts",
        "delayed",
        "guarded",
        "has_keys",
        "held",
        "holds",
        "lanes",
        "limited",
        "limits",
        "listeners",
        "name",
        "parked",
        "paused",
        "policy",
        "running",
        "served",
        "shells",
        "shells_of",
        "sleepers",
        "stopped",
        "storing",
        "suspects",
        "waiting",
        "waiting_grabs",
        "wakes",
        "workers",
    )

    def __init__(self, name: bytes, counts: FunctionCounts) -> None:
        self.name = name
        self.counts = counts
        self.lanes: list[Lane] = [NO_LANE, NO_LANE, NO_LANE]  # by priority: high, normal, low
        self.shells = 0  # in all lanes
        self.shells_of = [0, 0, 0]  # in each lane
        self.waiting = 0  # jobs in the lanes that may be given out
        self.paused = False  # no job is given out
        self.parked = 0  # jobs in the lanes of a paused function
        self.holds = False  # no kept job is given out
        self.held: HeldJobs | None = None  # if it has set jobs aside for that
        self.limited: LimitedQueue | None = None  # if it has limits: in place of the lanes
        self.stopped = False  # it is paused, or holds, or has limits
        self.suspects: SuspectLanes | None = None  # that wait, if there was one: see ``suspects``
        self.running = 0
        self.policy: JobPolicy | None = None
        self.delayed: dict[QueuedJob, None] = {}
        self.storing = 0  # on their way to the store
        self.limits: tuple[int | None, int | None, int | None] | None = None  # of ``total``, by priority
        self.has_keys = False  # its limits have to see a job before it is stored
        self.guarded = False  # it has either of these
        self.served = 0  # when a worker of several functions last took a job from here
        self.workers = 0  # connections that can do it
        self.listeners: dict[ReadyFunctions, None] | None = None  # of workers that offer many functions
        self.waiting_grabs: dict[Session, None] = {}  # whose GRABs are held, in the order they came
        self.sleepers: deque[Sleep] | None = None  # in their order: the first is woken first; some are over
        self.wakes = 0  # sleepers that were sent NOOP for this function, and have not reacted yet

    @property
    def total(self) -> int:
        """Jobs delayed, waiting and running, and those on their way to the store."""
        return self.all_waiting + self.running + len(self.delayed) + self.storing

    @property
    def all_waiting(self) -> int:
        """Jobs that wait, whether or not they may be given out."""
        waiting = self.waiting + self.parked + (self.held.waiting if self.held is not None else 0)
        return waiting if self.suspects is None else waiting + len(self.suspects)

    @property
    def is_stopped(self) -> bool:
        """Whether none of its jobs, or none of its kept jobs, is given out."""
        return self.paused or self.holds

    @property
    def in_use(self) -> bool:
        """Whether it has jobs, workers, or settings."""
        if self.limits or self.policy is not None or self.limited is not None:
            return True
        return bool(self.workers or self.total or self.paused)

    def pop(self) -> QueuedJob:
        """The first job of the highest priority. There must be one (``waiting``)."""
        self.waiting -= 1
        high, normal, low = self.lanes
        lane = high or normal or low
        job = lane.popleft()
        if self.shells:
            self._strip(job.priority)
        return job

    def open_lane(self, priority: int) -> Lane:
        """The lane of a priority, which may have had no job yet."""
        lane = self.lanes[priority]
        if lane is NO_LANE:
            lane = self.lanes[priority] = deque()
        return lane

    def admit(self, job: QueuedJob) -> bool:
        """A job is queued while the function is stopped. If it may not be given out, it waits here."""
        if self.holds:
            if self.held is None and job.kept:
                self.held = HeldJobs()
            if self.held is not None and self.held.takes(job):
                return False
        if self.paused:
            self.open_lane(job.priority).append(job)
            self.parked += 1
        return not self.paused

    def forget(self, job: QueuedJob) -> None:
        """A waiting job, already marked OVER, leaves its lane."""
        if self.suspects is not None and self.suspects.remove(job):
            return
        if self.limited is not None:
            self.limited.forget(job)
            return
        if self.held is not None and self.held.forgets(job):
            return
        self._add_to_lanes(-1)
        self.shells += 1
        self.shells_of[job.priority] += 1
        self._strip(job.priority)
        self._sweep()

    def take_out(self, job: QueuedJob) -> None:
        """A WAITING job leaves its lane, and is to wait elsewhere. This looks at all jobs of the lane."""
        if self.suspects is not None and self.suspects.remove(job):
            return
        if self.limited is not None:
            self.limited.take_out(job)
            return
        self.lanes[job.priority].remove(job)
        self._add_to_lanes(-1)
        self._strip(job.priority)

    def _add_to_lanes(self, count: int) -> None:
        """So many more jobs are in the lanes."""
        if self.paused:
            self.parked += count
        else:
            self.waiting += count

    def _sweep(self) -> None:
        """Remove all shells if there are more of them than jobs."""
        if self.shells > self.waiting + self.parked + _FEW:
            for lane in self.lanes:
                jobs = [job for job in lane if job.state is JobState.WAITING]
                lane.clear()
                lane.extend(jobs)
            self.shells = 0
            self.shells_of = [0, 0, 0]

    def tidy(self) -> None:
        """Nobody uses it: keep as little memory as possible."""
        self.lanes = [NO_LANE, NO_LANE, NO_LANE]
        self.held = None
        self.suspects = None
        self.sleepers = None

    def pause(self) -> None:
        """Give out no more jobs."""
        self.paused = self.stopped = True
        if self.limited is not None:
            self.limited.publish()
            return
        self.parked += self.waiting
        self.waiting = 0

    def resume(self) -> None:
        """Give out jobs again."""
        self.paused = False
        if self.limited is not None:
            self.limited.opened()
            return
        self.stopped = self.holds
        self.waiting = self.parked
        self.parked = 0
        self._report_all()

    def _report_all(self) -> None:
        """Jobs of any priority may have come."""
        if self.listeners is not None and self.waiting:
            for ready in self.listeners:
                ready.add_all(self)

    # ------------------------------------------------------- while another server may have the kept jobs

    def hold(self) -> None:
        """Give out no more kept jobs. The attached ones can be given out once all jobs are sorted."""
        if self.holds:
            return
        self.holds = self.stopped = True
        if self.limited is not None:
            self.limited.publish()
            return
        if self.waiting or self.parked:
            self.held = HeldJobs()
            self.held.add_lanes(self.lanes, self.shells_of)
            self.lanes = [NO_LANE, NO_LANE, NO_LANE]
            self.shells_of = [0, 0, 0]
            self.waiting = self.parked = self.shells = 0

    def sort(self) -> Iterator[None]:
        """Put the attached jobs back into the lanes, in steps."""
        held = self.held
        while held is not None and held is self.held and not held.is_sorted:
            yield from held.sort()
            lanes = held.take_attached()
            if lanes is not None:
                for priority, lane in enumerate(lanes):
                    if lane:
                        self.lanes[priority] = lane
                        self._add_to_lanes(len(lane))
                self._report_all()

    def hold_back(self, job: QueuedJob) -> None:
        """A job that waits has become a kept job. If there are jobs to sort, it is found there."""
        if not self.holds or self.limited is not None or (self.held is not None and not self.held.is_sorted):
            return
        if self.suspects is not None and job in self.suspects:
            return
        self.lanes[job.priority].remove(job)
        self._add_to_lanes(-1)
        self._strip(job.priority)
        if self.held is None:
            self.held = HeldJobs()
        self.held.kept[job.priority].append(job)

    def release(self) -> None:
        """Give out kept jobs again. Those that were held, and are sorted, come before the others."""
        self.holds = False
        if self.limited is not None:
            self.limited.opened()
            return
        self.stopped = self.paused
        held, self.held = self.held, None
        if held is None:
            return
        waiting = held.waiting
        if not waiting:
            return
        self._add_to_lanes(waiting)
        for priority, kept in enumerate(held.kept):
            if held.waiting_of(priority):
                kept.extend(self.lanes[priority])
                self.lanes[priority] = kept
                self.shells += held.ended[priority]
                self.shells_of[priority] += held.ended[priority]
                self._strip(priority)
        self._sweep()
        self._report_all()

    def _strip(self, priority: int) -> None:
        """Remove the shells from the head of a lane."""
        lane = self.lanes[priority]
        while lane and lane[0].state is not JobState.WAITING:
            lane.popleft()
            self.shells -= 1
            self.shells_of[priority] -= 1

    def waiting_of(self, priority: int) -> int:
        """Jobs that wait in the lane of a priority, whether or not they may be given out."""
        suspects = self.suspects.count(priority) if self.suspects is not None else 0
        if self.limited is not None:
            return self.limited.count_of[priority] + suspects
        held = self.held.waiting_of(priority) if self.held is not None else 0
        return len(self.lanes[priority]) - self.shells_of[priority] + held + suspects

    def waiting_jobs(self) -> list[QueuedJob]:
        """The jobs that wait, and those that are delayed."""
        if self.limited is not None:
            return [*self.limited.jobs(), *(self.suspects or ()), *self.delayed]
        waiting = [job for lane in self.lanes for job in lane if job.state is JobState.WAITING]
        held = self.held.jobs() if self.held is not None else ()
        return [*held, *waiting, *(self.suspects or ()), *self.delayed]

    def oldest(self) -> float | None:
        """Since when the job that has waited longest could have run. None if no job waits."""
        firsts = [lane[0] for lane in self.lanes if lane]
        if self.limited is not None:
            firsts += self.limited.firsts()
        if self.held is not None:
            firsts += self.held.firsts()
        if self.suspects is not None:
            firsts += self.suspects.firsts()
        return min([job.ready for job in firsts], default=None)

    # ----------------------------------------------------------------------------------------- limits

    def limit_by(self, queue: LimitedQueue) -> None:
        """Limits hold from now on. Its jobs wait in their queue."""
        holds = self.holds
        if holds:
            self.release()
        queue.backlog = [lane if lane is not NO_LANE else deque() for lane in self.lanes]
        queue.count_of = [len(lane) - self.shells_of[place] for place, lane in enumerate(self.lanes)]
        queue.count = self.parked = self.waiting + self.parked
        self.lanes = [NO_LANE, NO_LANE, NO_LANE]
        self.shells = self.waiting = 0
        self.shells_of = [0, 0, 0]
        self.limited = queue
        self.holds = holds
        self.stopped = True

    def unlimit(self, jobs: list[Lane], count_of: list[int]) -> None:
        """No limits hold any more. Its jobs are in its lanes again, of which some have ended."""
        self.limited = None
        self.lanes = [lane or NO_LANE for lane in jobs]
        self.shells_of = [len(lane) - count for lane, count in zip(jobs, count_of, strict=True)]
        self.shells = sum(self.shells_of)
        self.waiting = self.parked = 0
        self._add_to_lanes(sum(count_of))
        for priority in range(3):
            self._strip(priority)
        self._sweep()
        self.stopped = self.paused
        if self.holds:
            self.holds = False
            self.hold()
        self._report_all()

    def set_admission(self, has_keys: bool) -> None:
        """Set whether its limits have to see a job before it is stored."""
        self.has_keys = has_keys
        self.guarded = has_keys or self.limits is not None

    def has_job(self) -> bool:
        """Whether a job may be given out, other than a suspect."""
        return bool(self.waiting) and (self.limited is None or self.limited.look() is not None)

    def needs_wake(self) -> bool:
        """Whether it has jobs to give out to more workers than were woken."""
        if self.waiting <= self.wakes:
            return False
        limited = self.limited
        return limited is None or (limited.look() is not None and limited.room() > self.wakes)

    def has_waiting(self, priority: int) -> bool:
        """Whether a job of that priority may be given out."""
        if self.limited is not None:
            return self.limited.offers(priority)
        return bool(self.waiting and self.lanes[priority])

    # ------------------------------------------------------------------------------------ sleepers

    def add_sleeper(self, sleep: Sleep) -> None:
        """A worker that can do it sleeps."""
        sleepers = self.sleepers
        if sleepers is None:
            sleepers = self.sleepers = deque()
        sleepers.append(sleep)
        if len(sleepers) > _FEW and len(sleepers) > 2 * self.workers + _FEW:
            self.sleepers = deque(sleep for sleep in dict.fromkeys(sleepers) if self._sleeps(sleep))

    def take_sleeper(self) -> Session | None:
        """The worker that has slept longest, if one sleeps. It is to be woken."""
        sleepers = self.sleepers
        while sleepers:
            sleep = sleepers.popleft()
            session = sleep.session
            if session.sleep is sleep and self in session.abilities:
                return session
        return None

    def _sleeps(self, sleep: Sleep) -> bool:
        return sleep.session.sleep is sleep and self in sleep.session.abilities

    # ---------------------------------------------------------------- workers that offer many functions

    def add_listener(self, ready: ReadyFunctions) -> None:
        """A worker that offers many functions offers this one too."""
        if self.listeners is None:
            self.listeners = {}
        self.listeners[ready] = None
        ready.add_all(self)

    def remove_listener(self, ready: ReadyFunctions) -> None:
        """The worker does not offer it any more."""
        ready.remove(self)
        if self.listeners is not None:
            self.listeners.pop(ready, None)
            if not self.listeners:
                self.listeners = None

    def report(self, priority: int) -> None:
        """The first job of that priority has come."""
        for ready in self.listeners or ():
            ready.add(self, priority)

    def turn(self) -> tuple[int, int]:
        """The order of functions that have jobs: the best priority first, then the longest unserved."""
        if self.limited is not None:
            line = self.limited.look()
            return (line.group.priority if line is not None else LOW), self.served
        high, normal, _ = self.lanes
        return (HIGH if high else NORMAL if normal else LOW), self.served

    def full(self, priority: int) -> bool:
        """Whether the function's limit admits no other job of that priority."""
        limit = self.limits[priority] if self.limits else None
        return limit is not None and self.total >= limit


class ReadyFunctions:
    """Of a worker that offers many functions, those that may have jobs, in the order of their turns.

    It would take long to look at all functions for each GRAB. So a function reports when the first job of a
    priority comes. Nobody reports that the last one is gone: that is seen when the function has its turn.
    """

    __slots__ = ("_by_priority", "_session")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._by_priority: list[OrderedDict[FunctionQueue, None]] = [OrderedDict() for _ in range(3)]
        for function in session.abilities:
            function.add_listener(self)

    def add(self, function: FunctionQueue, priority: int) -> None:
        """A function has jobs of a priority. If it was served before all others, it comes first."""
        ready = self._by_priority[priority]
        if function in ready:
            return
        is_first = bool(ready) and function.served < next(iter(ready)).served
        ready[function] = None
        if is_first:
            ready.move_to_end(function, last=False)
        sleep = self._session.sleep
        if sleep is not None:
            function.add_sleeper(sleep)

    def add_all(self, function: FunctionQueue) -> None:
        """A function may have jobs of any priority."""
        if function.waiting:
            for priority in range(3):
                if function.has_waiting(priority):
                    self.add(function, priority)

    def remove(self, function: FunctionQueue) -> None:
        """The worker does not offer a function any more."""
        for ready in self._by_priority:
            ready.pop(function, None)

    def settle(self, most: int) -> bool:
        """Forget functions that have no jobs any more. False if there may be more than so many of them."""
        for priority, ready in enumerate(self._by_priority):
            while ready:
                function = next(iter(ready))
                if function.has_waiting(priority):
                    return True
                if not most:
                    return False
                most -= 1
                del ready[function]
        return True

    def take(self) -> FunctionQueue | None:
        """The function whose turn it is, if one has jobs. It comes last from now on."""
        self.settle(-1)
        for ready in self._by_priority:
            if ready:
                function = next(iter(ready))
                ready.move_to_end(function)
                return function
        return None

    def has_jobs(self) -> bool:
        """Whether a function has jobs, once everything is settled."""
        return any(self._by_priority)
