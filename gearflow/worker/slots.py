"""How many GRABs to keep in flight at which server, and when to sleep. Pure: no socket, no clock, no await.

A worker has a number of slots and connections to several servers. A slot is free, promised to a GRAB in
flight, or taken by a run. **Invariant:** these three sum up to the number of slots. There are never more
GRABs in flight, over all servers, than there are slots for the jobs they may bring, so a worker never holds
a job that it cannot start.

Each connection has a ``ServerSlots``. It *wants* GRABs, and is granted them as slots are free:

* after registration, and after a NOOP, it wants one, and goes to the front of the queue, because a server
  that sends NOOP has a job that waits;
* after JOB_ASSIGN it wants two more: the number of GRABs in flight doubles with every round trip while
  there is work, and a single job costs one GRAB too many instead of one for each slot;
* after NO_JOB it wants none. When its last GRAB in flight has come back empty it sends PRE_SLEEP and
  waits for the NOOP.

Connections that want more than they were granted stand in one queue and get a slot each in turn, so a busy
server never keeps the slots from the others. A connection whose empty GRAB gave its slot to another one
still sleeps. Its NOOP then brings it to the front.

A job may be *held*: it waits here between two runs, without a slot. When its time has come it claims one.
Free slots go to claims first, because a server that has a job may give it to another worker, and a job that
is held here can run nowhere else.

A run may be *alone*: the server says that its job may kill the worker. From then on no GRAB is granted to
any server, and no claim. The run begins when the other runs have ended and the GRABs in flight are answered.
It has its slot like all others. Several such runs, of several servers, begin one after the other.

A worker that stops is not idle before it holds none, unless runs that
overran have all the slots, perhaps for ever.

Two kinds of servers need more than that:

* gearmand 1.1 with a delayed job in front of one of low priority answers PRE_SLEEP with NOOP and GRAB
  with NO_JOB over and over. A NOOP that comes at once, several times in a row without a job, is
  answered later and later, up to a second.
* gearmand before 2.0 wakes nobody when a delayed job falls due. A sleeping connection with a ``poll``
  interval asks again by itself. It is set for every server that is not gearflow's, so for gearmand 2.0 too.

Times are seconds of any monotonic clock and come in as ``now``.

The jobs of a batch task come by connections of their own, which share the room of one batch and a single slot
(``gearflow.worker.batch_slots``). They stand in the queue as one.
"""

from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final, TypeAlias

Begin: TypeAlias = Callable[[], object]

NOOP_REPLY: Final = 0.01
"""Seconds: a NOOP that comes sooner after PRE_SLEEP answers it, a later one reports a new job."""

EMPTY_ROUNDS: Final = 4
"""So many wake-ups without a job are nothing unusual: gearmand wakes every sleeper for each job."""

FIRST_PAUSE: Final = 0.001
LONGEST_PAUSE: Final = 1.0


class Queued:
    """What stands in the queue for slots. Owns state."""

    def __init__(self) -> None:
        self.wanted = 0  # GRABs it would like to be granted
        self.queued = False

    def accept(self) -> bool:
        """Take a slot for one more GRAB, if it is still wanted."""
        return False


