"""Limits: how many jobs run at once, how many start in a time, and who comes next."""

import json
from collections.abc import Iterator

import pytest

from gearflow.broker import SizeLimits
from gearflow.broker.limiter import FunctionRules, Limiter, LimitSpec, LimitUsage, Rule
from gearflow.broker.local_port import LocalPort
from gearflow.broker.storage import JobOutcome
from gearflow.protocol import packets as p
from tests.broker.harness import DelayedPort, Disk, Durable, Peer, World


class Limited(World):
    """A broker whose function ``work`` has limits."""

    def __init__(self, *rules: Rule, fair: str | None = None, **limits: LimitSpec) -> None:
        super().__init__(SizeLimits(deaths=None))
        for name, spec in limits.items():
            self.limiter.set_limit(name.encode(), spec)
        self.use(*rules, fair=fair)

    @property
    def limiter(self) -> Limiter:
        return self.broker.core.limiter

    def use(self, *rules: Rule, fair: str | None = None, function: bytes = b"work") -> None:
        """Have a function use limits, or none."""
        chosen = FunctionRules(rules, fair) if rules or fair is not None else None
        self.limiter.set_rules(self.broker.functions.ensure(function), chosen)
        self.finish()

    def why(self, handle: bytes) -> str:
        job = self.broker.core.find(handle)
        assert job is not None
        return self.limiter.why(job)


def concurrency(count: int, over: str = "wait") -> LimitSpec:
    return LimitSpec("concurrency", count, over=over)


def rate(count: int, per: float, burst: int = 1) -> LimitSpec:
    return LimitSpec("rate", count, per, burst)


