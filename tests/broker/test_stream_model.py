"""Readers of one job against a naive model, whatever the worker, the readers and the store do in between.

Each part says its run and position. So a reader can check each part by itself. It is the one after those that
the reader has, or after the position that the server has just announced.
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gearflow.broker import SizeLimits
from gearflow.broker.parts import PartLog
from gearflow.protocol import packets as p
from gearflow.protocol.constants import WINDOW_BYTES, WINDOW_PARTS
from tests.broker.harness import Disk, Durable
from tests.broker.test_kept_parts import background
from tests.broker.test_streams import Stream, credit, listening, nothing_is_left, resuming, submit, yields

COUNTS = st.sampled_from([1, 2, 20, 64, 100, 300])
AHEAD = 5 << 20  # bytes of parts that are not taken, from which on the worker is not read
SIZES = st.sampled_from([0, 0, 0, 1000, 300_000, 3 << 20])


class LateStore(Durable):
    """The store answers when the test says so."""

    delayed = True

    def __init__(self, disk: Disk | None = None, limits: SizeLimits = SizeLimits()) -> None:  # noqa: B008  (frozen)
        super().__init__(disk, limits)
        self.prompt = False


@dataclass(eq=False)
class Seen:
    """A reader, and what it has seen."""

    stream: Stream
    waits: bool
    runs_from_start: bool  # it is to miss nothing of the first run that it sees
    position: int = -1  # before the first status
    run: int = 0
    joined_at: tuple[int, int] = (0, 0)  # the run, and what was taken of it when it came
    outstanding: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Positions and sizes of parts that were not taken."""
    end: object = None


