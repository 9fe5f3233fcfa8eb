"""The room of a batch, beside a task that has a run for each job."""

from collections.abc import Callable
from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gearflow.worker.batch_slots import BatchSlots
from gearflow.worker.slots import LONGEST_PAUSE, ServerSlots, SlotAllocator

SIZE = 4
PLAIN, FIRST, SECOND = range(3)
"""The connection of the other task, and those of the batch task to two servers."""


def nothing() -> None:
    """Nobody waits for the lane."""


def test_a_batch_takes_one_slot_for_all_its_grabs_and_gives_it_back_if_there_is_no_job() -> None:
    worker = SlotAllocator(1)
    room = BatchSlots(100, worker)
    lane = ServerSlots(room, nothing)
    lane.start()
    assert (lane.requests(0.0), worker.free, room.free) == ((1, False), 0, 99)
    lane.no_job()
    assert (worker.free, room.free, room.has_slot) == (1, 0, False)
    assert lane.requests(0.0) == (0, True)
    lane.noop(1.0)
    grabs = 0
    while (asked := lane.requests(1.0)[0]) and grabs < 1000:
        for _ in range(asked):
            lane.assigned()
            assert room.arrived()
        grabs += asked
    assert (grabs, room.free, worker.free) == (100, 0, 0)


def test_a_job_that_comes_late_waits_for_the_next_batch() -> None:
    worker = SlotAllocator(1)
    room = BatchSlots(3, worker)
    lane = ServerSlots(room, nothing)
    lane.start()
    lane.requests(0.0)
    lane.assigned()
    assert room.arrived()
    lane.requests(0.0)
    room.leave()
    lane.assigned()
    assert not room.arrived()
    joined: list[str] = []
    room.hold()
    room.claim(lambda: joined.append("late"))
    assert (joined, worker.held) == ([], 1)
    worker.finished()
    assert (joined, worker.held, room.has_slot) == (["late"], 0, True)


