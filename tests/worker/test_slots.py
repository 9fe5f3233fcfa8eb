"""When a worker asks which server for how many jobs."""

from collections.abc import Callable
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gearflow.worker.slots import EMPTY_ROUNDS, LONGEST_PAUSE, NOOP_REPLY, ServerSlots, SlotAllocator


def nothing() -> None:
    """Nobody waits for the lane."""


def lanes(slots: int, count: int = 1) -> tuple[SlotAllocator, list[ServerSlots]]:
    grabbing = SlotAllocator(slots)
    made = [ServerSlots(grabbing, nothing) for _ in range(count)]
    for lane in made:
        lane.start()
    return grabbing, made


def asked(lane: ServerSlots, now: float = 0.0) -> str:
    """What a lane says now, in short: a G for each GRAB, S for PRE_SLEEP."""
    grabs, sleep = lane.requests(now)
    return "G" * grabs + "S" * sleep


def test_after_registration_one_grab_goes_out() -> None:
    _, [lane] = lanes(10)
    assert asked(lane) == "G"
    assert asked(lane) == ""


def test_each_assignment_allows_two_more_grabs() -> None:
    _, [lane] = lanes(100)
    asked(lane)
    lane.assigned()
    assert asked(lane) == "GG"
    lane.assigned()
    lane.assigned()
    assert asked(lane) == "GGGG"


def test_grabs_in_flight_and_runs_share_the_slots() -> None:
    grabbing, [lane] = lanes(3)
    asked(lane)
    lane.assigned()
    assert asked(lane) == "GG"
    lane.assigned()
    lane.assigned()
    assert (asked(lane), grabbing.free) == ("", 0)
    grabbing.finished()
    assert (asked(lane), grabbing.free) == ("G", 0)


def test_a_worker_sleeps_when_its_last_grab_came_back_empty() -> None:
    _, [lane] = lanes(10)
    asked(lane)
    lane.assigned()
    assert asked(lane) == "GG"
    lane.no_job()
    assert asked(lane) == ""
    lane.no_job()
    assert asked(lane) == "S"
    assert asked(lane) == ""


def test_a_run_that_ends_while_the_worker_sleeps_wakes_nobody() -> None:
    grabbing, [lane] = lanes(10)
    asked(lane)
    lane.assigned()
    asked(lane)
    lane.no_job()
    lane.no_job()
    assert asked(lane) == "S"
    grabbing.finished()
    assert asked(lane) == ""


def test_a_noop_sends_one_grab() -> None:
    _, [lane] = lanes(10)
    asked(lane)
    lane.no_job()
    assert asked(lane, now=1.0) == "S"
    lane.noop(now=2.0)
    assert asked(lane, now=2.0) == "G"


def test_two_busy_servers_get_the_slots_in_turn() -> None:
    grabbing, [left, right] = lanes(4, 2)
    for lane in (left, right):
        asked(lane)
        lane.assigned()
    while grabbing.free or left.unanswered or right.unanswered or left.in_flight or right.in_flight:
        for lane in (left, right):
            for _ in asked(lane):
                lane.assigned()
    turns = ""
    for _ in range(8):
        grabbing.finished()
        for lane, letter in ((left, "L"), (right, "R")):
            for _ in asked(lane):
                lane.assigned()
                turns += letter
    assert turns in ("LRLRLRLR", "RLRLRLRL")


def test_a_server_that_calls_while_all_slots_are_taken_is_asked_first() -> None:
    grabbing, [busy, quiet] = lanes(2, 2)
    assert (asked(busy), asked(quiet)) == ("G", "G")
    quiet.no_job()
    assert asked(quiet) == "S"
    busy.assigned()
    for _ in asked(busy):
        busy.assigned()
    assert (grabbing.free, busy.wanted) == (0, 2)
    quiet.noop(now=5.0)
    assert (asked(busy), asked(quiet)) == ("", "")
    grabbing.finished()
    assert (asked(busy), asked(quiet)) == ("", "G")
    grabbing.finished()
    assert (asked(busy), asked(quiet)) == ("G", "")


def test_a_server_that_calls_comes_first_though_it_stood_in_the_queue_before() -> None:
    grabbing, [busy, quiet] = lanes(2, 2)
    quiet.poll_every(1.0)
    assert (asked(busy), asked(quiet)) == ("G", "G")
    quiet.no_job()
    assert asked(quiet, 0.0) == "S"
    busy.assigned()
    for _ in asked(busy):
        busy.assigned()
    assert asked(quiet, 1.0) == ""  # it was due, and stands behind the busy one
    quiet.noop(now=1.5)
    grabbing.finished()
    assert (asked(busy), asked(quiet, 1.5)) == ("", "G")


