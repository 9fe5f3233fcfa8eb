"""Kept jobs come, go and are held at any point of any history.

One machine has two servers over one store, and clients that do whatever they can, as in ``model``. The other
has one server whose turns are all late, so that everything happens between any two steps of everything else.
"""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gearflow.broker import SizeLimits
from gearflow.broker.handles import PRIVATE, lot_of
from gearflow.protocol import packets as p
from gearflow.protocol.packets import Packet
from tests.broker.harness import Peer
from tests.broker.model import FUNCTIONS, Member, Spec
from tests.broker.sharing import Server, Truth, number_of
from tests.broker.test_model import BrokerMachine, InProcess

# ------------------------------------------------------------------------------------------ two servers


class SharedPeer(Peer):
    """Looks when everything that it has caused is written and done."""

    def __init__(self, server: Server) -> None:
        super().__init__(server, "peer")
        self._server = server

    def read(self) -> list[Packet | bytes]:
        self._server.finish()
        self._server.commit()
        self._server.finish()
        return super().read()

    def leave(self) -> None:
        super().leave()
        self._server.commit()
        self._server.finish()


class Shared(InProcess):
    """One of two servers, as a system."""

    def __init__(self) -> None:
        limits = SizeLimits(deaths=None)
        truth = Truth()
        self.server = self.world = Server(truth, 1, limits)
        self.other = Server(truth, 1, limits)

    def connect(self) -> Peer:
        return SharedPeer(self.server)

    def cancel(self, handle: bytes) -> bool:
        found = super().cancel(handle)
        self.server.commit()
        return found


class SharedMachine(BrokerMachine):
    """What moves kept jobs from one server to the other, and what holds them."""

    def __init__(self) -> None:
        self.shared = Shared()
        self.server, self.other = self.shared.server, self.shared.other
        self.is_held = False
        self.far: dict[int, Spec] = {}  # kept jobs that the other server has
        self.nameless: list[Spec] = []  # jobs to which no unique leads
        super().__init__(self.shared)

    # ------------------------------------------------------------------------------- submissions

    def accept(self, member: Member, packet: Packet, spec: Spec) -> None:
        job = self.job_of_unique(spec)
        if not spec.background or (job is not None and job.background):
            super().accept(member, packet, spec)
            return
        if job is not None and lot_of(number_of(job.handle)) not in self.server.lots:
            job, former = None, job
        else:
            former = None
        if job is None and not self.gives_numbers():
            answers = member.peer(packet)
            (error,) = [answer for answer in answers if isinstance(answer, p.Error)]
            assert error.code == b"QUEUE_ERROR"
            member.expected.append(error)
            self.hear(member, answers)
            return
        taken = self.taken(spec)
        if former is not None and taken is None:
            self.nameless.append(former)
        if taken is None:
            super().accept(member, packet, spec)
            if job is not None and self.is_held and not (job.worker or job.delayed):  # behind those held
                self.queue.remove(job)
                self.queue.append(job)
            return
        if former is not None:
            self.nameless.append(former)  # the new job had its unique, for a moment
        answers = member.peer(packet)
        member.expected.append(p.JobCreated(taken))
        self.hear(member, answers)

    def gives_numbers(self) -> bool:
        handles = self.server.broker.core.handles
        return lot_of(handles.last) != PRIVATE and handles.reserve_at > 0

    def taken(self, spec: Spec) -> bytes | None:
        """The handle of the kept job of a unique, to which the unique does not lead here."""
        if spec.unique:
            for job in [*self.far.values(), *self.nameless]:
                is_kept = job.background and (job.function, job.unique) == (spec.function, spec.unique)
                if is_kept and (job in self.queue or number_of(job.handle) in self.far):
                    return job.handle
        return None

    def job_of_unique(self, spec: Spec) -> Spec | None:
        for job in reversed(self.queue):
            same = (job.function, job.unique) == (spec.function, spec.unique)
            if spec.unique and same and not job.cancelled and job not in self.nameless:
                return job
        return None

    # -------------------------------------------------------------------------------------- holding

    @rule()
    def hold(self) -> None:
        self.is_held = True
        self.server.hold()

    @rule()
    def release(self) -> None:
        """Those that were held come before those that were not."""
        if self.is_held:
            waiting = [job for job in self.queue if not (job.worker or job.delayed)]
            others = [job for job in self.queue if job.worker or job.delayed]
            self.queue = [*others, *sorted(waiting, key=lambda job: not job.background)]
            self.is_held = False
        self.server.hold(False)

    def waiting(self, function: bytes) -> list[Spec]:
        return [job for job in super().waiting(function) if not (self.is_held and job.background)]

    # --------------------------------------------------------------------------- jobs that come and go

    @rule(data=st.data(), new=st.booleans())
    def lose(self, data: st.DataObject, new: bool) -> None:
        """The other server adopts a lot."""
        if not self.server.lots:
            return
        lot = data.draw(st.sampled_from(sorted(self.server.lots)))
        self.other.pass_time(self.server.now - self.other.now)
        self.other.adopt(lot)
        self.server.disown(lot)
        gone = [job for job in self.queue if job.background and lot_of(number_of(job.handle)) == lot]
        for job in gone:
            self.far[number_of(job.handle)] = job
            warning = p.WorkWarning(job.handle, b"another server has this job now; its result is there")
            for packet in (warning, p.WorkFail(job.handle)):
                for client in job.clients:
                    client.expected.append(packet)
            self.tell_cancelled(job)
            job.worker, job.clients = None, []
        self.queue = [job for job in self.queue if job not in gone]
        if new:
            self.take_lot()

    @rule()
    def take_lot(self) -> None:
        self.server.broker.core.handles.own(self.server.truth.new_lots(self.server, 1))

    @rule()
    def turn(self) -> None:
        self.server.broker.core.handles.turn()

    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        """The server adopts a lot of the other one."""
        lots = sorted(self.other.lots)
        if not lots:
            return
        lot = data.draw(st.sampled_from(lots))
        self.server.adopt(lot)
        self.other.disown(lot)
        self.other.finish()
        for number in sorted(number for number in self.far if lot_of(number) == lot):
            job = self.far.pop(number)
            job.delayed = job.due > self.world.now
            if self.job_of_unique(job) is not None:
                self.nameless.append(job)
            else:
                self.nameless = [other for other in self.nameless if other is not job]
            self.queue.append(job)

    @precondition(lambda self: self.far)
    @rule()
    def run_far(self) -> None:
        """The other server runs a job."""
        self.other.pass_time(self.server.now - self.other.now)
        worker = self.other.worker(*FUNCTIONS)
        handle = worker.grab()
        due = [number for number, job in self.far.items() if job.due <= self.other.now]
        assert (handle is not None) == bool(due)
        if handle is not None:
            assert worker(p.WorkComplete(handle, b"r")) == []
            del self.far[number_of(handle)]
        self.other.commit()
        worker.leave()

    # ------------------------------------------------------------------------------------ invariants

    @invariant()
    def handles_count_the_jobs(self) -> None:
        assert len(self.handles) == len(set(self.handles))

    @invariant()
    def the_store_has_the_kept_jobs(self) -> None:
        kept = {number_of(job.handle) for job in self.queue if job.background} | set(self.far)
        assert {job.number for job in self.server.truth.jobs()} == kept

    @invariant()
    def no_two_kept_jobs_have_one_unique(self) -> None:
        uniques = [(job.function, job.unique) for job in self.server.truth.jobs() if job.unique]
        assert len(uniques) == len(set(uniques))

    @invariant()
    def no_job_is_in_a_lane_twice(self) -> None:
        for server in (self.server, self.other):
            for function in server.broker.functions.by_name.values():
                waiting = function.waiting_jobs()
                assert len(waiting) == len(set(waiting)) == function.all_waiting + len(function.delayed)

    @invariant()
    def uniques_lead_to_their_jobs(self) -> None:
        for server in (self.server, self.other):
            table = server.broker.jobs
            named = [job for job in table.by_number.values() if job.unique_key]
            assert all(table.find(job.function, job.unique_key) is job for job in named)
            assert {job.unique_key for job in named} == set(table.by_unique)