def of(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def submit(world: World, *payloads: bytes, function: bytes = b"work") -> list[bytes]:
    client = world.peer()
    return [client.submit_background(function, workload=payload) for payload in payloads]


def grabs(worker: Peer) -> Iterator[bytes]:
    """All jobs that it gets."""
    while (handle := worker.grab()) is not None:
        yield handle


def test_no_more_jobs_run_than_the_limit_says() -> None:
    world = Limited(Rule(b"two"), two=concurrency(2))
    handles = submit(world, b"1", b"2", b"3")
    worker = world.worker()
    assert list(grabs(worker)) == handles[:2]
    assert world.why(handles[2]) == "two: 2 of 2 run"
    worker(p.WorkComplete(handles[0], b""))
    assert list(grabs(worker)) == handles[2:]
    assert world.limiter.usage(b"two") == LimitUsage(2, 0, 0, None)


def test_a_sleeper_is_woken_when_a_slot_is_free_and_not_before() -> None:
    world = Limited(Rule(b"one"), one=concurrency(1))
    handles = submit(world, b"1", b"2")
    busy, sleeper = world.worker(), world.worker().sleep
    assert busy.grab() == handles[0]
    other = world.worker()
    assert other(p.PreSleep()) == []
    busy(p.WorkComplete(handles[0], b""))
    world.finish()
    assert other.read() == [p.Noop()]
    assert other.grab() == handles[1]
    assert sleeper is not None


def test_a_worker_that_asks_in_the_same_packet_gets_the_slot_and_nobody_is_woken() -> None:
    world = Limited(Rule(b"one"), one=concurrency(1))
    handles = submit(world, b"1", b"2")
    busy, other = world.worker(), world.worker()
    assert busy.grab() == handles[0]
    assert other(p.PreSleep()) == []
    (answer,) = busy(p.WorkComplete(handles[0], b""), p.GrabJob())
    assert isinstance(answer, p.JobAssign)
    assert answer.handle == handles[1]
    world.finish()
    assert other.read() == []


def test_a_socket_that_ends_frees_its_slots() -> None:
    world = Limited(Rule(b"one"), one=concurrency(1))
    handles = submit(world, b"1", b"2")
    worker = world.worker()
    assert worker.grab() == handles[0]
    worker.leave()
    assert list(grabs(world.worker())) == [handles[1]]  # the other one came back behind it


def test_a_cancelled_job_holds_its_slot_until_its_worker_ends_it() -> None:
    world = Limited(Rule(b"one"), one=concurrency(1))
    handles = submit(world, b"1", b"2")
    worker = world.worker()
    assert worker.grab() == handles[0]
    assert world.broker.cancel(handles[0])
    assert worker.grab() is None
    worker(p.WorkComplete(handles[0], b""))
    assert worker.grab() == handles[1]


def test_each_key_has_its_own_slots() -> None:
    world = Limited(Rule(b"one", "/customer"), one=concurrency(1))
    a1, a2, b1, none1, none2 = submit(
        world, of(customer="a"), of(customer="a"), of(customer=7), of(), b"no JSON"
    )
    worker = world.worker()
    assert list(grabs(worker)) == [a1, b1, none1, none2]
    assert world.why(a2) == "one (a): 1 of 1 runs"
    worker(p.WorkComplete(b1, b""), p.WorkComplete(none1, b""))
    assert worker.grab() is None
    worker(p.WorkComplete(a1, b""))
    assert worker.grab() == a2
    worker(p.WorkComplete(a2, b""), p.WorkComplete(none2, b""))
    assert not world.limiter.limits[b"one"].buckets
    assert [notice.subject for notice in world.broker.outgoing.notices] == [b"work"]


def test_a_named_limit_is_shared_by_functions() -> None:
    world = Limited(Rule(b"shop"), shop=concurrency(1))
    world.use(Rule(b"shop"), function=b"other")
    (first,), (second,) = submit(world, b"1"), submit(world, b"2", function=b"other")
    one, two = world.worker(b"work"), world.worker(b"other")
    assert one.grab() == first
    assert two(p.GrabJob()) == [p.NoJob()]
    assert two(p.PreSleep()) == []
    one(p.WorkComplete(first, b""))
    world.finish()
    assert two.read() == [p.Noop()]
    assert two.grab() == second


def test_all_limits_of_a_job_are_taken_at_once_or_none() -> None:
    world = Limited(
        Rule(b"customer", "/customer"),
        Rule(b"region", "/region"),
        customer=concurrency(1),
        region=concurrency(1),
    )
    a_x, a_y, b_x, b_y = submit(
        world,
        of(customer="a", region="x"),
        of(customer="a", region="y"),
        of(customer="b", region="x"),
        of(customer="b", region="y"),
    )
    worker = world.worker()
    assert list(grabs(worker)) == [a_x, b_y]
    worker(p.WorkComplete(a_x, b""))
    assert worker.grab() is None  # y is taken, and so is b
    worker(p.WorkComplete(b_y, b""))
    assert list(grabs(worker)) == [a_y, b_x]


def test_groups_take_turns_inside_a_priority() -> None:
    world = Limited(fair="/tenant")
    flood = submit(world, *[of(tenant="flood")] * 4)
    (one,), (two,) = submit(world, of(tenant="one")), submit(world, of(tenant="two"))
    (urgent,) = world.peer()(p.SubmitJobHighBg(b"work", b"", of(tenant="flood")))
    assert isinstance(urgent, p.JobCreated)
    order = list(grabs(world.worker()))
    assert order[0] == urgent.handle
    assert order[1:] == [flood[0], one, two, *flood[1:]]


def test_a_rate_lets_a_burst_start_and_then_one_in_each_interval() -> None:
    world = Limited(Rule(b"slow"), slow=rate(10, 1.0, burst=3))
    handles = submit(world, *[b""] * 6)
    worker = world.worker()
    assert list(grabs(worker)) == handles[:3]
    assert world.why(handles[3]) == "slow: 10/s, next in 100 ms"
    assert worker(p.PreSleep()) == []
    world.pass_time(0.11)
    world.finish()
    assert worker.read() == [p.Noop()]
    assert list(grabs(worker)) == [handles[3]]
    world.pass_time(0.1)
    assert list(grabs(worker)) == [handles[4]]


@pytest.mark.parametrize("late", [0.0, 0.003, 0.02])
def test_late_timers_do_not_lower_a_rate(late: float) -> None:
    world = Limited(Rule(b"fast"), fast=rate(100, 1.0))
    submit(world, *[b""] * 7000)
    worker = world.worker()
    started, begun = 0, world.now
    while world.now < begun + 60:
        due = world.broker.next_due()
        world.pass_time(max((due or 0) - world.now, 0) + late)
        started += sum(1 for _ in grabs(worker))
    assert 0.98 * 6000 <= started <= 1.02 * 6000


def test_an_idle_worker_gives_no_more_credit_than_the_burst() -> None:
    world = Limited(Rule(b"fast"), fast=rate(100, 1.0, burst=2))
    worker = world.worker()
    assert len(submit(world, b"1")) == len(list(grabs(worker)))
    world.pass_time(100)
    submit(world, *[b""] * 50)
    assert len(list(grabs(worker))) == 2


def test_limits_change_while_jobs_wait_and_run() -> None:
    world = Limited(Rule(b"one"), one=concurrency(1))
    handles = submit(world, *[b""] * 6)
    worker = world.worker()
    assert list(grabs(worker)) == handles[:1]
    world.limiter.set_limit(b"one", concurrency(3))
    assert list(grabs(worker)) == handles[1:3]
    world.limiter.set_limit(b"one", concurrency(1))
    worker(p.WorkComplete(handles[0], b""), p.WorkComplete(handles[1], b""))
    assert worker.grab() is None
    worker(p.WorkComplete(handles[2], b""))
    assert worker.grab() == handles[3]
    world.limiter.set_limit(b"one", None)
    assert list(grabs(worker)) == handles[4:]


def test_rules_that_come_count_what_runs_and_sort_what_waits() -> None:
    world = Limited(one=concurrency(1))
    handles = submit(world, of(k="a"), of(k="a"), of(k="b"), of(k="a"))
    worker = world.worker()
    assert worker.grab() == handles[0]
    world.use(Rule(b"one", "/k"))
    assert list(grabs(worker)) == [handles[2]]
    worker(p.WorkComplete(handles[0], b""))
    assert list(grabs(worker)) == [handles[1]]
    world.use()
    assert list(grabs(worker)) == [handles[3]]
    assert world.limiter.usage(b"one") == LimitUsage(0, 0, 0, None)


def test_jobs_keep_their_order_when_rules_come_and_go() -> None:
    world = Limited(many=concurrency(100))
    client = world.peer()
    handles = [client.submit_background(workload=of(k=place % 7, g=place % 3)) for place in range(30)]
    for rules, fair in [((Rule(b"many", "/k"),), None), ((), "/g"), ((Rule(b"many"),), None), ((), None)]:
        world.use(*rules, fair=fair)
        assert world.broker.functions.by_name[b"work"].all_waiting == 30
    assert list(grabs(world.worker())) == handles


def test_a_paused_limit_lets_nothing_start() -> None:
    world = Limited(Rule(b"one", "/k"), one=concurrency(1))
    world.limiter.set_limit(b"one", LimitSpec("concurrency", 1, paused=True))
    (handle,) = submit(world, of(k="a"))
    worker = world.worker()
    assert worker(p.PreSleep()) == []
    assert world.why(handle) == "the limit one is paused"
    world.limiter.set_limit(b"one", concurrency(1))
    world.finish()
    assert worker.read() == [p.Noop()]
    assert worker.grab() == handle


def test_a_job_that_would_have_to_wait_is_dropped() -> None:
    world = Limited(Rule(b"one"), one=concurrency(1, "drop"))
    client = world.peer()
    client(p.OptionReq(b"exceptions"))
    first = client.submit()
    second = client.submit()
    world.finish()
    (ended,) = client.read()
    assert isinstance(ended, p.WorkException)
    assert ended.handle == second
    assert b"would have to wait for one" in ended.data
    worker = world.worker()
    assert list(grabs(worker)) == [first]
    third = client.submit()
    world.finish()
    assert [packet.handle for packet in client.read() if isinstance(packet, p.WorkException)] == [third]


def test_a_newcomer_cancels_the_running_job() -> None:
    world = Limited(Rule(b"one", "/k"), one=concurrency(1, "cancel-running"))
    client = world.peer()
    first = client.submit(workload=of(k=1))
    worker = world.worker()
    assert worker.grab() == first
    second = client.submit(workload=of(k=1))
    world.finish()
    assert client.read() == [p.WorkFail(first)]
    assert worker.grab() is None
    worker(p.WorkComplete(first, b""))
    assert worker.grab() == second


def test_a_newcomer_replaces_those_that_wait() -> None:
    world = Limited(Rule(b"one", "/k"), one=concurrency(1, "keep-newest"))
    client = world.peer()
    first, second, third = (client.submit(workload=of(k=1)) for _ in range(3))
    worker = world.worker()
    world.finish()
    assert client.read() == [p.WorkFail(first), p.WorkFail(second)]
    assert worker.grab() == third
    fourth = client.submit(workload=of(k=1))
    fifth = client.submit(workload=of(k=1))
    world.finish()
    assert client.read() == [p.WorkFail(fourth)]
    worker(p.WorkComplete(third, b""))
    assert worker.grab() == fifth


def test_keys_of_kept_jobs_survive_a_restart() -> None:
    world = Durable()
    limiter = world.broker.core.limiter
    limiter.set_limit(b"one", concurrency(1))
    limiter.set_rules(world.broker.functions.ensure(b"work"), FunctionRules((Rule(b"one", "/k"),), "/g"))
    client = world.peer()
    for _ in range(2):
        client(p.SubmitJobBg(b"work", b"", of(k="a", g="b")))
    world.commit()
    world = world.restarted()
    details = [job.details for job in world.broker.jobs.by_number.values()]
    assert [found.keys for found in details if found is not None] == [{"/k": "a", "/g": "b"}] * 2


# ------------------------------------------------------------------------- what else happens to jobs


class StoredLater(Durable):
    """A store that answers later, when the test says so."""

    delayed = True
    prompt = False

    @property
    def limiter(self) -> Limiter:
        return self.broker.core.limiter

    def use(self, *rules: Rule, fair: str | None = None) -> None:
        self.limiter.set_rules(self.broker.functions.ensure(b"work"), FunctionRules(rules, fair))

    def submit(self, *payloads: bytes) -> list[bytes]:
        client = self.peer()
        for payload in payloads:
            client(p.SubmitJobBg(b"work", b"", payload))
        self.write()
        return [packet.handle for packet in client.read() if isinstance(packet, p.JobCreated)]


def large(**fields: object) -> bytes:
    """A payload that does not stay in memory."""
    return of(**fields, text="x" * 5000)


def test_keys_that_are_at_the_store_are_read_in_steps_and_nothing_starts_before() -> None:
    world = StoredLater()
    world.limiter.set_limit(b"one", concurrency(1))
    a1, a2, b1 = world.submit(large(k="a"), large(k="a"), large(k="b"))
    worker = world.worker()
    assert worker(p.GrabJob()) == []  # its workload is on its way
    world.port.answer()
    (answer,) = worker.read()
    assert isinstance(answer, p.JobAssign)
    assert answer.handle == a1
    world.use(Rule(b"one", "/k"))
    assert worker(p.GrabJob()) == [p.NoJob()]  # it is not known yet which key runs
    (late,) = world.submit(of(k="b"))
    world.port.answer_all()
    assert worker(p.GrabJob()) == []
    world.port.answer_all()
    (answer,) = worker.read()
    assert isinstance(answer, p.JobAssign)
    assert answer.handle == b1
    assert worker(p.GrabJob()) == [p.NoJob()]
    worker(p.WorkComplete(b1, b""))
    assert worker.grab() == late
    worker(p.WorkComplete(a1, b""))
    worker(p.GrabJob())
    world.port.answer_all()
    (answer,) = worker.read()
    assert isinstance(answer, p.JobAssign)
    assert answer.handle == a2


def test_a_job_whose_workload_is_read_holds_its_slot_and_frees_it_if_the_worker_goes() -> None:
    world = StoredLater()
    world.limiter.set_limit(b"one", concurrency(1))
    world.use(Rule(b"one", "/k"))
    first, second = world.submit(large(k="a"), large(k="a"))
    worker, other = world.worker(), world.worker()
    assert worker(p.GrabJob()) == []
    assert other(p.GrabJob()) == [p.NoJob()]
    worker.leave()
    world.port.answer_all()  # the first one comes back behind the second
    assert other(p.GrabJob()) == []
    world.port.answer_all()
    (answer,) = other.read()
    assert isinstance(answer, p.JobAssign)
    assert answer.handle == second
    assert world.limiter.usage(b"one") == LimitUsage(1, 1, 1, None)
    assert first != second


def test_keys_are_read_again_after_a_restart_if_the_rules_are_others() -> None:
    disk = Disk()
    disk.heads_only = True
    world = Durable(disk)
    client = world.peer()
    for key in "aab":
        client(p.SubmitJobBg(b"work", b"", large(k=key)))
    world.commit()
    world = Durable.__new__(Durable)
    world.port = DelayedPort(disk)
    World.__init__(world, SizeLimits(), LocalPort(disk))
    limiter = world.broker.core.limiter
    world.disk = disk
    limiter.set_limit(b"one", concurrency(1))
    limiter.set_rules(world.broker.functions.ensure(b"work"), FunctionRules((Rule(b"one", "/k"),)))
    world.broker.restore(disk.load())
    world.commit()
    world.finish()
    assert len(list(grabs(world.worker()))) == 2


def test_a_limited_function_in_doubt_gives_out_nothing() -> None:
    world = Limited(Rule(b"one", "/k"), one=concurrency(1))
    (handle,) = submit(world, of(k="a"))
    world.broker.ownership.hold(True)
    worker = world.worker()
    assert worker(p.PreSleep()) == []
    world.use(Rule(b"one"))
    world.use(Rule(b"one", "/k"))
    attached = world.peer().submit(workload=of(k="b"))
    assert worker(p.PreSleep()) == []
    world.broker.ownership.hold(False)
    world.finish()
    assert worker.read() == [p.Noop()]
    assert list(grabs(worker)) == [handle, attached]


def test_workers_of_many_functions_are_given_jobs_of_limited_ones() -> None:
    world = Limited(Rule(b"one"), one=concurrency(1))
    world.use(Rule(b"one", "/k"), function=b"f7")
    names = [b"f%d" % place for place in range(200)]
    worker = world.worker(*names, b"work")
    assert worker(p.PreSleep()) == []
    first, second = submit(world, b"", b"")
    (third,) = submit(world, of(k=1), function=b"f7")
    (fourth,) = submit(world, b"", function=b"f8")
    assert worker.read() == [p.Noop()]
    assert sorted(grabs(worker)) == [first, third, fourth]
    assert worker(p.PreSleep()) == []
    worker(p.WorkComplete(first, b""))
    world.finish()
    assert worker.read() == [p.Noop()]
    assert worker.grab() == second


def test_jobs_that_are_purged_or_expire_leave_their_lines() -> None:
    world = Limited(Rule(b"one", "/k"), one=concurrency(1))
    client = world.peer()
    running, waiting = (client.submit_background(workload=of(k="a")) for _ in range(2))
    worker = world.worker()
    assert list(grabs(worker)) == [running]
    for key in "ab":
        options = {"function": "work", "expires": 5, "detached": True}
        client(p.SubmitJob(b"gearflow:submit", b"", of(**options) + b"\n" + of(k=key)))
    world.pass_time(6)
    assert [job.state.name for job in world.broker.jobs.by_number.values()] == ["RUNNING", "WAITING"]
    client(p.SubmitJob(b"gearflow:purge", b"", of(function="work")))
    assert world.broker.functions.by_name[b"work"].all_waiting == 0
    assert world.broker.core.find(waiting) is None
    worker(p.WorkComplete(running, b""))
    assert not world.limiter.limits[b"one"].buckets


def test_a_job_that_is_tried_again_passes_its_limits_again() -> None:
    world = Limited(Rule(b"rate"), rate=rate(1, 10.0))
    (first,) = submit(world, b"")
    worker = world.worker()
    worker(p.OptionReq(b"gearflow"))
    assert worker.grab() == first
    worker(p.SubmitJob(b"gearflow:release", b"", of(handle=first.decode())))
    assert world.limiter.usage(b"rate").running == 0
    assert worker.grab() is None
    world.pass_time(10)
    assert worker.grab() == first


def test_idle_buckets_are_forgotten() -> None:
    world = Limited(Rule(b"rate", "/k"), Rule(b"one", "/k"), rate=rate(1, 5.0), one=concurrency(1))
    handles = submit(world, *(of(k=place) for place in range(50)))
    worker = world.worker()
    for handle in grabs(worker):
        worker(p.WorkComplete(handle, b""))
    assert not world.limiter.limits[b"one"].buckets
    assert len(world.limiter.limits[b"rate"].buckets) == len(handles)
    world.pass_time(6)
    assert not world.limiter.limits[b"rate"].buckets
    assert world.broker.next_due() is None


def test_a_flood_of_one_group_does_not_delay_the_others() -> None:
    """Beside a group that floods, a job of another waits for one round of the groups that wait."""
    world = Limited(Rule(b"few"), fair="/tenant", few=concurrency(3))
    submit(world, *[of(tenant="flood")] * 1000)
    worker = world.worker()
    running = list(grabs(worker))
    others = submit(world, *(of(tenant=f"t{place % 20}") for place in range(40)))
    started: list[bytes] = []
    while not set(others) <= set(started):
        worker(p.WorkComplete(running.pop(0), b""))
        (handle,) = grabs(worker)
        running.append(handle)
        started.append(handle)
    assert len(started) <= 2 * 21


def test_a_background_job_that_is_dropped_leaves_a_record_that_says_why() -> None:
    world = Durable()
    limiter = world.broker.core.limiter
    limiter.set_limit(b"one", concurrency(1, "drop"))
    limiter.set_rules(world.broker.functions.ensure(b"work"), FunctionRules((Rule(b"one"),)))
    client = world.peer()
    client(p.SubmitJobBg(b"work", b"", b""), p.SubmitJobBg(b"work", b"", b""))
    world.work()
    first, second = (packet.handle for packet in client.read() if isinstance(packet, p.JobCreated))
    record = world.disk.ended(world.broker.core.handles.number(second) or 0)
    assert record is not None
    assert record.outcome is JobOutcome.CANCELLED
    assert b"would have to wait for one" in bytes(record.body)
    assert list(grabs(world.worker())) == [first]


def test_a_function_that_is_dropped_uses_no_limit_any_more() -> None:
    world = Limited(Rule(b"one"), one=concurrency(1))
    (handle,) = submit(world, b"")
    worker = world.worker()
    assert worker.grab() == handle
    assert not world.broker.drop(b"work")
    worker(p.WorkComplete(handle, b""))
    worker.leave()
    assert world.broker.drop(b"work")
    world.finish()
    assert not world.limiter.limits[b"one"].queues
    assert not world.limiter.limits[b"one"].buckets
    world.limiter.set_limit(b"one", None)
    assert not world.limiter.limits