def test_a_server_whose_empty_grab_gave_its_slot_away_may_still_call() -> None:
    grabbing, [busy, quiet] = lanes(2, 2)
    assert (asked(busy), asked(quiet)) == ("G", "G")
    busy.assigned()
    quiet.no_job()
    assert (asked(busy), asked(quiet)) == ("G", "S")
    assert grabbing.free == 0


def test_a_lost_connection_gives_its_grabs_to_the_others() -> None:
    grabbing, [frozen, alive] = lanes(1, 2)
    assert (asked(frozen), asked(alive)) == ("G", "")
    frozen.lost()
    assert (asked(frozen), asked(alive)) == ("", "G")
    assert grabbing.free == 0


def test_a_refused_grab_is_sent_again() -> None:
    _, [lane] = lanes(2)
    assert asked(lane) == "G"
    lane.refused()
    assert asked(lane) == "G"


def spin(lane: ServerSlots, now: float) -> float:
    """One round of a server that has a job but gives none; returns how long the worker paused."""
    assert asked(lane, now) == "S"
    lane.noop(now + NOOP_REPLY / 2)
    before = now + NOOP_REPLY / 2
    if asked(lane, before) == "G":
        lane.no_job()
        return 0.0
    due = lane.due
    assert asked(lane, due) == "G"
    lane.no_job()
    return due - before


def test_a_server_that_calls_in_vain_over_and_over_is_answered_later_and_later() -> None:
    _, [lane] = lanes(4)
    asked(lane)
    lane.no_job()
    pauses: list[float] = []
    now = 0.0
    for _ in range(20):
        pauses.append(spin(lane, now))
        now += pauses[-1] + 2 * NOOP_REPLY
    assert pauses[:EMPTY_ROUNDS] == [0.0] * EMPTY_ROUNDS
    assert pauses == sorted(pauses)
    assert 0 < pauses[EMPTY_ROUNDS] < 0.01
    assert abs(pauses[-1] - LONGEST_PAUSE) < 1e-6


def test_wake_ups_in_vain_that_report_new_jobs_are_never_answered_late() -> None:
    _, [lane] = lanes(4)
    asked(lane)
    lane.no_job()
    for hour in range(50):
        assert asked(lane, hour * 3600.0) == "S"
        lane.noop(hour * 3600.0 + 1)
        assert asked(lane, hour * 3600.0 + 1) == "G"
        lane.no_job()


def test_a_job_ends_the_pauses() -> None:
    _, [lane] = lanes(4)
    asked(lane)
    lane.no_job()
    for round_ in range(10):
        spin(lane, now=float(round_))
    asked(lane, 100.0)
    lane.noop(100.0)
    assert asked(lane, lane.due) == "G"
    lane.assigned()
    assert asked(lane, 101.0) == "GG"
    lane.no_job()
    lane.no_job()
    assert spin(lane, 102.0) == 0.0


def test_a_sleeping_worker_asks_servers_that_do_not_wake_for_everything() -> None:
    _, [lane] = lanes(4)
    lane.poll_every(1.0)
    asked(lane)
    lane.no_job()
    assert (asked(lane, 10.0), lane.due) == ("S", 11.0)
    assert asked(lane, 10.5) == ""
    assert (asked(lane, 11.0), lane.due) == ("G", inf)
    lane.no_job()
    assert (asked(lane, 11.1), lane.due) == ("S", 12.1)


def test_a_sleeping_worker_is_due_for_nothing_at_other_servers() -> None:
    _, [lane] = lanes(4)
    asked(lane)
    lane.no_job()
    assert (asked(lane), lane.due) == ("S", inf)


def test_a_stopped_worker_takes_what_its_grabs_still_bring_and_asks_no_more() -> None:
    told: list[str] = []
    grabbing = SlotAllocator(4, lambda: told.append("idle"))
    lane = ServerSlots(grabbing, nothing)
    lane.start()
    asked(lane)
    lane.assigned()
    assert asked(lane) == "GG"
    grabbing.stop()
    lane.assigned()
    lane.no_job()
    assert (asked(lane), told) == ("", [])
    grabbing.finished()
    assert (asked(lane), told) == ("", [])
    grabbing.finished()
    assert (asked(lane), told) == ("", ["idle"])
    lane.noop(now=1.0)
    assert asked(lane, 1.0) == ""