class SlotAllocator:
    """The slots of a worker, shared by its connections. Owns state.

    Args:
        slots: How many there are.
        when_idle: Called once nothing runs, no job is held and no GRAB is in flight after ``stop``.
        noop_reply: Seconds after PRE_SLEEP within which a NOOP answers it.

    ``when_empty`` is called whenever a connection has nothing to do but to wait for its server's NOOP.
    """

    def __init__(
        self, slots: int, when_idle: Callable[[], None] = lambda: None, *, noop_reply: float = NOOP_REPLY
    ) -> None:
        self.slots = slots
        self.noop_reply = noop_reply
        self.free = slots  # neither promised to a GRAB in flight nor taken by a run
        self.overdue = 0  # taken by runs that were reported as timed out, and run on in their thread
        self.held = 0  # jobs that wait here for their next run
        self.stopped = False  # nothing new is taken
        self.is_quiet = False  # nor now, but later again
        self.alone: deque[Begin] = deque()  # the runs that are to be alone; the first one may have begun
        self._has_begun = False  # it has
        self.when_empty: Callable[[], object] = lambda: None
        self.parts: list[SlotAllocator] = []  # those of batch tasks, which stop with this
        self._claims: deque[Begin] = deque()  # of held jobs
        self._queue: deque[Queued] = deque()
        self._when_idle = when_idle

    def finished(self) -> None:
        """A run has ended; its slot goes to the connection whose turn it is."""
        self.free += 1
        self.grant()
        if self.stopped:
            self._check_idle()

    def begin_alone(self, begin: Begin) -> None:
        """A run is to be alone: ``begin`` is called once nothing else runs, perhaps at once."""
        self.alone.append(begin)
        self._check_alone()

    def end_alone(self, begin: Begin) -> None:
        """A run that was to be alone has ended, or does not begin any more. It still has its slot."""
        if self.alone[0] == begin:
            self._has_begun = False
        self.alone.remove(begin)
        for part in self.parts:
            part.grant()
        self.grant()

    def _check_alone(self) -> None:
        """Begin a run that is to be alone, if nothing else runs. Threads that run on are not waited for."""
        if not self._has_begun and self.free + self.overdue + len(self.alone) == self.slots:
            self._has_begun = True
            self.alone[0]()

    def overran(self) -> None:
        """A run lasts beyond its time. It keeps its slot, but nobody waits for it any more."""
        self.overdue += 1
        if self.alone:
            self._check_alone()
        self._check_idle()

    def overdue_finished(self) -> None:
        """A run that overran has come to its end."""
        self.overdue -= 1
        self.release(1)

    def hold(self) -> None:
        """A job stays here when its run, which still has its slot, will have ended."""
        self.held += 1

    def claim(self, begin: Begin) -> None:
        """A held job is to run: ``begin`` is called once it has a slot, perhaps at once."""
        self._claims.append(begin)
        self.grant()

    def drop(self, begin: Begin) -> None:
        """A held job is not to run here; ``begin`` is that of its claim, if there was one."""
        if begin in self._claims:
            self._claims.remove(begin)
        self.held -= 1
        self._check_idle()

    def stop(self) -> None:
        """Want nothing more. GRABs that were written are still answered, perhaps with a job."""
        self.stopped = True
        self._queue.clear()
        for part in self.parts:
            part.stop()
        self._check_idle()

    def quiet(self) -> None:
        """Grant no GRABs until ``resume``; those that were granted and not written are taken back."""
        self.is_quiet = True
        for part in self.parts:
            part.quiet()

    def resume(self) -> None:
        """Grant GRABs again."""
        self.is_quiet = False
        for part in self.parts:
            part.resume()
        self.grant()

    def withdraw(self, server: Queued) -> None:
        """A connection wants no more."""
        if server.queued:
            self._queue.remove(server)
            server.queued = False

    def enqueue(self, server: Queued, *, first: bool) -> None:
        """Put a connection into the queue: at its end, or before all others."""
        if server.queued and first:
            self._queue.remove(server)
        elif server.queued:
            return
        server.queued = True
        if first:
            self._queue.appendleft(server)
        else:
            self._queue.append(server)

    def grant(self) -> None:
        """Give free slots to held jobs, then promise them to those who want them, one each in turn."""
        if self.alone:
            self._check_alone()
            return
        queue, claims = self._queue, self._claims
        while claims and self.free:
            self.free -= 1
            self.held -= 1
            claims.popleft()()
        if self.is_quiet:
            return
        while self.free and queue:
            server = queue.popleft()
            if server.accept():
                self.free -= 1
            if server.wanted:
                queue.append(server)
            else:
                server.queued = False

    def release(self, slots: int) -> None:
        """Slots are free again."""
        self.free += slots
        self.grant()
        if self.stopped:
            self._check_idle()

    def _check_idle(self) -> None:
        hopeless = self.overdue == self.slots
        if self.stopped and self.free + self.overdue == self.slots and (hopeless or not self.held):
            self._when_idle()


