"""When a server holds its jobs, and when another adopts them."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from gearflow.server.shared.lease import BEATS, Lease
from gearflow.stores.shared import Beat, Lot, OtherLot

LEASE = 9.0


@dataclass
class Truth:
    """The table of lots, as PostgreSQL has it."""

    rows: dict[int, tuple[str | None, int, int]] = field(
        default_factory=dict[int, tuple[str | None, int, int]]
    )  # owner, epoch, beat

    def beat(self, server: str) -> Beat:
        for lot, (owner, epoch, beat) in self.rows.items():
            if owner == server:
                self.rows[lot] = owner, epoch, beat + 1
        return Beat(
            [Lot(lot, epoch) for lot, (owner, epoch, _) in self.rows.items() if owner == server],
            [OtherLot(lot, *row) for lot, row in self.rows.items() if row[0] != server],
            (),
            0,
            0.0,
            (),
        )

    def adopt(self, server: str, lot: OtherLot) -> Lot | None:
        if self.rows[lot.number] != (lot.owner, lot.epoch, lot.beat):
            return None
        self.rows[lot.number] = server, lot.epoch + 1, lot.beat + 1
        return Lot(lot.number, lot.epoch + 1)


def test_a_lot_without_beats_is_adopted_after_a_lease_and_not_before() -> None:
    truth = Truth({1: ("a", 1, 0)})
    lease = Lease(LEASE)
    times = [0.0, 3.0, 6.0, 8.9, 9.0]
    found = [lease.confirm(now, now, truth.beat("b")).adoptable for now in times]
    assert [bool(adoptable) for adoptable in found] == [False, False, False, False, True]


def test_a_lot_that_was_given_back_is_adopted_at_once() -> None:
    truth = Truth({1: (None, 2, 0)})
    assert Lease(LEASE).confirm(0.0, 0.0, truth.beat("b")).adoptable == [OtherLot(1, None, 2, 0)]


def test_nobody_is_adopted_because_the_store_was_away() -> None:
    truth = Truth({1: ("a", 1, 0)})
    lease = Lease(LEASE)
    for now in (0.0, 3.0, 6.0):
        lease.confirm(now, now, truth.beat("b"))
    for now in (60.0, 63.0, 66.0):  # nobody could beat for 54 seconds
        assert not lease.confirm(now, now, truth.beat("b")).adoptable
    truth.beat("a")
    assert not lease.confirm(69.0, 69.0, truth.beat("b")).adoptable


def test_a_lot_that_another_has_adopted_is_lost_and_not_owned_again_before_it_is_left() -> None:
    truth = Truth({1: ("a", 1, 0)})
    lease = Lease(LEASE)
    lease.own([Lot(1, 1)], 0.0)
    truth.rows[1] = "b", 2, 1
    assert lease.confirm(1.0, 1.0, truth.beat("a")).lost == [1]
    truth.rows[1] = None, 3, 1
    assert not lease.confirm(2.0, 2.0, truth.beat("a")).adoptable
    lease.left(1)
    assert lease.confirm(3.0, 3.0, truth.beat("a")).adoptable


def test_a_lot_whose_adoption_had_no_answer_is_gained_by_the_next_beat() -> None:
    truth = Truth({1: ("a", 2, 0)})
    lease = Lease(LEASE)
    assert lease.confirm(0.0, 0.0, truth.beat("a")).gained == [Lot(1, 2)]


def test_a_lot_that_is_taken_while_a_beat_is_on_its_way_is_not_lost() -> None:
    truth = Truth()
    lease = Lease(LEASE)
    answer = truth.beat("a")
    truth.rows[1] = "a", 1, 0
    lease.own([Lot(1, 1)], 0.5)
    assert not lease.confirm(0.0, 1.0, answer).lost
    assert lease.lots == {1: 1}


@dataclass
class Server:
    """A simulated server, whose beats take their time, or do not go through."""

    name: str
    lease: Lease = field(default_factory=lambda: Lease(LEASE))

    def owns(self, now: float) -> bool:
        """Whether it gives out jobs of the lot."""
        return 1 in self.lease.lots and now < self.lease.deadline


BEAT = st.tuples(
    st.sampled_from("abc"),
    st.floats(0.0, LEASE),  # from the last event to the sending of this one
    st.floats(0.0, LEASE),  # to the store
    st.floats(0.0, LEASE),  # and back
    st.sampled_from(("answered", "answer lost", "lost")),
)


@given(st.lists(BEAT, min_size=10, max_size=60))
def test_no_two_servers_give_out_jobs_of_one_lot(beats: list[tuple[str, float, float, float, str]]) -> None:
    truth = Truth({1: (None, 1, 0)})
    servers = {name: Server(name) for name in "abc"}
    events: list[tuple[float, int, str, str, float, Beat | None]] = []
    now, answers_at = 0.0, dict.fromkeys("abc", -inf)
    for number, (name, pause, there, back, outcome) in enumerate(beats):
        now = max(now + pause, answers_at[name])  # one beat of a server at a time
        answers_at[name] = now + there + back
        if outcome != "lost":
            events.append((now + there, number, "store", name, now, None))
        if outcome == "answered":
            events.append((now + there + back, number, "answer", name, now, None))
    given_to: dict[int, Beat] = {}
    for at, number, what, name, sent, _ in sorted(
        events, key=lambda event: (event[0], event[1], event[2] != "store")
    ):
        server = servers[name]
        if what == "store":
            given_to[number] = truth.beat(name)
            continue
        news = server.lease.confirm(sent, at, given_to[number])
        for lot in news.lost:
            server.lease.left(lot)
        server.lease.own(news.gained, at)
        for adoptable in news.adoptable:
            taken = truth.adopt(name, adoptable)
            if taken is not None:
                assert not any(other.owns(at) for other in servers.values() if other is not server)
                server.lease.own([taken], at)
        assert sum(other.owns(at) for other in servers.values()) <= 1


def test_a_server_that_beats_in_time_never_holds() -> None:
    truth = Truth({1: ("a", 1, 0)})
    lease = Lease(LEASE)
    now = 0.0
    for _ in range(20):
        lease.confirm(now, now + 0.1, truth.beat("a"))
        now += LEASE / BEATS + 0.1
        assert now < lease.deadline