def test_a_grab_that_was_not_written_when_the_worker_stopped_is_not_awaited() -> None:
    told: list[str] = []
    grabbing = SlotAllocator(4, lambda: told.append("idle"))
    lane = ServerSlots(grabbing, nothing)
    lane.start()
    grabbing.stop()
    assert (asked(lane), told) == ("", ["idle"])


def test_a_run_that_overran_keeps_its_slot_but_does_not_hold_up_the_stop() -> None:
    told: list[str] = []
    grabbing = SlotAllocator(1, lambda: told.append("idle"))
    lane = ServerSlots(grabbing, nothing)
    lane.start()
    asked(lane)
    lane.assigned()
    grabbing.overran()
    assert (asked(lane), grabbing.overdue) == ("", 1)
    grabbing.stop()
    assert told == ["idle"]
    grabbing.overdue_finished()
    assert (grabbing.free, grabbing.overdue) == (1, 0)


def test_a_held_job_gets_the_next_free_slot_before_any_server() -> None:
    told: list[str] = []
    grabbing, [lane] = lanes(1)
    asked(lane)
    lane.assigned()  # the lane wants more
    grabbing.hold()
    grabbing.finished()
    assert (asked(lane), grabbing.held) == ("G", 1)
    grabbing.claim(lambda: told.append("begun"))
    assert told == []
    lane.no_job()
    assert told == ["begun"]
    assert (grabbing.free, grabbing.held, asked(lane)) == (0, 0, "S")


def test_a_held_job_that_claims_a_free_slot_has_it_at_once() -> None:
    told: list[str] = []
    grabbing = SlotAllocator(1)
    grabbing.hold()
    grabbing.claim(lambda: told.append("begun"))
    assert (told, grabbing.free, grabbing.held) == (["begun"], 0, 0)


def test_a_stopped_worker_is_idle_when_it_holds_no_job_any_more() -> None:
    told: list[str] = []
    grabbing = SlotAllocator(2, lambda: told.append("idle"))
    for _ in range(2):
        grabbing.hold()
    grabbing.stop()
    grabbing.claim(lambda: told.append("begun"))
    grabbing.drop(nothing)
    assert told == ["begun"]
    grabbing.finished()
    assert told == ["begun", "idle"]


def test_a_stopped_worker_does_not_wait_for_a_held_job_while_runs_that_overran_have_all_slots() -> None:
    told: list[str] = []
    grabbing = SlotAllocator(2, lambda: told.append("idle"))
    for _ in range(2):
        grabbing.hold()
        grabbing.claim(nothing)  # and so all slots are taken
    grabbing.overran()
    grabbing.hold()
    grabbing.stop()
    assert told == []
    grabbing.overran()
    assert (told, grabbing.held) == (["idle"], 1)


def test_a_claim_that_is_withdrawn_gets_no_slot() -> None:
    told: list[str] = []
    grabbing = SlotAllocator(1)
    lane = ServerSlots(grabbing, nothing)
    lane.start()
    asked(lane)
    lane.assigned()

    def begin() -> None:
        told.append("begun")

    grabbing.hold()
    grabbing.claim(begin)
    grabbing.drop(begin)
    grabbing.finished()
    assert (told, grabbing.held, asked(lane)) == ([], 0, "G")


def test_a_quiet_worker_takes_back_what_it_has_not_written() -> None:
    grabbing, [lane] = lanes(3)
    grabbing.quiet()
    assert (asked(lane), grabbing.free) == ("", 3)
    grabbing.resume()
    assert (asked(lane), grabbing.free) == ("G", 2)


def test_a_quiet_worker_answers_a_call_when_it_resumes() -> None:
    grabbing, [lane] = lanes(3)
    asked(lane)
    lane.no_job()
    grabbing.quiet()
    assert asked(lane) == "S"
    lane.noop(now=5.0)
    assert asked(lane) == ""
    grabbing.resume()
    assert asked(lane) == "G"


def test_a_quiet_worker_goes_on_with_jobs_that_it_holds() -> None:
    grabbing, [lane] = lanes(1)
    asked(lane)
    lane.assigned()
    begun: list[str] = []
    grabbing.hold()
    grabbing.claim(lambda: begun.append("begun"))
    grabbing.quiet()
    grabbing.finished()
    assert begun == ["begun"]


