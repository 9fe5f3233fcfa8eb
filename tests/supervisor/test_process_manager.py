"""Which processes there are to be: events in, orders out."""

from signal import SIGINT, SIGKILL, SIGTERM

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.supervisor.process_manager import (
    GRACE,
    LEAVE_GRACE,
    LOOP,
    PINGS,
    STABLE,
    CheckAlive,
    CrashLoop,
    Exit,
    Hung,
    Kill,
    Lost,
    Misconfigured,
    Order,
    ProcessManager,
    Quiet,
    Reloaded,
    ReloadFailed,
    Restart,
    Resume,
    Serving,
    Silent,
    Start,
    Stop,
    StopCold,
    StopTimedOut,
)

CRASH = -11  # SIGSEGV


def serving(places: int, *, drain: float | None = None, burst: bool = False) -> ProcessManager:
    """A manager whose processes all serve; they are called 1, 2, 3."""
    manager = ProcessManager(places, drain=drain, burst=burst, jitter=lambda: 0.0)
    assert manager.begin() == [Start(number + 1) for number in range(places)]
    for number in range(1, places):
        assert manager.ready(number, now=0) == []
    assert manager.ready(places, now=0) == [Serving()]
    return manager


# ------------------------------------------------------------------------------------------------- deaths


def test_a_process_that_dies_is_followed_by_another_after_a_moment() -> None:
    manager = serving(2)
    assert manager.ended(1, CRASH, now=STABLE) == [Lost(1, Restart(0.25, looping=False))]
    assert manager.due == STABLE + 0.25
    assert manager.tick(now=manager.due - 0.01) == []
    assert manager.tick(now=manager.due) == [Start(3)]
    assert manager.ready(3, now=STABLE + 1) == []


def test_quick_deaths_in_a_row_are_a_loop_and_wait_the_longest() -> None:
    manager = serving(1)
    number, waits = 1, list[float]()
    for _ in range(LOOP):
        (lost,) = manager.ended(number, CRASH, now=1)
        assert isinstance(lost, Lost)
        assert lost.restart is not None
        waits.append(lost.restart.after)
        assert lost.restart.looping == (len(waits) == LOOP)
        (started,) = manager.tick(now=manager.due)
        assert isinstance(started, Start)
        number = started.number
    assert waits == [0.25, 0.5, 1.0, 2.0, 60.0]


def test_long_service_ends_a_row_of_deaths() -> None:
    manager = serving(1)
    for number in range(1, LOOP):
        manager.ended(number, CRASH, now=1)
        manager.tick(now=manager.due)
    manager.ready(LOOP, now=10)
    assert manager.ended(LOOP, CRASH, now=10 + STABLE) == [Lost(LOOP, Restart(0.25, looping=False))]


def test_a_process_that_ends_by_itself_is_replaced_too() -> None:
    manager = serving(1)
    assert manager.ended(1, 0, now=1) == [Lost(1, Restart(0.25, looping=False))]


def test_a_first_process_that_cannot_start_ends_them_all() -> None:
    manager = ProcessManager(3)
    manager.begin()
    assert manager.ended(2, 78, now=1) == [Misconfigured(2), Kill(1), Kill(3)]
    assert manager.ended(1, -SIGKILL, now=1) == []
    assert manager.ended(3, 78, now=1) == [Exit(78)]


def test_a_later_process_that_cannot_start_does_not() -> None:
    manager = serving(2)
    manager.ended(1, CRASH, now=1)
    manager.tick(now=manager.due)
    (lost,) = manager.ended(3, 78, now=2)
    assert isinstance(lost, Lost)


# -------------------------------------------------------------------------------------------------- hangs


def hang(manager: ProcessManager, number: int) -> list[Order]:
    """CheckAlive for as long as it takes, without an answer of this one; the last orders."""
    for _ in range(PINGS):
        manager.ping()
    return [order for order in manager.ping() if order != CheckAlive(number)]


