"""The last day of a server: a minute at a time, in little memory, over restarts."""

import json

import pytest

from gearflow.broker import history as history_module
from gearflow.broker.storage import HISTORY, Setting
from gearflow.protocol import packets as p
from gearflow.protocol.metrics import ALL, OTHER, Metrics, MetricsRequest, Minute
from tests.broker.harness import Disk, Durable, Peer, World


class Lived(Durable):
    """A server whose shell has begun the history. Its clock begins in the middle of a minute."""

    def __init__(self, disk: Disk | None = None, now: float = 600_030.0) -> None:
        super().__init__(disk)
        self.now = now
        self.broker.core.history.begin(now)
        self.broker.tick(now)

    def next_minute(self) -> None:
        self.pass_time(60.0 - self.now % 60)
        self.finish()
        self.commit()

    def stopped(self) -> Disk:
        """What is left once it was stopped."""
        for _ in self.broker.core.history.close():
            pass
        self.commit()
        return self.disk


@pytest.fixture
def world() -> Lived:
    return Lived()


def minutes(world: World, *functions: str, since: float = 0) -> tuple[Minute, ...]:
    found: list[Metrics] = []
    world.broker.metrics(MetricsRequest(functions=functions or None, since=since), found.append)
    world.finish()
    return found[0].history


def finish_job(client: Peer, worker: Peer, function: bytes = b"work") -> None:
    client.submit(function)
    handle = worker.grab()
    assert handle is not None
    worker(p.WorkComplete(handle, b""))
    client.read()


def test_a_minute_has_what_happened_in_it_and_what_there_was_at_its_end(world: Lived) -> None:
    client, worker = world.peer(), world.worker()
    finish_job(client, worker)
    client.submit()
    client.submit()
    world.pass_time(10)
    assert worker.grab()
    world.next_minute()
    finish_job(client, world.worker(b"other"), b"other")
    world.next_minute()
    world.next_minute()
    first, second, third = minutes(world, "work", "other", ALL)
    assert [minute.at for minute in (first, second, third)] == [600_000, 600_060, 600_120]
    work = first.functions["work"]
    assert (work.submitted, work.started, work.succeeded, work.waiting, work.running) == (3, 2, 1, 1, 1)
    assert (sum(work.wait), sum(work.run), work.oldest) == (2, 1, 30)
    assert first.functions == {"work": work, ALL: work}
    assert second.functions["other"].succeeded == 1
    assert second.functions["work"].submitted == 0
    assert (second.functions[ALL].submitted, second.functions[ALL].waiting) == (1, 1)
    assert second.functions[ALL].oldest == 90
    assert list(third.functions) == ["work", ALL]
    assert third.functions["work"].wait == ()


def test_minutes_are_selected_by_their_begin_and_without_names_they_have_the_sum_alone(world: Lived) -> None:
    world.peer().submit()
    for _ in range(4):
        world.next_minute()
    assert [minute.at for minute in minutes(world, since=600_060)] == [600_060, 600_120, 600_180]
    assert all(list(minute.functions) == [ALL] for minute in minutes(world))


def test_a_minute_in_which_nothing_happened_is_there_and_empty(world: Lived) -> None:
    world.next_minute()
    (minute,) = minutes(world, "work", ALL)
    assert (minute.at, minute.functions) == (600_000, {})


def test_without_a_time_no_history_is_shown(world: Lived) -> None:
    world.next_minute()
    found: list[Metrics] = []
    world.broker.metrics(MetricsRequest(), found.append)
    assert found[0].history == ()


def test_the_busiest_functions_have_lines_and_the_sum_is_that_of_all(
    world: Lived, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "LINES", 2)
    client = world.peer()
    for number in range(5):
        for _ in range(number + 1):
            client.submit(b"f%d" % number)
    world.next_minute()
    (minute,) = minutes(world, *(f"f{number}" for number in range(5)), OTHER, ALL)
    submitted = {name: line.submitted for name, line in minute.functions.items()}
    assert submitted == {"f3": 4, "f4": 5, OTHER: 6, ALL: 15}
    assert minute.functions[OTHER].waiting == 6