def test_a_lane_is_empty_once_its_server_has_no_job() -> None:
    told: list[str] = []
    grabbing, [lane] = lanes(3)
    grabbing.when_empty = lambda: told.append("empty")
    asked(lane)
    lane.no_job()
    assert (lane.is_empty, told) == (False, [])
    assert asked(lane) == "S"
    assert (lane.is_empty, told) == (True, ["empty"])
    lane.noop(now=5.0)
    assert not lane.is_empty


def test_a_sleeping_lane_that_is_to_ask_again_does_so_at_once() -> None:
    _, [lane] = lanes(3)
    asked(lane)
    lane.no_job()
    asked(lane)
    lane.ask_again()
    assert (lane.is_empty, asked(lane)) == (False, "G")
    lane.no_job()
    assert (asked(lane), lane.is_empty) == ("S", True)


def test_a_grab_in_flight_is_not_enough_for_one_that_is_to_ask_again() -> None:
    _, [lane] = lanes(3)
    asked(lane)
    lane.ask_again()
    lane.no_job()
    assert asked(lane) == "G"
    lane.no_job()
    assert (asked(lane), lane.is_empty) == ("S", True)


def test_a_lane_that_pauses_is_empty_until_it_is_to_ask_again() -> None:
    _, [lane] = lanes(3)
    for _ in range(EMPTY_ROUNDS + 1):
        assert asked(lane) == "G"
        lane.no_job()
        assert asked(lane) == "S"
        lane.noop(now=0.0)
    assert (asked(lane), lane.is_empty) == ("", True)
    lane.ask_again()
    assert not lane.is_empty
    assert asked(lane, now=lane.due) == "G"