def test_one_that_does_not_answer_is_told_and_then_killed_and_replaced() -> None:
    manager = serving(1)
    looks = [manager.ping() for _ in range(PINGS + 2)]
    ask = [CheckAlive(1)]
    assert looks == [ask, ask, ask, [CheckAlive(1), Silent(1)], ask, ask, [Hung(1), Kill(1)], []]
    assert manager.ended(1, -SIGKILL, now=STABLE) == [Lost(1, Restart(0.25, looping=False))]
    assert manager.tick(now=manager.due) == [Start(2)]


def test_one_answer_will_do() -> None:
    manager = serving(2)
    for _ in range(3 * PINGS):
        for _ in range(PINGS):
            assert Hung(1) not in manager.ping()
            manager.answered(2)
        manager.answered(1)


def test_only_processes_that_serve_are_asked() -> None:
    manager = ProcessManager(1, drain=None)
    manager.begin()
    assert manager.ping() == []  # it may import for long
    manager.ready(1, now=0)
    assert manager.ping() == [CheckAlive(1)]
    manager.retiring(1)
    assert manager.ping() == [CheckAlive(1)]
    manager.ready(2, now=1)
    assert manager.ping() == [CheckAlive(2)]
    manager.stop(SIGTERM, now=2)
    assert manager.ping() == []  # what runs may take as long as it likes


def test_one_that_hangs_before_it_is_ready_is_killed_and_replaced() -> None:
    manager = ProcessManager(1, jitter=lambda: 0.0)
    manager.begin()
    manager.started(1, now=0)
    assert hang(manager, 1) == [Hung(1), Kill(1)]
    assert manager.ended(1, -SIGKILL, now=5) == [Lost(1, Restart(0.25, looping=False))]
    assert manager.tick(now=manager.due) == [Start(2)]
    assert manager.ping() == []  # it may import for long, like the first one
    assert manager.ready(2, now=6) == [Serving()]


def test_a_job_that_a_process_took_before_it_was_ready_may_last_as_long_as_any_other() -> None:
    manager = ProcessManager(1, drain=10)
    manager.begin()
    manager.started(1, now=0)
    manager.stop(SIGTERM, now=1)
    assert manager.due == 1 + 10 + GRACE
    assert manager.tick(now=manager.due) == [StopTimedOut(1), Kill(1)]
    assert manager.ended(1, -SIGKILL, now=20) == [Exit(128 + SIGTERM)]


def test_one_that_hangs_while_its_successor_starts_is_followed_by_that() -> None:
    manager = serving(1)
    assert manager.reload(now=0) == [Start(2)]
    assert hang(manager, 1) == [Hung(1), Kill(1)]
    assert manager.ended(1, -SIGKILL, now=5) == [Lost(1, None)]
    assert manager.ready(2, now=6) == [Reloaded()]


# ---------------------------------------------------------------------------------------------- retiring


def test_one_that_retires_goes_on_until_its_successor_is_ready() -> None:
    manager = serving(2)
    assert manager.retiring(1) == [Start(3)]
    assert manager.retiring(1) == []
    assert manager.ready(3, now=5) == [Stop(1)]
    assert manager.ended(1, 0, now=6) == []
    assert manager.serving == 2


def test_a_successor_that_dies_is_tried_again_while_the_old_one_goes_on() -> None:
    manager = serving(1)
    manager.retiring(1)
    assert manager.ended(2, 78, now=5) == [Lost(2, Restart(0.25, looping=False))]
    assert manager.tick(now=manager.due) == [Start(3)]
    assert manager.ready(3, now=6) == [Stop(1)]


def test_one_that_dies_while_its_successor_starts_is_followed_by_that() -> None:
    manager = serving(1)
    manager.retiring(1)
    assert manager.ended(1, CRASH, now=5) == [Lost(1, None)]
    assert manager.ready(2, now=6) == []
    assert manager.serving == 1