# ----------------------------------------------------------------------- one server, and late turns


@dataclass(eq=False)
class Job:
    handle: bytes
    function: bytes
    kept: bool
    worker: Peer | None = None
    is_first: bool = True  # it has stood in line once only, since it was kept


class HoldMachine(RuleBasedStateMachine):
    """Everything about holds and lots in any order, one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.server = Server(Truth(), 1, SizeLimits(deaths=None))
        self.server.be_late()
        self.client = self.server.peer()
        self.sleeper = self.server.worker(*FUNCTIONS)
        self.is_asleep = False
        self.jobs: list[Job] = []
        self.is_held = False
        self.lost: list[int] = []
        self.paused: set[bytes] = set()
        self.count = 0

    def add(self, count: int, function: bytes, kept: bool) -> None:
        for _ in range(count):
            self.count += 1
            unique = b"%d" % self.count
            self.client.read()  # the ends of lost jobs
            if kept:
                handle = self.server.background(self.client, function, unique)
            else:
                handle = self.client.submit(function, unique)
            self.jobs.append(Job(handle, function, kept))

    @rule(count=st.sampled_from([1, 2, 150]), function=st.sampled_from(FUNCTIONS), kept=st.booleans())
    def submit(self, count: int, function: bytes, kept: bool) -> None:
        if self.server.lots:
            self.add(count, function, kept)

    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        """An attached job becomes a kept one."""
        able = [
            job for job in self.jobs if not job.kept and lot_of(number_of(job.handle)) in self.server.lots
        ]
        if able:
            job = data.draw(st.sampled_from(able))
            self.client.read()
            unique = self.server.broker.jobs.by_number[number_of(job.handle)].unique
            assert self.server.background(self.client, job.function, unique) == job.handle
            job.kept, job.is_first = True, False

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        able = [job for job in self.jobs if job.worker is None]
        if able:
            job = data.draw(st.sampled_from(able))
            assert self.server.broker.cancel(job.handle)
            self.jobs.remove(job)
            self.server.commit()
            self.client.read()

    @rule(on=st.booleans())
    def hold(self, on: bool) -> None:
        self.is_held = on
        self.server.hold(on)

    @rule(function=st.sampled_from(FUNCTIONS), on=st.booleans())
    def pause(self, function: bytes, on: bool) -> None:
        if function in self.server.broker.functions.by_name:
            self.server.broker.dispatcher.pause(self.server.broker.functions.by_name[function], on)
            (self.paused.add if on else self.paused.discard)(function)

    @precondition(lambda self: self.server.broker.turns.waiting)
    @rule(count=st.integers(1, 3))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.server.broker.turns.waiting:
                self.server.proceed()

    @rule(count=st.integers(1, 3))
    def grab(self, count: int) -> None:
        worker = self.server.worker(*FUNCTIONS)
        for _ in range(count):
            self.take(worker)

    def take(self, worker: Peer) -> bool:
        handle = worker.grab()
        if handle is None:
            return False
        (job,) = [job for job in self.jobs if job.handle == handle]
        assert job.worker is None
        assert job.function not in self.paused
        assert not (job.kept and self.is_held)
        if job.is_first:
            ahead = [
                other
                for other in self.jobs[: self.jobs.index(job)]
                if other.function == job.function and other.kept == job.kept and other.is_first
            ]
            assert all(other.worker is not None for other in ahead)
        job.worker = worker
        return True

    @rule(data=st.data(), completes=st.booleans())
    def end_run(self, data: st.DataObject, completes: bool) -> None:
        """A run completes, or its worker goes away with all that it runs."""
        running = [job for job in self.jobs if job.worker is not None]
        if not running:
            return
        job = data.draw(st.sampled_from(running))
        assert job.worker is not None
        if completes:
            assert job.worker(p.WorkComplete(job.handle, b"r")) == []
            self.jobs.remove(job)
        else:
            leaver = job.worker
            leaver.leave()
            for other in [other for other in running if other.worker is leaver]:
                other.worker, other.is_first = None, False
        self.server.commit()
        self.client.read()

    @rule()
    def lose(self) -> None:
        for lot in list(self.server.lots):
            self.server.disown(lot)
            self.lost.append(lot)
        for job in [job for job in self.jobs if job.kept]:
            self.jobs.remove(job)
        self.client.read()

    @rule(back=st.booleans())
    def take_lots(self, back: bool) -> None:
        """Lots come back with their jobs, or a new one is taken."""
        if back:
            for lot in self.lost:
                self.server.adopt(lot)
            here = {number_of(job.handle) for job in self.jobs if job.kept}
            for stored in self.server.truth.jobs():
                if lot_of(stored.number) in self.lost and stored.number not in here:
                    handle = self.server.broker.core.handles.handle(stored.number)
                    self.jobs.append(Job(handle, stored.function, kept=True))
            self.lost.clear()
        self.server.broker.core.handles.own(self.server.truth.new_lots(self.server, 1))

    @rule()
    def sleep(self) -> None:
        answers = self.sleeper() + self.sleeper(p.PreSleep())
        self.is_asleep = p.Noop() not in answers

    @invariant()
    def the_counts_are_right(self) -> None:
        broker = self.server.broker
        for name, function in broker.functions.by_name.items():
            mine = [job for job in self.jobs if job.function == name]
            waiting = function.waiting_jobs()
            assert len(waiting) == len(set(waiting)) == function.all_waiting
            assert function.all_waiting == sum(map(function.waiting_of, range(3)))
            assert function.total == len(
                [j for j in broker.jobs.by_number.values() if j.function is function]
            )
            assert function.total >= len(mine)
            for lane, shells in zip(function.lanes, function.shells_of, strict=True):
                assert not lane or lane[0].state == 2
                assert sum(job.state != 2 for job in lane) == shells

    def teardown(self) -> None:
        """In the end every job is given out once."""
        for name in FUNCTIONS:
            self.pause(name, False)
        self.hold(False)
        self.server.finish()
        if self.is_asleep:
            able = [job for job in self.jobs if job.worker is None]
            assert not able or p.Noop() in self.sleeper.read()
        assert len(self.jobs) == len(self.server.broker.jobs.by_number)
        worker = self.server.worker(*FUNCTIONS)
        while self.take(worker):
            pass
        assert all(job.worker is not None for job in self.jobs)
        for job in self.jobs:
            assert job.worker is not None
            job.worker(p.WorkComplete(job.handle, b"r"))
        assert not self.server.broker.jobs.by_number
        assert not self.server.broker.jobs.by_unique


SharedMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
HoldMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestShared = SharedMachine.TestCase
TestHold = HoldMachine.TestCase