class ServerSlots(Queued):
    """What one connection asks of its server. Owns state; a new connection begins with ``start``.

    ``wake`` is called whenever ``requests`` has something new to write. Calling it too often does no harm.
    """

    def __init__(self, allocator: SlotAllocator, wake: Callable[[], None]) -> None:
        super().__init__()
        self._allocator = allocator
        self.wake = wake
        self._poll: float | None = None
        self.in_flight = 0  # GRABs that hold a slot: written and unanswered, or granted
        self.granted = 0  # those among them that are not written yet
        self._started = False
        self._retired = False
        self._asleep = False
        self._slept_at = -inf
        self._empty_rounds = 0
        self._has_no_job = False  # as the server has answered since ``ask_again``
        self._once_more = False  # one more GRAB is due before it sleeps
        self.due = inf  # when ``requests`` is to be called though nothing happened

    @property
    def unanswered(self) -> int:
        """GRABs that were written and not answered."""
        return self.in_flight - self.granted

    @property
    def is_empty(self) -> bool:
        """The server had no job when it was asked after ``ask_again``, and has not called since."""
        return self._has_no_job and not self.in_flight and not self.wanted

    # ------------------------------------------------------------------------------- what happened

    def start(self) -> None:
        """The worker is registered on a new connection."""
        self._started = True
        self._has_no_job = False
        self._once_more = False
        self._poll = None
        self._asleep = False
        self._empty_rounds = 0
        self._want(1, first=True)

    def poll_every(self, seconds: float) -> None:
        """The server does not wake for everything: ask it now and then in spite of its silence."""
        self._poll = seconds
        if self._asleep:
            self.due = self._slept_at + seconds
            self.wake()

    def ask_again(self) -> None:
        """A job may have come to the server unnoticed: let the next GRAB find out."""
        self._has_no_job = False
        if self._asleep and not self.in_flight:
            self._want(1)
        else:
            self._once_more = True  # a GRAB in flight may have been answered before

    def assigned(self) -> None:
        """JOB_ASSIGN: the slot of the GRAB now is that of a run."""
        self.in_flight -= 1
        self._empty_rounds = 0
        if self.queued and not self._allocator.free:  # as under load: there is nothing to grant
            self.due = inf
            self.wanted = min(self.wanted + 2, self._allocator.slots)
        else:
            self._want(self.wanted + 2)

    def no_job(self) -> None:
        """NO_JOB: the slot is free, and there is no use in asking more."""
        self.in_flight -= 1
        self.wanted = 0
        self._allocator.release(1)
        if not self.in_flight:
            self.wake()

    def refused(self) -> None:
        """The server knows no such kind of GRAB: ask again in another way."""
        self.in_flight -= 1
        self._want(1, first=True)
        self._allocator.release(1)

    def noop(self, now: float) -> None:
        """NOOP: there may be a job."""
        if now - self._slept_at > self._allocator.noop_reply:
            self._empty_rounds = 0
        self._empty_rounds += 1
        self._asleep = False
        excess = self._empty_rounds - EMPTY_ROUNDS
        if excess > 0:
            self.due = now + min(FIRST_PAUSE * 2.0 ** min(excess - 1, 30), LONGEST_PAUSE)
            self.wake()
        else:
            self._want(max(self.wanted, 1), first=True)

    def retire(self) -> None:
        """Want nothing more. GRABs that were written are still answered, perhaps with a job."""
        self._retired = True
        self._started = False
        self.wanted = 0
        self.due = inf
        self._allocator.withdraw(self)
        slots, self.granted = self.granted, 0
        self.in_flight -= slots
        self._allocator.release(slots)

    def lost(self) -> None:
        """The connection is gone: its GRABs will not be answered. Runs keep their slots."""
        self._started = False
        self._asleep = False
        self.wanted = 0
        self.due = inf
        self.granted = 0
        slots, self.in_flight = self.in_flight, 0
        self._allocator.release(slots)

    # ---------------------------------------------------------------------------------- what to do

    def requests(self, now: float) -> tuple[int, bool]:
        """How many GRABs to write now, and whether to write PRE_SLEEP."""
        if now >= self.due:
            self._want(max(self.wanted, 1))
        grabs = self.granted
        if grabs:
            self.granted = 0
            if self._allocator.stopped or self._allocator.is_quiet or self._allocator.alone:
                self.in_flight -= grabs
                self._want(self.wanted + grabs)
                self._allocator.release(grabs)
                return 0, False
            self._asleep = False
            return grabs, False
        if self._may_sleep():
            if self._once_more:
                self._once_more = False
                self._want(1)
                return self.requests(now)
            self._has_no_job = True
            self._allocator.when_empty()
            self._asleep = True
            self._slept_at = now
            self.due = inf if self._poll is None else now + self._poll
            return 0, True
        return 0, False

    def accept(self) -> bool:
        """Take a slot for one more GRAB, if it is still wanted."""
        if not self.wanted:
            return False
        self.wanted -= 1
        self.in_flight += 1
        self.granted += 1
        self.wake()
        return True

    def _may_sleep(self) -> bool:
        return (
            self._started
            and not self._asleep
            and not self.in_flight
            and not self.wanted
            and self.due == inf
            and not self._allocator.stopped
        )

    def _want(self, grabs: int, *, first: bool = False) -> None:
        self.due = inf
        if self._allocator.stopped or self._retired:
            return
        self.wanted = min(grabs, self._allocator.slots)
        self._allocator.enqueue(self, first=first)
        self._allocator.grant()