def test_a_day_is_kept_and_no_more(world: Lived, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "DAY", 5)
    for _ in range(12):
        world.peer().submit()
        world.next_minute()
    assert [minute.at for minute in minutes(world)] == [600_000 + 60 * place for place in range(7, 12)]
    kept = [setting for setting in world.disk.load().settings if setting.kind == HISTORY]
    assert len(kept) == 5


def test_the_next_server_has_the_history_and_goes_on_with_the_minute_that_was_not_over(world: Lived) -> None:
    client, worker = world.peer(), world.worker()
    for _ in range(2):
        finish_job(client, worker)
        world.next_minute()
    finish_job(client, worker)
    later = Lived(world.stopped(), world.now + 20)
    assert [minute.functions[ALL].succeeded for minute in minutes(later)] == [1, 1, 1]
    finish_job(later.peer(), later.worker())
    later.next_minute()
    assert [minute.functions[ALL].succeeded for minute in minutes(later)] == [1, 1, 2]


def test_a_server_that_is_killed_loses_the_minute_that_was_not_over(world: Lived) -> None:
    client, worker = world.peer(), world.worker()
    for _ in range(3):
        finish_job(client, worker)
        world.next_minute()
    finish_job(client, worker)
    later = Lived(world.disk, world.now + 130)
    assert [minute.at for minute in minutes(later)] == [600_000, 600_060, 600_120]
    later.next_minute()
    assert [minute.at for minute in minutes(later)] == [600_000, 600_060, 600_120, 600_300]


def test_what_is_older_than_a_day_is_not_shown(world: Lived) -> None:
    world.next_minute()
    later = Lived(world.disk, world.now + 86_400 + 60)
    assert minutes(later) == ()


def test_jobs_of_an_earlier_server_are_no_submissions_of_a_minute(world: Lived) -> None:
    client = world.peer()
    client(p.SubmitJobBg(b"work", b"", b"x"))
    world.commit()
    later = Lived(world.stopped(), world.now + 90)
    later.next_minute()
    first, second = minutes(later)
    assert (first.functions[ALL].submitted, second.functions[ALL].submitted) == (1, 0)
    assert second.functions[ALL].waiting == 1


NUMBERS = "1,1,1,1,1,1,1,1"


@pytest.mark.parametrize(
    "value",
    [
        *(b"{}", b"[]", b"\xff", b'["a"]', b'[10000, {"": [1]}]', b"[10000, 3]"),
        *(b"[1e999]", b"[" * 3000 + b"]" * 3000),
        f'[10000, {{"": [{NUMBERS.replace("1", "true")},1,1,null,[1],[1]]}}]'.encode(),
        f'[10000, {{"": [{NUMBERS},1,1,null,"ab",[1]]}}]'.encode(),
        f'[10000, {{"": [{NUMBERS},1,1,null,[1],null]}}]'.encode(),
    ],
)
def test_a_minute_that_is_damaged_or_of_another_version_is_no_obstacle(value: bytes) -> None:
    disk = Disk()
    disk.write([Setting(b"7", HISTORY, value)])
    world = Lived(disk)
    world.next_minute()
    assert [minute.at for minute in minutes(world)][-1] == 600_000
    assert HISTORY not in world.broker.core.settings.values


def test_the_wall_clock_may_be_set(world: Lived) -> None:
    client, worker = world.peer(), world.worker()
    finish_job(client, worker)
    world.next_minute()
    for offset in (-90.0, 3600.0):
        finish_job(client, worker)
        world.broker.clock.offset = offset
        world.next_minute()
    assert sum(minute.functions[ALL].succeeded for minute in minutes(world)) == 3


def test_a_minute_of_many_functions_takes_little_memory(world: Lived) -> None:
    client = world.peer()
    for number in range(200):
        client.submit(b"tasks.of.an.application.%d" % number)
    world.next_minute()
    (setting,) = [setting for setting in world.disk.load().settings if setting.kind == HISTORY]
    assert len(setting.value) < 5000
    assert len(json.loads(setting.value)[1]) == history_module.LINES + 2
