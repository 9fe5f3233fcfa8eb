"""Decides which worker processes there are, and which are to go: pure.

A fleet has places. In each of them at most one process serves, and at most one starts, which takes its
place as soon as it is ready. Only then the process before gets the order to stop, and leaves when it has
finished what it runs. So a place that was served is served at every moment.

A process that wants to retire is replaced like that. So is all old code, one place after the other. If new
code does not start, nothing changes: the process before stays. A process that dies leaves its place empty,
and ``Restarts`` says for how long.

A process gets a ping at regular intervals, to see whether its event loop runs. It has hung when it has not
answered so many pings in a row. No clock decides that: where the supervisor was stopped as well (a suspended
machine, a frozen container) it has sent no pings, so nothing is held against the processes. The pings begin
when the process has *started*, which is before it can have a job. It may import modules and enter lifespan
hooks for as long as it likes. A process that has to stop gets none, which ``drain`` is for.

``ProcessManager`` gets what happened, and returns orders, which the supervisor carries out. Times are seconds
on one clock, whose zero does not matter.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf
from signal import SIGKILL, SIGTERM
from typing import Final, TypeAlias

from gearflow.backoff import Backoff

GRACE: Final = 5.0
"""Seconds beyond ``drain`` after which a process that has not stopped is killed."""

LEAVE_GRACE: Final = 4.0
"""Seconds that a process has to leave cold; by itself it takes 2 at most."""

PINGS: Final = 6
"""A process that has not answered so many in a row has hung. At half of them the log says so."""

MISCONFIGURED: Final = 78
"""The exit code of a process that cannot start as it is configured, now or ever."""

_BURST_CODES: Final = (0, 1, 69)
"""Of a worker that has done all there was: without failures, with a failed task, without a server."""

STABLE: Final = 30.0
"""Seconds of service after which a death says nothing about the next process."""

LOOP: Final = 5
"""Deaths in a row that make a crash loop."""

_BACKOFF: Final = Backoff(first=0.25, most=60.0)


@dataclass(frozen=True)
class _ForProcess:
    number: int  # of the process


class Start(_ForProcess):
    """Start a process, and call it by this number."""


class Stop(_ForProcess):
    """Have a process finish what it runs, and end."""


class StopCold(_ForProcess):
    """Have a process end at once, and its jobs handed on."""


class Kill(_ForProcess):
    """Kill a process."""


class Quiet(_ForProcess):
    """Have a process take nothing new for now."""


class Resume(_ForProcess):
    """Have a quiet process take jobs again."""


class CheckAlive(_ForProcess):
    """Ask a process whether its event loop runs."""


class Silent(_ForProcess):
    """Log that the event loop of a process seems to be blocked, and where."""


class Hung(_ForProcess):
    """Log that it has been blocked for too long, and that the process is killed."""


class StopTimedOut(_ForProcess):
    """Log that a process should have ended, and has not, and is killed."""


class Misconfigured(_ForProcess):
    """Log that a process cannot start, nor any other: the fleet ends with exit code 78."""


class CrashLoop(_ForProcess):
    """Log that in a burst the processes of a place die so quickly that it is left to the other places."""


class ReloadFailed(_ForProcess):
    """Log that the new code does not start, and that the old one goes on."""


@dataclass(frozen=True)
class Lost(_ForProcess):
    """Log that a process died, and when the next one starts."""

    restart: "Restart | None"
    """``None``: another one is starting already."""


@dataclass(frozen=True)
class Serving:
    """Log that all places are served for the first time."""


@dataclass(frozen=True)
class Reloaded:
    """Log that all places are served by the new code."""


@dataclass(frozen=True)
class Exit:
    """End with this exit code: no process is left."""

    code: int


News: TypeAlias = (
    Serving | Reloaded | ReloadFailed | Lost | CrashLoop | StopTimedOut | Misconfigured | Silent | Hung
)
Order: TypeAlias = Start | Stop | StopCold | Kill | Quiet | Resume | CheckAlive | Exit | News


@dataclass(frozen=True, slots=True)
class Restart:
    """The next start, in so many seconds."""

    after: float
    looping: bool


class Restarts:
    """Counts the quick deaths of the processes that had one place after the other. Owns state.

    A process that had served for a while is started again almost at once. Deaths in a row, before it served
    or shortly after, come from what will most likely kill the next one as well. Each waits twice as long as
    the one before. From ``LOOP`` on it is a crash loop, and waits the longest. It is never given up: the
    cause may be a database that is away, and a fleet that waits needs nobody to start it again.
    """

    __slots__ = ("_deaths",)

    def __init__(self) -> None:
        self._deaths = 0

    def died(self, served: float | None, jitter: float) -> Restart:
        """The next start after a process died that had served so many seconds; ``None``: not at all.

        ``jitter`` (0 to 1) takes off up to half of the wait, so that a fleet does not return all at once.
        """
        if served is not None and served >= STABLE:
            self._deaths = 0
        self._deaths += 1
        looping = self._deaths >= LOOP
        return Restart(_BACKOFF.delay(64 if looping else self._deaths, jitter), looping)

    def forget(self) -> None:
        """There is new code, of which nothing is known."""
        self._deaths = 0


class Phase(Enum):
    """Where a process is in its life."""

    STARTING = auto()
    SERVING = auto()
    LEAVING = auto()
    """It has to stop."""


@dataclass(slots=True)
class _Place:
    restarts: Restarts = field(default_factory=Restarts)
    due: float = inf  # when a process is started here
    done: bool = False  # there is nothing left to do for it


@dataclass(slots=True)
class _Member:
    number: int
    place: _Place
    generation: int  # of the code
    phase: Phase = Phase.STARTING
    has_started: bool = False  # its event loop answers, and it may have a job
    served_from: float | None = None
    retiring: bool = False
    deadline: float = inf  # when it is killed
    unanswered: int = 0  # pings in a row


class ProcessManager:
    """The processes of one fleet. Owns their state; call ``tick`` when it is ``due``.

    Args:
        places: How many processes serve.
        drain: Seconds that a warm stop may take; ``None``: as long as it takes.
        burst: The processes end by themselves when there is nothing left to do.
        jitter: A number from 0 to 1.
    """

    def __init__(
        self,
        places: int,
        *,
        drain: float | None = None,
        burst: bool = False,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._places = [_Place() for _ in range(places)]
        self._members: dict[int, _Member] = {}
        self._drain = inf if drain is None else drain
        self._burst = burst
        self._jitter = jitter
        self._started = 0
        self._generation = 0
        self._reloading = False
        self._announced = False
        self._has_served = False  # any process, ever
        self._quiet = False
        self._stops = 0  # signals that stop it
        self.stopping = False
        """Nothing is started any more."""
        self._stop_code = 0  # that of the last of them
        self._forced: int | None = None  # the exit code, if something was cut short
        self._burst_codes: set[int] = set()
        self._orders: list[Order] = []

    @property
    def due(self) -> float:
        """When ``tick`` has something to do; infinity for never."""
        starts = (place.due for place in self._places)
        return min((*starts, *(member.deadline for member in self._members.values())))

    @property
    def serving(self) -> int:
        """How many processes serve."""
        return sum(member.phase is Phase.SERVING for member in self._members.values())

    # ------------------------------------------------------------------------- what happens to processes

    def begin(self) -> list[Order]:
        """The fleet is wanted."""
        for place in self._places:
            self._start(place)
        return self._drain_orders()

    def started(self, number: int, now: float) -> None:
        """A process has imported its modules and entered its lifespan hooks. From now on it may have a
        job."""
        member = self._members[number]
        if member.has_started:
            return
        member.has_started = True
        if member.deadline < inf and self._stops < 2:  # it has to stop, and may have a job after all
            member.deadline = now + self._drain + GRACE

    def ready(self, number: int, now: float) -> list[Order]:
        """A server knows what a process can do."""
        self.started(number, now)
        member = self._members[number]
        if member.phase is not Phase.STARTING:
            return []
        before = self._in(member.place, Phase.SERVING)
        member.phase = Phase.SERVING
        member.served_from = now
        self._has_served = True
        if before is not None:
            self._stop(before, now)
        if not self._announced and self.serving == len(self._places):
            self._announced = True
            self._orders.append(Serving())
        self._continue_reload()
        return self._drain_orders()

    def retiring(self, number: int) -> list[Order]:
        """A process wants to be replaced."""
        member = self._members[number]
        if member.phase is Phase.SERVING and not member.retiring:
            member.retiring = True
            if self._in(member.place, Phase.STARTING) is None:
                self._start(member.place)
        return self._drain_orders()

    def ping(self) -> list[Order]:
        """Check whether the processes have hung. Call it at regular intervals."""
        for member in self._remaining():
            if not member.has_started:
                continue
            if member.unanswered < PINGS:
                self._orders.append(CheckAlive(member.number))
            if member.unanswered == PINGS // 2:
                self._orders.append(Silent(member.number))
            elif member.unanswered == PINGS:  # it keeps its place until it has ended: it did not leave
                self._orders += [Hung(member.number), Kill(member.number)]
            member.unanswered += 1
        return self._drain_orders()

    def answered(self, number: int) -> None:
        """The event loop of a process runs."""
        self._members[number].unanswered = 0

    def ended(self, number: int, code: int, now: float) -> list[Order]:
        """A process has ended: its exit code, or minus the number of the signal that killed it."""
        member = self._members.pop(number)
        place = member.place
        before = self._in(place, Phase.SERVING)
        if code not in _BURST_CODES and member.has_started:
            self._burst_codes.add(1)  # its jobs may have killed it, once too often
        if self._burst and code in _BURST_CODES:
            self._burst_codes.add(code)
            place.done = self.stopping or not self._is_taken(place)
        elif self.stopping:
            if (
                self._forced is None
                and code != 0
                and (member.has_started or code not in (-SIGTERM, -SIGKILL))
            ):
                self._forced = self._stop_code
        elif member.phase is Phase.LEAVING:
            pass
        elif code == MISCONFIGURED and not self._has_served:
            self._orders.append(Misconfigured(number))
            self._forced = MISCONFIGURED
            self._give_up()
            for other in self._members.values():
                self._kill(other)
        elif before is not None:
            self._replacement_failed(member, before, now)
        else:
            self._replace_dead(member, now)
        self._continue_reload()
        self._finish()
        return self._drain_orders()

    # ------------------------------------------------------------------------------ operator's commands

    def reload(self, now: float) -> list[Order]:
        """There may be new code: replace all processes, one place after the other.

        Those that are only starting may have read the code before, which may keep them from ever being ready.
        """
        if self.stopping:
            return []
        self._generation += 1
        self._reloading = True
        for member in list(self._with(Phase.STARTING)):
            self._stop(member, now)
        for place in self._places:
            place.restarts.forget()
            if not self._is_taken(place) and not place.done:
                self._start(place)
        self._continue_reload()
        return self._drain_orders()

    def quiet(self) -> list[Order]:
        """Take nothing new."""
        self._quiet = True
        return [Quiet(member.number) for member in self._remaining()]

    def resume(self) -> list[Order]:
        """Take jobs again."""
        self._quiet = False
        return [Resume(member.number) for member in self._remaining()]

    def stop(self, signal: int, now: float) -> list[Order]:
        """A signal that stops: the first one warm, the second one cold, any further one at once."""
        self._stops += 1
        self._stop_code = 128 + signal
        if self._stops == 1:
            for member in self._remaining():
                self._stop(member, now)
        else:
            self._forced = self._stop_code
            for member in self._members.values():
                if self._stops == 2 and member.phase is Phase.LEAVING:
                    member.deadline = now + LEAVE_GRACE
                    self._orders.append(StopCold(member.number))
                else:
                    self._kill(member)
        self._give_up()
        self._finish()
        return self._drain_orders()

    def tick(self, now: float) -> list[Order]:
        """Time has passed."""
        for member in self._members.values():
            if member.deadline <= now:
                self._orders.append(StopTimedOut(member.number))
                self._kill(member)
        for place in self._places:
            if place.due <= now:
                self._start(place)
        return self._drain_orders()

    # ---------------------------------------------------------------------------------------- the steps

    def _start(self, place: _Place) -> None:
        self._started += 1
        place.due = inf
        self._members[self._started] = _Member(self._started, place, self._generation)
        self._orders.append(Start(self._started))
        if self._quiet:
            self._orders.append(Quiet(self._started))

    def _stop(self, member: _Member, now: float) -> None:
        # One that has not started has no job, but perhaps code that hangs.
        member.deadline = now + GRACE + (self._drain if member.has_started else 0.0)
        member.phase = Phase.LEAVING
        self._orders.append(Stop(member.number))

    def _kill(self, member: _Member) -> None:
        member.phase = Phase.LEAVING
        member.deadline = inf
        self._orders.append(Kill(member.number))

    def _replacement_failed(self, member: _Member, before: _Member, now: float) -> None:
        """A process died before it could take the place of one that stays."""
        restart = member.place.restarts.died(None, self._jitter()) if before.retiring else None
        if restart is not None:
            member.place.due = now + restart.after
        if self._reloading:
            self._reloading = False
            self._orders.append(ReloadFailed(member.number))
            self._continue_retiring()
        else:
            self._orders.append(Lost(member.number, restart))

    def _replace_dead(self, member: _Member, now: float) -> None:
        """A process died, and its place is empty now, or another one is starting there."""
        place = member.place
        if self._is_taken(place):
            self._orders.append(Lost(member.number, None))
            return
        served = None if member.served_from is None else now - member.served_from
        restart = place.restarts.died(served, self._jitter())
        if self._burst and restart.looping:
            self._burst_codes.add(1)
            place.done = True
            self._orders.append(CrashLoop(member.number))
        else:
            place.due = now + restart.after
            self._orders.append(Lost(member.number, restart))

    def _continue_reload(self) -> None:
        """Start the replacement of the next process of old code, if nothing else is starting."""
        if not self._reloading or any(self._with(Phase.STARTING)):
            return
        old = next((each for each in self._with(Phase.SERVING) if each.generation < self._generation), None)
        if old is not None:
            self._start(old.place)
        elif all(place.done or self._in(place, Phase.SERVING) for place in self._places):
            self._reloading = False
            self._orders.append(Reloaded())

    def _continue_retiring(self) -> None:
        """Start again the replacements of processes that want to retire, which the reload has stopped."""
        for retiring in [member for member in self._with(Phase.SERVING) if member.retiring]:
            if retiring.place.due == inf and self._in(retiring.place, Phase.STARTING) is None:
                self._start(retiring.place)

    def _give_up(self) -> None:
        """From now on processes only end."""
        self.stopping = True
        self._reloading = False
        for place in self._places:
            place.due = inf

    def _finish(self) -> None:
        if self._members or not (self.stopping or all(place.done for place in self._places)):
            return
        if self._forced is not None:
            self._orders.append(Exit(self._forced))
        elif self._burst and 1 in self._burst_codes:
            self._orders.append(Exit(1))
        else:
            self._orders.append(Exit(69 if self._burst_codes == {69} else 0))

    # ------------------------------------------------------------------------------------------- queries

    def _with(self, phase: Phase) -> Iterator[_Member]:
        return (member for member in self._members.values() if member.phase is phase)

    def _in(self, place: _Place, phase: Phase) -> _Member | None:
        return next((member for member in self._with(phase) if member.place is place), None)

    def _is_taken(self, place: _Place) -> bool:
        return any(
            member.place is place and member.phase is not Phase.LEAVING for member in self._members.values()
        )

    def _remaining(self) -> list[_Member]:
        return [member for member in self._members.values() if member.phase is not Phase.LEAVING]

    def _drain_orders(self) -> list[Order]:
        orders, self._orders = self._orders, []
        return orders
