"""Shares of limits: slots that servers hold, and starts of rates that they take."""

from __future__ import annotations

import threading
from itertools import pairwise
from random import Random

from gearflow.stores.shared import SlotShare, SlotWish, StartWish
from tests.postgres.adapter import SyncStore


def share(
    store: SyncStore, slots: int, *, key: str = "", most: int | None = None, total: int = 20
) -> SlotShare:
    wish = SlotWish(b"shop", key, slots, slots if most is None else most, total)
    (found,) = store.run(store.store.share([wish]))
    return found


def test_servers_hold_no_more_slots_than_there_are(one: SyncStore, other: SyncStore) -> None:
    assert share(one, 15) == SlotShare(15, False)
    assert share(one, 15) == SlotShare(15, False), "the same wish may come again"
    assert share(other, 15) == SlotShare(5, False)
    assert share(one, 15) == SlotShare(15, True)
    assert one.run(one.store.contested()) == [(b"shop", "")]
    assert share(one, 15, most=8) == SlotShare(8, True)
    assert share(other, 15) == SlotShare(12, True)
    assert share(one, 0) == SlotShare(0, True)
    assert share(other, 15) == SlotShare(15, False)
    assert other.run(other.store.contested()) == []


def test_each_key_has_its_own_slots(one: SyncStore, other: SyncStore) -> None:
    assert share(one, 1, key="a", total=1) == SlotShare(1, False)
    assert share(other, 1, key="b", total=1) == SlotShare(1, False)
    assert share(other, 1, key="a", total=1) == SlotShare(0, False)
    wishes = [SlotWish(b"shop", key, 1, 1, 1) for key in ("c", "a", "b")]
    assert [found.held for found in one.run(one.store.share(wishes))] == [1, 1, 0]


def test_a_smaller_limit_takes_slots_that_are_not_held_any_more(one: SyncStore, other: SyncStore) -> None:
    assert share(one, 15).held == 15
    assert share(other, 5, total=10).held == 0
    assert share(one, 15, total=10).held == 10
    assert share(one, 6, total=10).held == 6
    assert share(other, 5, total=10).held == 4


def test_the_slots_of_a_server_that_stops_are_free(one: SyncStore, other: SyncStore) -> None:
    share(one, 20)
    assert share(other, 20).held == 0
    one.run(one.store.release())
    assert share(other, 20).held == 20


def test_the_slots_of_a_server_that_is_forgotten_are_free(one: SyncStore, other: SyncStore) -> None:
    share(one, 20)
    for lot in other.run(other.store.beat([])).others:
        other.run(other.store.adopt(lot))
    other.run(other.store.forget([one.store.server]))
    assert share(other, 20).held == 20


def test_servers_that_ask_at_the_same_time_hold_no_more_than_there_are(
    one: SyncStore, other: SyncStore
) -> None:
    held: dict[SyncStore, dict[str, int]] = {one: {}, other: {}}
    over: list[str] = []
    lock = threading.Lock()

    def ask(store: SyncStore, seed: int) -> None:
        chance = Random(seed)
        for _ in range(60):
            keys = chance.sample("abcde", 3)
            wishes = [SlotWish(b"shop", key, chance.randrange(6), 6, 5) for key in keys]
            with lock:  # what is to be given back is not held from now on
                for wish in wishes:
                    held[store][wish.key] = min(held[store].get(wish.key, 0), wish.slots)
            shares = store.run(store.store.share(wishes))
            with lock:
                for wish, found in zip(wishes, shares, strict=True):
                    held[store][wish.key] = found.held
                    if sum(mine.get(wish.key, 0) for mine in held.values()) > 5:
                        over.append(wish.key)

    threads = [threading.Thread(target=ask, args=arguments) for arguments in ((one, 1), (other, 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not over


def test_the_starts_of_a_rate_are_taken_once(one: SyncStore, other: SyncStore) -> None:
    segments: list[tuple[float, float]] = []
    for store in (one, other, one, one, other):
        wishes = [StartWish(b"shop", "", 1.5), StartWish(b"shop", "a", 0.25)]
        first, _ = store.run(store.store.starts(wishes))
        segments.append((first, first + 1.5))
    for (_, end), (begin, _) in pairwise(segments):
        assert begin >= end - 1e-5
    assert segments[-1][0] - segments[0][0] < 8, "they follow each other"