# ---------------------------------------------------------------------------------------------- new code


def test_new_code_is_taken_up_in_one_place_after_the_other() -> None:
    manager = serving(2)
    assert manager.reload(now=0) == [Start(3)]
    assert manager.ready(3, now=1) == [Stop(1), Start(4)]
    assert manager.ended(1, 0, now=2) == []
    assert manager.ready(4, now=3) == [Stop(2), Reloaded()]
    assert manager.ended(2, 0, now=4) == []


def test_new_code_that_does_not_start_changes_nothing() -> None:
    manager = serving(2)
    manager.reload(now=0)
    assert manager.ended(3, 78, now=1) == [ReloadFailed(3)]
    assert manager.serving == 2
    assert manager.due == float("inf")
    assert manager.reload(now=0) == [Start(4)]  # it was put right


def test_one_that_retires_is_still_replaced_when_new_code_was_refused() -> None:
    manager = serving(2)
    assert manager.retiring(2) == [Start(3)]
    assert manager.reload(now=0) == [Stop(3), Start(4)]
    assert manager.ended(3, 0, now=1) == []
    assert manager.ended(4, 78, now=1) == [ReloadFailed(4), Start(5)]
    assert manager.ended(5, 78, now=2) == [Lost(5, Restart(0.25, looping=False))]
    assert manager.tick(now=manager.due) == [Start(6)]
    assert manager.ready(6, now=3) == [Stop(2)]


def test_code_that_is_newer_still_is_not_missed() -> None:
    manager = serving(1)
    manager.reload(now=0)
    assert manager.reload(now=1) == [Stop(2), Start(3)]  # the one that starts may have read either
    assert manager.ended(2, -SIGTERM, now=1) == []
    assert manager.ready(3, now=2) == [Stop(1), Reloaded()]


def test_code_that_hangs_as_it_is_imported_does_not_keep_newer_code_out() -> None:
    manager = serving(1)
    manager.reload(now=0)
    manager.reload(now=1)
    assert manager.due == 1 + GRACE
    assert manager.tick(now=manager.due) == [StopTimedOut(2), Kill(2)]
    assert manager.ended(2, -SIGKILL, now=7) == []
    assert manager.ready(3, now=8) == [Stop(1), Reloaded()]


def test_one_that_was_ready_just_then_may_finish_what_it_has_taken() -> None:
    manager = serving(1)
    manager.reload(now=0)
    manager.reload(now=1)
    assert manager.ready(2, now=1) == []
    assert manager.due == float("inf")


def test_new_code_ends_the_wait_of_a_place_that_died_again_and_again() -> None:
    manager = serving(2)
    manager.ended(1, CRASH, now=1)
    assert manager.reload(now=0) == [Start(3)]
    assert manager.due == float("inf")
    assert manager.ready(3, now=2) == [Start(4)]
    assert manager.ready(4, now=3) == [Stop(2), Reloaded()]


# -------------------------------------------------------------------------------------------------- stops


def test_a_signal_stops_all_warm() -> None:
    manager = serving(2)
    assert manager.stop(SIGTERM, now=1) == [Stop(1), Stop(2)]
    assert manager.due == float("inf")
    assert manager.ended(1, 0, now=5) == []
    assert manager.ended(2, 0, now=6) == [Exit(0)]


def test_what_does_not_stop_in_time_is_killed_and_the_exit_code_says_so() -> None:
    manager = serving(1, drain=10)
    manager.stop(SIGTERM, now=1)
    assert manager.due == 1 + 10 + GRACE
    assert manager.tick(now=manager.due) == [StopTimedOut(1), Kill(1)]
    assert manager.ended(1, -SIGKILL, now=20) == [Exit(128 + SIGTERM)]


def test_a_process_that_left_cold_is_told_by_the_exit_code() -> None:
    manager = serving(2)
    manager.stop(SIGINT, now=1)
    assert manager.ended(1, 128 + SIGTERM, now=2) == []
    assert manager.ended(2, 0, now=2) == [Exit(128 + SIGINT)]


