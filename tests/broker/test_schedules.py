"""Schedules: each tick makes one job, whatever happens to the server, its store and its clock."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol.envelope import unwrap
from tests.broker.clockwork import (
    DAY,
    HOUR,
    MINUTE,
    NOON,
    Clockwork,
    Refused,
    TickingDisk,
    scheduled_at,
)
from tests.broker.harness import World


@pytest.fixture
def world() -> Clockwork:
    return Clockwork()


# ------------------------------------------------------------------------------------------------- ticks


def test_a_tick_makes_a_job_at_its_time(world: Clockwork) -> None:
    assert world.put() == {"created": ["s"]}
    world.wait(HOUR - 1)
    assert world.times == []
    world.wait(1)
    assert world.times == [NOON + HOUR]
    (job,) = world.ticking_disk.made
    assert (job.function, job.unique) == (b"work", b"cron:s:2026-11-28T13:00:00Z")
    world.wait(2 * HOUR)
    assert world.after_noon == [60]  # nobody runs the first one, so the others overlap
    assert world.show()["overlapped"] == 2


def test_the_worker_sees_the_time_of_the_tick(world: Clockwork) -> None:
    world.put(cron="30 14 * * *", tz="Europe/Berlin", payload="p")
    worker = world.worker()
    assert worker(p.OptionReq(b"gearflow"))
    world.wait(DAY)
    (job,) = worker(p.GrabJobUniq())
    assert isinstance(job, p.JobAssignUniq)
    envelope, payload = unwrap(job.workload)
    assert envelope.scheduled_at == (NOON + 90 * MINUTE, "Europe/Berlin")
    assert payload == b"p"


def test_the_job_has_the_keys_and_the_group_of_the_schedule(world: Clockwork) -> None:
    spec = {
        "name": "s",
        "function": "work",
        "when": {"cron": "0 * * * *"},
        "keys": {"shop": "a"},
        "group": "g",
    }
    world.call(b"gearflow:schedule", do="put", schedules=[spec])
    world.wait(HOUR)
    (job,) = world.ticking_disk.made
    options = json.loads(job.options)
    assert (options["keys"], options["group"]) == ({"shop": "a"}, "g")


def test_a_worker_that_knows_no_envelopes_gets_the_plain_payload(world: Clockwork) -> None:
    world.put(payload="p")
    worker = world.worker()
    world.wait(HOUR)
    (job,) = worker(p.GrabJob())
    assert isinstance(job, p.JobAssign)
    assert job.workload == b"p"


def test_the_job_and_the_next_time_are_one_change(world: Clockwork) -> None:
    world.put()
    world.unix += HOUR
    world.now += HOUR
    world.broker.tick(world.now)
    changes = [change for change, _ in world.broker.journal.entries]
    assert [type(change).__name__ for change in changes] == ["Ticked"]
    worker = world.worker()
    assert worker.grab() is None  # it is not kept yet
    world.settle()
    assert worker.grab() is not None


def test_an_interval_counts_from_the_first_put(world: Clockwork) -> None:
    world.put(every=300, overlap="allow")
    world.wait(100)
    world.put(every=600, overlap="allow")
    world.wait(1100)
    assert world.after_noon == [10, 20]


def test_an_interval_counts_from_its_start(world: Clockwork) -> None:
    world.put(every=600, start=NOON + 90, end=NOON + 1300, overlap="allow")
    world.wait(HOUR)
    assert world.after_noon == [1.5, 11.5, 21.5]
    assert "next" not in world.show()
    assert world.rebooted(HOUR).show()["ticks"] == 3


def test_a_tick_waits_for_a_worker_and_the_schedule_says_that_there_is_none(world: Clockwork) -> None:
    world.put()
    assert "has_worker" not in world.show()
    world.wait(HOUR)
    assert world.show()["state"] == "waiting"
    runner = world.runner()
    assert world.show()["has_worker"]
    assert runner.run_all() == 1
    assert world.show()["state"] == "completed"


def test_the_jitter_delays_the_start_of_the_job_and_not_the_ticks(world: Clockwork) -> None:
    world.put(cron="* * * * *", jitter=30, overlap="allow")
    world.wait(10 * MINUTE)
    jobs = world.ticking_disk.made
    assert world.after_noon == list(range(1, 11))
    delays = [job.due - time for job, time in zip(jobs, world.times, strict=True)]
    assert all(0 <= delay <= 30 for delay in delays)
    assert len(set(delays)) > 5


# ------------------------------------------------------------------------------------------- the store


def test_a_tick_that_cannot_be_kept_is_tried_until_it_is(world: Clockwork) -> None:
    world.put(missed="skip")
    world.ticking_disk.full = True
    world.wait(HOUR + 10 * MINUTE)
    assert world.times == []
    assert world.show()["fault"] == "the disk is full"
    assert world.log() == ["the schedule s cannot make its job, which is tried again: the disk is full"]
    assert world.worker().grab() is None
    world.ticking_disk.full = False
    world.wait(2)
    assert world.after_noon == [60]
    assert "fault" not in world.show()
    assert world.show()["next"] == [NOON + 2 * HOUR]


def test_a_tick_waits_until_its_function_has_a_place(world: Clockwork) -> None:
    world.peer().submit(b"work")
    world.broker.functions.limit(b"work", 1, 1, 1)
    world.put(missed="skip")
    world.wait(HOUR + MINUTE)
    assert world.times == []
    assert world.show()["fault"] == "Job queue is full"
    world.runner().run_all()
    world.wait(2)
    assert world.after_noon == [60]


def test_a_restart_goes_on_where_the_last_server_was(world: Clockwork) -> None:
    world.put(overlap="allow")
    world.wait(HOUR)
    world = world.rebooted(HOUR - 2)
    world.wait(2)
    assert world.after_noon == [60, 120]
    assert world.worker().grab() is not None
    world = world.rebooted(HOUR + 3)  # a tick that is three seconds late is on time
    assert world.after_noon == [60, 120, 180]
    assert world.show()["ticks"] == 3


class ForgetfulDisk(TickingDisk):
    """A store in memory."""

    durable = False


def test_the_schedules_of_a_server_in_memory_live_as_long_as_it_does() -> None:
    world = Clockwork(ForgetfulDisk())
    world.put()
    runner = world.runner()
    world.wait(HOUR)
    assert runner.run_all() == 1
    assert world.show()["state"] == "completed"
    world.wait(HOUR)
    assert runner.run_all() == 1
    assert world.after_noon == [60, 120]


def test_a_server_without_any_store_follows_schedules() -> None:
    world = World()
    world.broker.clock.offset = NOON - world.now
    caller, worker = world.peer(), world.worker()
    spec = {"name": "s", "function": "work", "when": {"cron": "0 * * * *"}}
    request = json.dumps({"do": "put", "schedules": [spec]}).encode()
    (_, answer) = caller(p.SubmitJob(b"gearflow:schedule", b"", request))
    assert isinstance(answer, p.WorkComplete)
    for _ in range(3):
        world.pass_time(HOUR)
        handle = worker.grab()
        assert handle is not None
        worker(p.WorkComplete(handle, b""))


# ----------------------------------------------------------------------------------------------- missed

WEEK = 7 * DAY


def test_after_a_week_the_last_missed_tick_is_made_up_for(world: Clockwork) -> None:
    world.put(overlap="allow")
    world = world.rebooted(WEEK + 60)
    assert world.times == [NOON + WEEK]
    assert world.show()["missed"] == 7 * 24 - 1
    assert world.log() == ["the schedule s has missed ticks, which are not made up for: 167"]
    world.wait(HOUR)
    assert world.times == [NOON + WEEK, NOON + WEEK + HOUR]


def test_after_a_week_no_missed_tick_is_made_up_for_if_they_are_skipped(world: Clockwork) -> None:
    world.put(overlap="allow", missed="skip")
    world = world.rebooted(WEEK + 60)
    assert world.times == []
    assert world.show()["missed"] == 7 * 24
    world.wait(HOUR)
    assert world.times == [NOON + WEEK + HOUR]


def test_after_a_week_all_missed_ticks_within_the_grace_are_made_up_for(world: Clockwork) -> None:
    world.put(overlap="allow", missed="all")
    world.put("long", overlap="skip", missed="all", grace=WEEK + 100)
    world = world.rebooted(WEEK + 60)
    ticks = [job.unique for job in world.ticking_disk.made]
    assert len(ticks) == len(set(ticks)) == 24 + 7 * 24
    assert world.show()["missed"] == 6 * 24
    assert "missed" not in world.show("long")
    assert world.show("long")["ticks"] == 7 * 24


def test_a_tick_older_than_the_grace_is_not_made_up_for(world: Clockwork) -> None:
    world.put(cron="0 13 * * *", grace=HOUR)
    world = world.rebooted(2 * HOUR + 60)
    assert world.times == []
    assert world.show()["missed"] == 1
    world = world.rebooted(DAY - HOUR + 60)
    assert world.times == [NOON + HOUR + DAY]


def test_a_late_tick_is_not_made_up_for_beside_one_that_is_on_time(world: Clockwork) -> None:
    world.put(overlap="allow")
    world = world.rebooted(3 * HOUR + 1)
    assert world.after_noon == [180]
    assert world.show()["missed"] == 2


def test_making_up_for_many_ticks_does_one_change_a_turn(world: Clockwork) -> None:
    world.put(cron="* * * * *", overlap="allow", missed="all")
    disk = world.ticking_disk
    before = disk.writes
    world = world.rebooted(DAY / 2 + 30)
    assert len(world.times) == 720
    assert disk.writes - before >= 720


# ---------------------------------------------------------------------------------- steps of the clock


@pytest.mark.parametrize("missed", ["once", "skip", "all"])
def test_a_clock_that_is_set_back_doubles_no_tick(world: Clockwork, missed: str) -> None:
    world.put(cron="*/10 * * * *", overlap="allow", missed=missed)
    world.wait(30 * MINUTE)
    assert world.after_noon == [10, 20, 30]
    world.set_clock(world.unix - HOUR)
    world.wait(HOUR)
    assert world.after_noon == [10, 20, 30]
    world.wait(10 * MINUTE)
    assert world.after_noon == [10, 20, 30, 40]


def test_a_tick_that_could_not_be_kept_comes_again_after_the_clock_is_set_back(world: Clockwork) -> None:
    world.put(overlap="allow")
    world.ticking_disk.full = True
    world.wait(HOUR + 1)
    world.set_clock(world.unix - 600)
    world.wait(10)
    world.ticking_disk.full = False
    world.wait(700)
    assert world.after_noon == [60]


@pytest.mark.parametrize(
    ("missed", "after"),
    [("once", [10, 65 // 10 * 10]), ("skip", [10]), ("all", [10, 20, 30, 40, 50, 60, 70])],
)
def test_a_clock_that_is_set_forward_makes_ticks_that_were_missed(
    world: Clockwork, missed: str, after: list[int]
) -> None:
    world.put(cron="*/10 * * * *", overlap="allow", missed=missed)
    world.wait(11 * MINUTE)
    world.set_clock(world.unix + HOUR)
    world.wait(1)
    after = [10, 70] if missed == "once" else after
    assert world.after_noon == after
    world.set_clock(world.unix - HOUR)
    world.wait(HOUR + MINUTE)
    assert world.after_noon == after
    world.wait(10 * MINUTE)
    assert world.after_noon == [*after, 80]


# ---------------------------------------------------------------------------------------------- overlap


def test_overlap_skip_counts_and_logs_what_it_skips(world: Clockwork) -> None:
    world.put()
    runner = world.runner()
    world.wait(HOUR)
    first = runner.take()
    assert first is not None
    world.wait(HOUR)
    assert world.after_noon == [60]
    assert world.log() == [
        "the schedule s skips ticks, because the job of an earlier one has not ended: 1",
    ]
    runner.end(first)
    world.wait(HOUR)
    assert world.after_noon == [60, 180]
    assert world.show()["overlapped"] == 1


def test_overlap_allow_runs_both(world: Clockwork) -> None:
    world.put(overlap="allow")
    runner = world.runner()
    world.wait(2 * HOUR)
    assert runner.take() != runner.take() is not None


def test_overlap_cancel_cancels_the_earlier_one(world: Clockwork) -> None:
    world.put(overlap="cancel")
    world.wait(2 * HOUR)
    assert world.after_noon == [60, 120]
    runner = world.runner()
    assert runner.take() == world.show()["handle"].encode()
    assert runner.take() is None


def test_overlap_queue_runs_the_next_one_when_the_first_has_ended(world: Clockwork) -> None:
    world.put(overlap="queue")
    runner = world.runner()
    world.wait(HOUR)
    first = runner.take()
    assert first is not None
    world.wait(HOUR)
    assert world.after_noon == [60]
    assert world.show()["queued"] == NOON + 2 * HOUR
    world.wait(10)
    runner.end(first)
    assert world.after_noon == [60, 120]
    assert "queued" not in world.show()
    assert runner.run_all() == 1
    world.wait(HOUR)
    assert world.after_noon == [60, 120, 180]


@pytest.mark.parametrize(
    ("missed", "after", "overlapped"),
    [("once", [60, 240], 2), ("skip", [60, 120], 2), ("all", [60, 120, 180, 240], 0)],
)
def test_one_tick_is_queued_and_missed_says_which(
    world: Clockwork, missed: str, after: list[int], overlapped: int
) -> None:
    world.put(overlap="queue", missed=missed)
    runner = world.runner()
    world.wait(HOUR)
    first = runner.take()
    assert first is not None
    world.wait(3 * HOUR)
    assert world.after_noon == [60]
    runner.end(first)
    runner.run_all()
    world.wait(MINUTE)
    assert world.after_noon == after
    assert world.show().get("overlapped", 0) == overlapped


def test_a_queued_tick_waits_through_a_restart_and_a_pause(world: Clockwork) -> None:
    world.put(overlap="queue", missed="skip")
    world.wait(2 * HOUR)
    world = world.rebooted(2 * MINUTE)
    world.change("pause")
    assert world.runner().run_all() == 1
    world.wait(MINUTE)
    assert world.after_noon == [60]
    world.change("resume")
    assert world.after_noon == [60, 120]
    assert world.show()["next"] == [NOON + 3 * HOUR]


# ------------------------------------------------------------------------------- calls of operators


def test_the_ticks_of_a_paused_schedule_are_skipped_and_not_missed(world: Clockwork) -> None:
    world.put(overlap="allow", missed="all")
    assert world.change("pause")["paused"]
    world.wait(3 * HOUR + 60)
    world = world.rebooted(HOUR)
    shown = world.show()
    assert (shown["skipped"], shown["next"]) == (4, [NOON + 5 * HOUR])
    assert world.times == []
    shown = world.change("resume")
    assert (shown["skipped"], shown["next"], "paused" in shown) == (4, [NOON + 5 * HOUR], False)
    assert world.log() == ["the schedule s was paused, so ticks are skipped: 4"]
    world.wait(HOUR)
    assert world.after_noon == [300]


def test_a_tick_that_comes_right_after_a_pause_is_not_skipped(world: Clockwork) -> None:
    world.put(every=60)
    world.change("pause")
    world.wait(179.5)
    shown = world.change("resume")
    assert (shown["skipped"], shown["next"][0]) == (2, NOON + 180)
    world.wait(1)
    assert world.after_noon == [3]


def test_a_put_does_not_resume_a_schedule(world: Clockwork) -> None:
    world.put()
    world.change("pause")
    assert world.put(payload="other") == {"changed": ["s"]}
    assert world.show()["paused"]


def test_a_put_with_the_same_times_keeps_the_next_one_and_the_counts(world: Clockwork) -> None:
    world.put()
    world.wait(HOUR + MINUTE)
    assert world.put(payload="other", grace=60) == {"changed": ["s"]}
    assert world.put(payload="other", grace=60) == {"unchanged": ["s"]}
    shown = world.show()
    assert (shown["ticks"], shown["next"]) == (1, [NOON + 2 * HOUR])
    world.runner().run_all()
    world.wait(HOUR)
    assert [job.workload for job in world.ticking_disk.made] == [b"", b"other"]


def test_a_put_with_other_times_makes_no_tick_again(world: Clockwork) -> None:
    world.put(overlap="allow")
    world.wait(HOUR)
    world.set_clock(world.unix - MINUTE)
    world.put(cron="0,30 * * * *", overlap="allow")
    world.wait(HOUR)
    assert world.after_noon == [60, 90]


def test_a_deleted_schedule_makes_no_more_jobs(world: Clockwork) -> None:
    world.put()
    assert world.change("delete") == {"removed": ["s"]}
    world.wait(DAY)
    assert world.times == []
    assert world.rebooted(DAY).times == []
    for do in ("delete", "pause", "trigger"):
        with pytest.raises(Refused, match="there is no schedule 's'") as refused:
            world.change(do)
        assert refused.value.kind == "gearflow:unknown"


def test_a_trigger_makes_a_job_now_and_leaves_the_ticks_alone(world: Clockwork) -> None:
    world.put()
    world.change("pause")
    made = world.change("trigger")
    assert made["jobs"] == 1
    assert world.times == [NOON]
    assert world.show().get("ticks", 0) == 0
    assert world.worker().grab() == made["handle"].encode()


def test_a_backfill_makes_the_job_of_each_past_time_once(world: Clockwork) -> None:
    world.put(overlap="skip")
    world.wait(HOUR)
    made = world.change("backfill", since=NOON - 3 * HOUR)
    assert made == {"jobs": 4, "joined": 1}  # that of one o'clock is there and has not run
    assert sorted(world.after_noon) == [-180, -120, -60, 0, 60]
    assert world.change("backfill", since=NOON - 3 * HOUR) == {"jobs": 0, "joined": 5}
    world.wait(HOUR)
    assert world.show()["ticks"] == 1
    with pytest.raises(Refused, match="in the future"):
        world.change("backfill", since=NOON, until=NOON + DAY)
    with pytest.raises(Refused, match="more than 10000 times"):
        world.change("backfill", since=NOON - 500 * DAY)


def test_a_backfill_leaves_a_tick_that_is_due_to_the_schedule(world: Clockwork) -> None:
    world.put()
    world.set_clock(NOON + HOUR)
    world.broker.clock.now = world.now
    world.change("backfill", since=NOON)
    assert world.after_noon.count(60) == 1


def test_apply_shows_a_diff_and_prunes_only_its_origin(world: Clockwork) -> None:
    world.put("mine")
    spec = {"name": "a", "function": "f", "when": {"cron": "0 0 * * *"}}
    other = {**spec, "name": "b"}

    def apply(*specs: object, **options: object) -> object:
        return world.call(b"gearflow:schedule", do="apply", origin="code", schedules=specs, **options)

    assert apply(spec, other, dry_run=True) == {"created": ["a", "b"]}
    assert apply(spec, other) == {"created": ["a", "b"]}
    assert apply(spec, other) == {"unchanged": ["a", "b"]}
    changed = {**spec, "payload": "x"}
    assert apply(changed, prune=True, dry_run=True) == {"changed": ["a"], "removed": ["b"]}
    assert apply(changed, prune=True, others=["b"]) == {"changed": ["a"]}
    assert apply(changed, prune=True) == {"unchanged": ["a"], "removed": ["b"]}
    assert [each["schedule"]["name"] for each in world.call(b"gearflow:schedules")["schedules"]] == [
        "a",
        "mine",
    ]
    with pytest.raises(Refused, match="'mine' is there already, put by 'client'"):
        apply(changed, {**spec, "name": "mine"})
    assert world.show("a")["origin"] == "code"


@pytest.mark.parametrize(
    ("when", "fault"),
    [
        ({"cron": "61 * * * *"}, "61"),
        ({"cron": "0 0 30 2 *"}, "0 0 30 2"),
        ({"cron": "0 3 * * *", "tz": "Europe/Berln"}, "Europe/Berln"),
        ({"cron": "0 3 * * *", "every": 5}, "either cron or every"),
        ({}, "either cron or every"),
        ({"every": 0.5}, "greater than or equal to 1"),
        ({"every": 300, "tz": "Europe/Berlin"}, "no time zone"),
        ({"every": 300, "missed": "some"}, "'once', 'skip' or 'all'"),
        ({"every": 300, "start": 10, "end": 5}, "end is before start"),
    ],
)
def test_what_the_server_cannot_follow_is_refused(
    world: Clockwork, when: dict[str, object], fault: str
) -> None:
    spec = {"name": "s", "function": "f", "when": when}
    with pytest.raises(Refused, match=fault) as refused:
        world.call(b"gearflow:schedule", do="put", schedules=[spec])
    assert refused.value.kind == "gearflow:invalid"
    assert world.call(b"gearflow:schedules") == {"schedules": [], "total": 0}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"payload": "x" * 70_000}, "more than 65536 bytes"),
        ({"payload": "?", "encoding": "base64"}, "base64"),
        ({"function": "gearflow:info"}, "no job can have the function"),
        ({"function": "f" * 10_000}, "longer than"),
        ({"name": "a\nb"}, "cannot be printed"),
    ],
)
def test_a_job_that_the_server_could_not_make_is_refused(
    world: Clockwork, change: dict[str, object], fault: str
) -> None:
    spec = {"name": "s", "function": "f", "when": {"every": 60}, **change}
    with pytest.raises(Refused, match=fault):
        world.call(b"gearflow:schedule", do="put", schedules=[spec])


def test_a_schedule_of_a_later_version_is_left_alone(world: Clockwork) -> None:
    world.put()
    (setting,) = world.disk.load().settings
    value = json.loads(setting.value)
    value["spec"]["when"]["moon"] = "full"
    world.disk.write([setting._replace(value=json.dumps(value).encode())])
    world = world.rebooted(HOUR)
    assert "cannot be read" in world.log()[0]
    assert world.times == []
    (kept,) = world.disk.load().settings
    assert json.loads(kept.value) == value


def test_the_options_of_a_schedule_are_those_of_its_jobs(world: Clockwork) -> None:
    spec = {
        "name": "s",
        "function": "work",
        "payload": "AAE=",
        "encoding": "base64",
        "when": {"every": 60},
        "priority": "high",
        "expires": 30,
        "keep": 7,
        "timeout": 2.5,
        "retries": {"delays": [1, 2]},
    }
    world.call(b"gearflow:schedule", do="put", schedules=[spec])
    assert world.show()["schedule"] == spec
    world.wait(60)
    (job,) = world.ticking_disk.made
    assert (job.workload, job.priority) == (b"\0\x01", 0)
    options = json.loads(job.options)
    del options["scheduled_at"]
    assert options == {"expires": NOON + 90, "keep": 7, "timeout": 2.5, "retries": {"delays": [1, 2]}}


def test_a_long_name_has_uniques_of_its_own(world: Clockwork) -> None:
    names = [f"{'n' * 100}{number}" for number in range(3)]
    for name in names:
        world.put(name)
    world.wait(HOUR)
    uniques = {job.unique for job in world.ticking_disk.made}
    assert len(uniques) == 3
    assert all(len(unique) == 64 and unique.endswith(b":2026-11-28T13:00:00Z") for unique in uniques)


def test_the_list_is_sorted_and_comes_in_pages(world: Clockwork) -> None:
    for name in ("c", "a", "b"):
        world.put(name, function=f"of {name}")
    page = world.call(b"gearflow:schedules", limit=2, times=3)
    assert [each["schedule"]["name"] for each in page["schedules"]] == ["a", "b"]
    assert page["schedules"][0]["next"] == [NOON + HOUR, NOON + 2 * HOUR, NOON + 3 * HOUR]
    assert page["total"] == 3
    page = world.call(b"gearflow:schedules", after="b")
    assert [each["schedule"]["name"] for each in page["schedules"]] == ["c"]
    page = world.call(b"gearflow:schedules", function="of b")
    assert [each["schedule"]["name"] for each in page["schedules"]] == ["b"]


def test_ten_thousand_schedules_of_a_minute_take_no_long_turn(world: Clockwork) -> None:
    specs = [{"name": str(place), "function": "work", "when": {"every": 60}} for place in range(10_000)]
    for start in range(0, len(specs), 1000):
        world.call(b"gearflow:schedule", do="put", schedules=specs[start : start + 1000])
    steps = 0

    def is_late() -> bool:
        nonlocal steps
        steps += 1
        return steps % 20 == 0

    world.now += 60
    world.unix += 60
    world.broker.turns.is_late = is_late
    turns = 0
    while (due := world.broker.next_due()) is not None and due <= world.now:
        world.broker.tick(world.now)
        assert len(world.broker.journal.entries) <= 50
        world.commit()
        turns += 1
    assert turns >= 400
    assert len(world.times) == 10_000


# ------------------------------------------------------------------------------------ changes of clocks

ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Santiago",
    "Pacific/Chatham",
    "Africa/Casablanca",
)


def nights(zone: ZoneInfo) -> Iterator[tuple[datetime, timedelta]]:
    """When clocks are changed in 2027, and by how much."""
    hour = datetime(2027, 1, 1, tzinfo=UTC)
    while hour.year == 2027:
        following = hour + timedelta(minutes=30)
        before, after = (each.astimezone(zone).utcoffset() for each in (hour, following))
        assert before is not None
        assert after is not None
        if before != after:
            yield following, after - before
        hour = following


@pytest.mark.parametrize("name", ZONES)
def test_both_nights_in_which_clocks_are_changed_have_the_ticks_that_they_should(name: str) -> None:
    zone = ZoneInfo(name)
    found = list(nights(zone))
    assert sorted(change > timedelta() for _, change in found) == [False, True]
    for change, by in found:
        evening = change - timedelta(hours=30)
        first = change.astimezone(zone).replace(tzinfo=None)  # what clocks show afterwards
        wall = first - by / 2  # which is skipped, or shown twice
        world = Clockwork(unix=evening.timestamp())
        world.put("once", cron=f"{wall.minute} {wall.hour} * * *", tz=name, overlap="allow")
        world.put("often", cron="*/20 * * * *", tz=name, overlap="allow")
        world.wait(30 * HOUR - 2)
        world = world.rebooted(3)  # clocks are changed while no server is there
        world.wait(30 * HOUR)
        made = {
            each: [scheduled_at(job) for job in world.ticking_disk.made if job.unique.startswith(each)]
            for each in (b"cron:once", b"cron:often")
        }
        days = [datetime.fromtimestamp(time, zone).date() for time in made[b"cron:once"]]
        assert len(days) == len(set(days))
        assert (days[-1] - days[0]).days == len(days) - 1 >= 1
        minutes = [evening.timestamp() + MINUTE * place for place in range(1, 60 * 60 + 1)]
        expected = [time for time in minutes if datetime.fromtimestamp(time, zone).minute % 20 == 0]
        assert made[b"cron:often"] == expected