class Readers(RuleBasedStateMachine):
    """One job, its worker, and readers that come and go."""

    kept = False

    def __init__(self, world: type[Durable] = Durable) -> None:
        super().__init__()
        self.world = world(limits=SizeLimits(deaths=None, parts_ahead=AHEAD))
        self.client = self.world.peer()
        self.readers: list[Seen] = []
        self.run, self.position = 1, 0
        self.told = 0
        self.dropped = False  # parts may be gone that a late reader wants
        self.over = False

    def teardown(self) -> None:
        if self.position >= 0 and not self.over:
            if self.log.blocked is not None and self.log.places:  # the end is not read until they come
                self.read(0, waits=True, own=True)
            self.end(b"r")
        for _ in range(100_000):
            if not any(self.take(seen, len(seen.outstanding)) for seen in self.readers):
                break
        for seen in self.readers:
            assert seen.end == p.WorkComplete(seen.stream.call, b"r")
            assert (seen.run, seen.position) == (self.run, self.position)
        self.client.leave()
        assert nothing_is_left(self.world)

    @initialize(waits=st.booleans(), stream_keep=st.sampled_from([0, 2000, 1 << 20, 16 << 20]))
    def begin(self, waits: bool, stream_keep: int) -> None:
        self.worker = listening(self.world)
        if self.kept:
            self.handle = background(self.world, stream_keep=stream_keep)
        else:
            self.handle = submit(self.client, "wait" if waits else "keep")
        assert self.worker.grab() == self.handle

    # ---------------------------------------------------------------------------------------- worker

    @precondition(lambda self: not self.over)
    @rule(count=COUNTS, size=SIZES)
    def yield_parts(self, count: int, size: int) -> None:
        """A worker need not care for its credit."""
        if size * count > 30 << 20 or self.worker.session.pending_writes:
            count = 1
        first = self.position + 1
        self.position += count
        parts = [b"%d.%d." % (self.run, n) + bytes(size) for n in range(first, self.position + 1)]
        yields(self.worker, self.handle, parts)
        self.dropped = True
        self.settle()

    @precondition(lambda self: not self.over and not self.worker.session.pending_writes)
    @rule(resumable=st.booleans())
    def die(self, resumable: bool) -> None:
        self.worker.leave()
        self.settle()
        self.worker = resuming(self.world) if resumable else listening(self.world)
        (packet,) = self.worker(p.GrabJob())
        assert isinstance(packet, p.JobAssign)
        if self.position and not resumable:
            self.run += 1
            self.position = 0
        self.told = self.position
        self.settle()

    @precondition(lambda self: not self.over and not self.worker.session.pending_writes)
    @rule()
    def complete(self) -> None:
        self.end(b"r")

    def end(self, result: bytes) -> None:
        self.over = True
        self.worker(p.WorkComplete(self.handle, result))
        self.settle()

    # --------------------------------------------------------------------------------------- readers

    @precondition(lambda self: not self.over and len(self.readers) < 4)
    @rule(after=st.sampled_from([0, 0, 3, 1000, "latest"]), waits=st.booleans(), own=st.booleans())
    def read(self, after: int | str, waits: bool, own: bool) -> None:
        peer = self.client if own else self.world.peer()
        lag = "wait" if waits else "skip"
        seen = Seen(Stream(peer, self.handle, after=after, lag=lag), waits, after == 0 and not self.dropped)
        seen.joined_at = self.log.run, self.log.taken
        self.readers.append(seen)
        self.settle()

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    def take_some(self, data: st.DataObject, share: float) -> None:
        seen = data.draw(st.sampled_from(self.readers))
        self.take(seen, int(share * len(seen.outstanding)))

    @rule()
    def commit(self) -> None:
        self.settle()

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        seen = data.draw(st.sampled_from(self.readers))
        if seen.end is None:
            assert seen.stream.leave() == 1
        self.readers.remove(seen)
        self.settle()

    def take(self, seen: Seen, count: int) -> bool:
        """It takes so many parts. Whether it got anything."""
        before = seen.run, seen.position, seen.end
        taken = seen.outstanding[:count]
        del seen.outstanding[:count]
        if seen.end is None and taken:
            for item in seen.stream.take(taken[-1][0]):
                self.see(seen, item)
        self.settle()
        return (seen.run, seen.position, seen.end) != before

    # ---------------------------------------------------------------------------------- what must hold

    @property
    def log(self) -> PartLog:
        (job,) = self.world.broker.jobs.by_number.values()
        return self.world.broker.streams.of(job)

    def settle(self) -> None:
        """All consequences, and what the readers are sent."""
        self.world.work()
        for seen in self.readers:
            for item in seen.stream.read():
                self.see(seen, item)

    def see(self, seen: Seen, item: object) -> None:
        assert seen.end is None
        match item:
            case (int(position), int(run)):
                if run == seen.run:
                    assert position > seen.position
                    assert not seen.waits  # else it misses nothing
                elif seen.run:
                    assert (position, run) >= (0, seen.run + 1)
                    assert position == 0 or not seen.waits
                elif seen.runs_from_start:
                    assert position == 0
                if run != seen.run:
                    seen.outstanding = []
                seen.position, seen.run = position, run
            case bytes(part):
                seen.position += 1
                assert part.rstrip(b"\0") == b"%d.%d." % (seen.run, seen.position)
                seen.outstanding.append((seen.position, len(part)))
                assert len(seen.outstanding) <= WINDOW_PARTS
                assert sum(size for _, size in seen.outstanding) <= WINDOW_BYTES or len(seen.outstanding) == 1
            case end:
                seen.end = end

    @invariant()
    def credit_is_what_is_taken(self) -> None:
        if self.over or not hasattr(self, "worker"):
            return
        for parts in credit(self.worker):
            assert parts > self.told
            self.told = parts
        log = self.log
        assert (log.run, log.position) <= (self.run, self.position)
        assert self.told <= max(log.taken, log.told)
        slow = [seen for seen in self.readers if seen.waits and seen.run == log.run]
        if not self.kept:
            for seen in slow:
                run, taken = seen.joined_at
                before = taken if run == log.run else 0  # that cannot be undone
                assert log.taken <= max(seen.position - len(seen.outstanding), before)
            if not slow and not log.places:
                assert log.taken == log.position
        assert log.taken - log.told < WINDOW_PARTS // 2

    @invariant()
    def memory_is_bounded(self) -> None:
        for job in self.world.broker.jobs.by_number.values():
            log = self.world.broker.streams.of(job)
            most = AHEAD + (3 << 20) + 1000
            assert log.size <= most
            assert log.size == sum(len(log.part(n)) for n in range(log.first, log.position + 1))


class KeptReaders(Readers):
    """The same of a background job. The store serves those that are far behind."""

    kept = True


class DelayedReaders(KeptReaders):
    """The same at a store that answers when it likes, in any order."""

    def __init__(self) -> None:
        super().__init__(LateStore)
        self.world.port.early = True

    def teardown(self) -> None:
        self.world.prompt = True
        super().teardown()

    @precondition(lambda self: self.world.port.asked)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.world.port.answer(data.draw(st.integers(0, len(self.world.port.asked) - 1)))
        self.settle()


SETTINGS = settings(max_examples=60, stateful_step_count=40, deadline=None)
for machine in (Readers, KeptReaders, DelayedReaders):
    machine.TestCase.settings = SETTINGS
TestReaders = Readers.TestCase
TestKeptReaders = KeptReaders.TestCase
TestDelayedReaders = DelayedReaders.TestCase