def test_the_second_signal_is_cold_and_the_third_kills() -> None:
    manager = serving(1)
    manager.stop(SIGTERM, now=1)
    assert manager.stop(SIGINT, now=2) == [StopCold(1)]
    assert manager.due == 2 + LEAVE_GRACE
    assert manager.stop(SIGINT, now=3) == [Kill(1)]
    assert manager.ended(1, -SIGKILL, now=3) == [Exit(128 + SIGINT)]


def test_a_process_that_did_not_even_handle_signals_yet_may_die_of_the_stop() -> None:
    manager = ProcessManager(1)
    manager.begin()
    assert manager.stop(SIGTERM, now=1) == [Stop(1)]
    assert manager.ended(1, -SIGTERM, now=1) == [Exit(0)]


def test_a_process_that_hangs_as_it_starts_cannot_hold_up_the_stop() -> None:
    manager = ProcessManager(1)
    manager.begin()
    manager.stop(SIGTERM, now=1)
    assert manager.tick(now=1 + GRACE) == [StopTimedOut(1), Kill(1)]
    assert manager.ended(1, -SIGKILL, now=7) == [Exit(0)]  # nothing was cut short


def test_nothing_is_started_any_more_after_a_stop() -> None:
    manager = serving(2)
    manager.ended(1, CRASH, now=1)
    manager.stop(SIGTERM, now=1)
    assert manager.due == float("inf")
    assert manager.reload(now=0) == []
    assert manager.ended(2, CRASH, now=2) == [Exit(128 + SIGTERM)]


def test_a_stop_while_all_wait_for_their_restart_is_the_end() -> None:
    manager = serving(1)
    manager.ended(1, CRASH, now=1)
    assert manager.stop(SIGTERM, now=1) == [Exit(0)]


# -------------------------------------------------------------------------------------------------- quiet


def test_a_quiet_fleet_stays_quiet_when_processes_are_replaced() -> None:
    manager = serving(1)
    assert manager.quiet() == [Quiet(1)]
    manager.ended(1, CRASH, now=1)
    assert manager.tick(now=manager.due) == [Start(2), Quiet(2)]
    assert manager.resume() == [Resume(2)]
    manager.ended(2, CRASH, now=3)
    assert manager.tick(now=manager.due) == [Start(3)]


# -------------------------------------------------------------------------------------------------- burst


@pytest.mark.parametrize(
    ("codes", "code"), [((0, 0), 0), ((0, 1), 1), ((1, 0), 1), ((69, 69), 69), ((69, 0), 0)]
)
def test_a_burst_is_over_when_all_processes_are(codes: tuple[int, int], code: int) -> None:
    manager = serving(2, burst=True)
    assert manager.ended(1, codes[0], now=1) == []
    assert manager.ended(2, codes[1], now=2) == [Exit(code)]


def test_a_crash_in_a_burst_is_not_its_end_unless_it_goes_on() -> None:
    manager = serving(1, burst=True)
    for number in range(1, LOOP):
        assert isinstance(manager.ended(number, CRASH, now=1)[0], Lost)
        manager.tick(now=manager.due)
    assert manager.ended(LOOP, CRASH, now=2) == [CrashLoop(LOOP), Exit(1)]


@pytest.mark.parametrize("retires", [True, False])
def test_a_burst_in_which_a_job_killed_its_process_has_failed(*, retires: bool) -> None:
    manager = serving(1, burst=True)
    if retires:
        manager.retiring(1)
        assert manager.ready(2, now=1) == [Stop(1)]
        assert manager.ended(1, CRASH, now=1) == []
    else:
        assert isinstance(manager.ended(1, CRASH, now=1)[0], Lost)
        assert manager.tick(now=manager.due) == [Start(2)]
        manager.ready(2, now=2)
    assert manager.ended(2, 0, now=3) == [Exit(1)]