class Batches(RuleBasedStateMachine):
    """A worker, two servers with items and one with other jobs, in any order of events."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.slots = 2
        self.woken: set[int] = set()
        self.worker = SlotAllocator(self.slots)
        self.room = BatchSlots(SIZE, self.worker)
        self.room.when_answered = self.answered
        places = (self.worker, self.room, self.room)
        self.lanes = [ServerSlots(place, self.waker(index)) for index, place in enumerate(places)]
        self.up = [False] * 3
        self.jobs = [0] * 3
        self.open = [0] * 3
        self.asleep = [False] * 3
        self.running = 0
        self.items = 0  # of the batch that collects
        self.is_due = False
        self.batches: list[int] = []  # that run: their items
        self.waiting: list[Callable[[], None]] = []  # held items
        self.claiming: list[Callable[[], None]] = []

    def waker(self, index: int) -> Callable[[], None]:
        return lambda: self.woken.add(index)

    def write(self) -> None:
        while self.woken:
            index = self.woken.pop()
            grabs, sleep = self.lanes[index].requests(self.now)
            assert not (grabs and self.worker.is_quiet)
            self.open[index] += grabs
            if grabs:
                self.asleep[index] = False
            if sleep:
                self.asleep[index] = True
                if self.jobs[index]:
                    self.call(index)

    def call(self, index: int) -> None:
        self.asleep[index] = False
        self.lanes[index].noop(self.now)
        self.woken.add(index)

    def join(self) -> None:
        self.items += 1
        assert self.items <= SIZE
        if self.items == SIZE:
            self.leave()

    def leave(self) -> None:
        self.batches.append(self.items)
        self.items = 0
        self.is_due = False
        self.room.leave()

    def has_room(self) -> bool:
        """Whether a batch collects that has room, or may begin to collect."""
        return bool(self.room.free if self.room.has_slot else self.worker.free)

    def answered(self) -> None:
        if self.is_due and self.items:
            self.leave()

    def held(self) -> Callable[[], None]:
        def begin() -> None:
            self.claiming.remove(begin)
            self.join()

        self.room.hold()
        return begin

    @rule(index=st.integers(0, 2))
    def connect(self, index: int) -> None:
        if not self.up[index]:
            self.up[index] = True
            self.lanes[index].start()
            self.write()

    @rule(index=st.integers(0, 2))
    def drop(self, index: int) -> None:
        if self.up[index]:
            self.up[index], self.open[index], self.asleep[index] = False, 0, False
            self.lanes[index].lost()
            self.write()

    @rule(index=st.integers(0, 2), count=st.integers(1, 9))
    def submit(self, index: int, count: int) -> None:
        self.jobs[index] += count
        if self.asleep[index]:
            self.call(index)
            self.write()

    @rule(index=st.integers(0, 2))
    def answer(self, index: int) -> None:
        if not self.open[index]:
            return
        self.open[index] -= 1
        if not self.jobs[index]:
            self.lanes[index].no_job()
        else:
            self.jobs[index] -= 1
            self.lanes[index].assigned()
            if index == PLAIN:
                self.running += 1
            elif self.room.arrived():
                self.join()
            else:
                begin = self.held()
                self.claiming.append(begin)
                self.room.claim(begin)
        self.write()

    @precondition(lambda self: self.items)
    @rule()
    def is_over(self) -> None:
        self.is_due = True
        if not self.room.promised:
            self.leave()
        self.write()

    @precondition(lambda self: self.is_due)
    @rule()
    def is_late(self) -> None:
        self.leave()
        self.write()

    @precondition(lambda self: self.items)
    @rule()
    def cancel(self) -> None:
        self.items -= 1
        self.is_due = self.is_due and self.items > 0
        self.room.dropped()
        self.write()

    @precondition(lambda self: self.running)
    @rule()
    def finish(self) -> None:
        self.running -= 1
        self.worker.finished()
        self.write()

    @precondition(lambda self: self.batches)
    @rule(again=st.booleans())
    def finish_batch(self, again: bool) -> None:
        items = self.batches.pop()
        if again:
            self.waiting.extend(self.held() for _ in range(items))
        self.worker.finished()
        self.write()

    @precondition(lambda self: self.waiting)
    @rule()
    def claim(self) -> None:
        begin = self.waiting.pop()
        self.claiming.append(begin)
        self.room.claim(begin)
        self.write()

    @precondition(lambda self: self.waiting or self.claiming)
    @rule()
    def drop_held(self) -> None:
        self.room.drop((self.claiming or self.waiting).pop())
        self.write()

    @rule()
    def quiet(self) -> None:
        self.worker.quiet()
        self.write()

    @rule()
    def resume(self) -> None:
        self.worker.resume()
        self.write()

    @rule(seconds=st.floats(0, 2))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.woken.update(range(3))
        self.write()

    @invariant()
    def the_slots_of_the_worker_add_up(self) -> None:
        taken = self.open[PLAIN] + self.running + len(self.batches) + self.room.has_slot
        assert self.worker.free == self.slots - taken >= 0

    @invariant()
    def the_room_of_the_batch_adds_up(self) -> None:
        if self.room.has_slot:
            assert self.room.free + self.room.promised + self.items == SIZE
        else:
            assert self.room.free == self.room.promised == self.items == 0
        assert self.room.promised + self.room.late == self.open[FIRST] + self.open[SECOND]

    @invariant()
    def a_slot_is_not_kept_for_nothing(self) -> None:
        assert not self.room.has_slot or self.items or self.room.promised

    @invariant()
    def held_items_are_counted(self) -> None:
        assert self.worker.held == len(self.waiting) + len(self.claiming)
        assert not (self.claiming and self.has_room())

    @invariant()
    def a_job_beside_room_is_being_asked_for(self) -> None:
        for index in range(3):
            room = self.worker.free if index == PLAIN else self.has_room()
            if self.up[index] and self.jobs[index] and room and not self.worker.is_quiet:
                assert self.open[index] or self.lanes[index].due < inf

    def teardown(self) -> None:
        """Whatever happened before: in the end all jobs that can be reached are done."""
        self.resume()
        for _ in range(10_000):
            if self.waiting:
                self.claim()
            busy = self.claiming or self.items or self.batches or self.running or any(self.open)
            if not busy and not any(jobs for jobs, up in zip(self.jobs, self.up, strict=True) if up):
                self.worker.stop()
                assert self.worker.free == self.slots
                return
            for index in range(3):
                self.answer(index)
            if self.items:
                self.is_over()
            if self.running:
                self.finish()
            if self.batches:
                self.finish_batch(again=False)
            self.wait(LONGEST_PAUSE)
        raise AssertionError("the worker has stalled")


Batches.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestBatches = Batches.TestCase