class Servers(RuleBasedStateMachine):
    """A worker and several servers, in any order of events; each server keeps the protocol."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.slots = 3
        self.woken: set[int] = set()
        self.grabbing = SlotAllocator(self.slots)
        self.lanes = [ServerSlots(self.grabbing, self.waker(index)) for index in range(3)]
        self.up = [False] * 3
        self.jobs = [0] * 3  # that wait at each server
        self.open = [0] * 3  # GRABs at each server
        self.asleep = [False] * 3
        self.running = 0
        self.waiting: list[Callable[[], None]] = []  # held jobs, by what begins their next run
        self.claiming: list[Callable[[], None]] = []
        self.alone: list[Callable[[], None]] = []  # runs that are to be alone, by what begins them
        self.begun: list[Callable[[], None]] = []  # those of them that have begun
        self.old = [0] * 3  # GRABs at each server that were written before it was to be asked again
        self.has_said_no = [False] * 3  # to one that was written later

    def waker(self, index: int) -> Callable[[], None]:
        return lambda: self.woken.add(index)

    def write(self) -> None:
        """What the links do: let each woken lane speak, until all are silent."""
        while self.woken:
            index = self.woken.pop()
            grabs, sleep = self.lanes[index].requests(self.now)
            assert not (grabs and (self.grabbing.is_quiet or self.alone))
            self.open[index] += grabs
            if grabs:
                self.asleep[index] = False
            if sleep:
                assert not self.open[index]
                self.asleep[index] = True
                if self.jobs[index]:
                    self.call(index)

    def call(self, index: int) -> None:
        self.asleep[index] = False
        self.lanes[index].noop(self.now)
        self.woken.add(index)

    @rule(index=st.integers(0, 2))
    def connect(self, index: int) -> None:
        if not self.up[index]:
            self.up[index] = True
            self.old[index], self.has_said_no[index] = 0, False
            self.lanes[index].start()
            self.write()

    @rule(index=st.integers(0, 2))
    def drop(self, index: int) -> None:
        if self.up[index]:
            self.up[index], self.open[index], self.asleep[index] = False, 0, False
            self.lanes[index].lost()
            self.write()

    @rule(index=st.integers(0, 2), count=st.integers(1, 5))
    def submit(self, index: int, count: int) -> None:
        self.jobs[index] += count
        if self.asleep[index]:
            self.call(index)
            self.write()

    @rule(index=st.integers(0, 2))
    def answer(self, index: int) -> None:
        if self.open[index]:
            self.open[index] -= 1
            is_old = self.old[index] > 0
            self.old[index] -= is_old
            if self.jobs[index]:
                self.jobs[index] -= 1
                self.running += 1
                self.lanes[index].assigned()
            else:
                self.has_said_no[index] |= not is_old
                self.lanes[index].no_job()
            self.write()

    @precondition(lambda self: self.running > len(self.alone))
    @rule()
    def be_alone(self) -> None:
        """A job that has just come is to run alone."""

        def begin() -> None:
            assert not self.begun
            self.begun.append(begin)

        self.alone.append(begin)
        self.grabbing.begin_alone(begin)
        self.write()

    @precondition(lambda self: self.alone)
    @rule(first=st.booleans())
    def end_alone(self, first: bool) -> None:
        """A run ends that is alone, or was to be."""
        run = self.alone.pop(0 if first else -1)
        if run in self.begun:
            self.begun.remove(run)
        self.running -= 1
        self.grabbing.end_alone(run)
        self.grabbing.finished()
        self.write()

    @precondition(lambda self: self.running > len(self.alone))
    @rule()
    def finish(self) -> None:
        self.running -= 1
        self.grabbing.finished()
        self.write()

    @precondition(lambda self: self.running > len(self.alone))
    @rule()
    def hold(self) -> None:
        def begin() -> None:
            self.claiming.remove(begin)
            self.running += 1

        self.waiting.append(begin)
        self.grabbing.hold()
        self.finish()

    @precondition(lambda self: self.waiting)
    @rule()
    def claim(self) -> None:
        begin = self.waiting.pop()
        self.claiming.append(begin)
        self.grabbing.claim(begin)
        self.write()

    @precondition(lambda self: self.waiting or self.claiming)
    @rule()
    def drop_held(self) -> None:
        self.grabbing.drop((self.claiming or self.waiting).pop())
        self.write()

    @rule()
    def quiet(self) -> None:
        self.grabbing.quiet()
        self.write()

    @rule()
    def resume(self) -> None:
        self.grabbing.resume()
        self.write()

    @rule()
    def ask_again(self) -> None:
        for index, lane in enumerate(self.lanes):
            self.old[index], self.has_said_no[index] = self.open[index], False
            lane.ask_again()
        self.write()

    @rule(seconds=st.floats(0, 2))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.woken.update(range(3))
        self.write()

    @invariant()
    def never_more_grabs_in_flight_than_free_slots(self) -> None:
        assert sum(self.open) + self.running <= self.slots
        assert self.grabbing.free == self.slots - sum(self.open) - self.running

    @invariant()
    def a_held_job_has_no_slot_and_one_that_claims_waits_beside_none(self) -> None:
        assert self.grabbing.held == len(self.waiting) + len(self.claiming)
        assert not (self.claiming and self.grabbing.free and not self.alone)

    @invariant()
    def a_run_that_is_alone_has_begun_once_nothing_else_runs(self) -> None:
        others = self.running + sum(self.open) - len(self.alone)
        assert bool(self.begun) == bool(self.alone and not others)

    @invariant()
    def a_job_beside_a_free_slot_is_being_asked_for(self) -> None:
        for index in range(3):
            withheld = self.grabbing.is_quiet or self.alone
            if self.up[index] and self.jobs[index] and self.grabbing.free and not withheld:
                assert self.open[index] or self.lanes[index].due < inf

    @invariant()
    def what_is_called_empty_was_asked(self) -> None:
        for index, lane in enumerate(self.lanes):
            assert self.has_said_no[index] or not (self.up[index] and lane.is_empty)

    def teardown(self) -> None:
        """Whatever happened before: in the end all jobs that can be reached are done, and known to be."""
        self.resume()
        self.ask_again()
        for _ in range(10_000):
            if self.waiting:
                self.claim()
            elif not self.claiming and all(
                lane.is_empty and not jobs
                for lane, jobs, up in zip(self.lanes, self.jobs, self.up, strict=True)
                if up
            ):
                return
            for index in range(3):
                self.answer(index)
            if self.running > len(self.alone):
                self.finish()
            elif self.alone:
                self.end_alone(True)
            self.wait(LONGEST_PAUSE)
        raise AssertionError("the worker has stalled")


Servers.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestServers = Servers.TestCase


@given(slots=st.integers(1, 200), jobs=st.integers(0, 300))
def test_the_number_of_round_trips_grows_with_the_logarithm_of_the_jobs(slots: int, jobs: int) -> None:
    grabbing, [lane] = lanes(slots)
    trips, left = 0, jobs
    while grabs := asked(lane):
        if grabs == "S":
            break
        trips += 1
        for _ in grabs:
            if left:
                left -= 1
                lane.assigned()
                grabbing.finished()
            else:
                lane.no_job()
    assert left == 0
    assert trips <= 10 + jobs / slots