def test_a_burst_in_which_a_process_died_before_it_had_a_job_has_not() -> None:
    manager = ProcessManager(1, burst=True, jitter=lambda: 0.0)
    manager.begin()
    manager.ended(1, CRASH, now=1)
    manager.tick(now=manager.due)
    manager.ready(2, now=2)
    assert manager.ended(2, 0, now=3) == [Exit(0)]


def test_one_that_retires_in_a_burst_has_a_successor() -> None:
    manager = serving(1, burst=True)
    manager.retiring(1)
    manager.ready(2, now=1)
    assert manager.ended(1, 1, now=2) == []
    assert manager.ended(2, 0, now=3) == [Exit(1)]


# ------------------------------------------------------------------------------------------- whatever comes


class World:
    """Carries out what a manager orders, and holds it to what it promises."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.manager = ProcessManager(places, drain=10, jitter=lambda: 0.5)
        self.alive: dict[int, str] = {}  # number -> starting, serving, leaving
        self.hung: set[int] = set()  # killed, but not gone
        self.finished = False
        self.now = 0.0

    def answer(self, number: int) -> None:
        if number not in self.hung:
            self.manager.answered(number)

    def take(self, orders: list[Order]) -> None:
        assert not self.finished or not orders
        for order in orders:
            match order:
                case Start(number):
                    assert number not in self.alive
                    self.alive[number] = "starting"
                case Hung(number):
                    assert self.alive[number] == "serving"
                    self.hung.add(number)
                case Kill(number) if number in self.hung:
                    pass
                case CheckAlive(number) | Silent(number):
                    assert self.alive[number] == "serving"
                case Stop(number) | StopCold(number) | Kill(number):
                    assert number in self.alive
                    self.alive[number] = "leaving"
                case Quiet(number) | Resume(number) | StopTimedOut(number):
                    assert number in self.alive
                case Exit():
                    assert not self.alive
                    self.finished = True
                case _:
                    pass
        for state in ("starting", "serving"):
            assert list(self.alive.values()).count(state) <= self.places


@given(st.integers(1, 3), st.data())
def test_whatever_happens_every_place_is_served_or_about_to_be(places: int, data: st.DataObject) -> None:
    world = World(places)
    manager = world.manager
    world.take(manager.begin())
    has_served = False
    for _ in range(data.draw(st.integers(0, 40))):
        world.now += data.draw(st.sampled_from([0.1, 1.0, 40.0]))
        numbers = sorted(world.alive)
        deeds = ["reload", "quiet", "resume", "tick", *(["ready", "retire", "end"] if numbers else [])]
        match data.draw(st.sampled_from(deeds)):
            case "reload":
                world.take(manager.reload(world.now))
            case "quiet":
                world.take(manager.quiet())
            case "resume":
                world.take(manager.resume())
            case "tick":
                world.take(manager.tick(world.now))
                for _ in range(data.draw(st.integers(0, PINGS))):
                    world.take(manager.ping())
            case "ready":
                number = data.draw(st.sampled_from(numbers))
                if world.alive[number] == "starting":
                    world.alive[number] = "serving"
                    has_served = True
                world.answer(number)
                world.take(manager.ready(number, world.now))
            case "retire":
                world.take(manager.retiring(data.draw(st.sampled_from(numbers))))
            case _:
                number = data.draw(st.sampled_from(numbers))
                del world.alive[number]
                code = data.draw(st.sampled_from([0, CRASH, 78] if has_served else [0, CRASH]))
                world.take(manager.ended(number, code, world.now))
        present = [state for state in world.alive.values() if state != "leaving"]
        assert len(present) >= places or manager.due < float("inf")
    world.take(manager.stop(SIGTERM, world.now))
    assert set(world.alive.values()) <= {"leaving"}
    for number in sorted(world.alive):
        del world.alive[number]
        world.take(manager.ended(number, 0, world.now))
    assert world.finished
