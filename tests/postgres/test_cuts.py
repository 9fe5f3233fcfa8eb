"""The network is cut in the middle of a group, at any byte of it or of its answer."""

from collections.abc import Callable, Iterator

import pytest

from gearflow.broker.storage import Change, Forgotten
from gearflow.stores.shared import Away, Fenced, OtherLot
from tests.postgres.adapter import SyncStore
from tests.postgres.cluster import Database, eventually
from tests.postgres.proxy import Fault, Proxy, Way, What
from tests.stores.values import a_job, an_end

UP, DOWN = frozenset({Way.UP}), frozenset({Way.DOWN})

MARKER = b"a workload that is nowhere else"

PLACES = 40
"""So many places are tried, from the first byte to the last."""


@pytest.fixture
def proxy(one_database: Database) -> Iterator[Proxy]:
    with Proxy(one_database.cluster.port).running() as proxy:
        yield proxy


@pytest.fixture
def far(make: Callable[..., SyncStore], one_database: Database, proxy: Proxy) -> SyncStore:
    """A store behind the proxy."""
    return make(conninfo=one_database.cluster.conninfo(one_database.name, port=proxy.port))


def commit_pair(store: SyncStore, n: int) -> None:
    """Store a job, end another, and forget a third. All of this may be done twice."""
    number = store.number
    group: list[Change] = [a_job(number(n), MARKER), an_end(number(n - 1)), Forgotten(number(n - 2))]
    assert store.commit(*group) == [None] * len(group)


def check_pair(store: SyncStore, n: int) -> None:
    assert store.psql("SELECT number FROM {s}.jobs") == str(store.number(n))
    assert store.psql("SELECT max(number) FROM {s}.records") == str(store.number(n - 1))


def places(length: int, count: int = PLACES) -> list[int]:
    return sorted({place * length // (count - 1) for place in range(count)})


def bytes_of_a_group(store: SyncStore, proxy: Proxy, way: Way) -> int:
    """How long it is, or its answer."""
    commit_pair(store, 10)  # prepares the statement
    before = proxy.passed[way]
    commit_pair(store, 11)
    return proxy.passed[way] - before


@pytest.mark.parametrize("way", Way, ids=["group", "answer"])
def test_a_group_is_kept_once_wherever_it_or_its_answer_is_cut(
    far: SyncStore, proxy: Proxy, way: Way
) -> None:
    n = 11
    for place in places(bytes_of_a_group(far, proxy, way) - (way is Way.DOWN)):
        n += 1
        fault = (
            Fault(What.RESET, UP, place, marker=MARKER, once=True)
            if way is Way.UP
            else Fault(What.RESET, DOWN, place, once=True)
        )
        proxy.fail(fault)
        with pytest.raises(Away):
            commit_pair(far, n)
        proxy.heal()
        commit_pair(far, n)
        check_pair(far, n)


@pytest.mark.parametrize("place", range(4))
def test_a_group_that_stays_on_its_way_holds_up_no_adopter_and_is_not_kept_when_it_arrives(
    far: SyncStore, make: Callable[..., SyncStore], proxy: Proxy, place: int
) -> None:
    other, length = make(), bytes_of_a_group(far, proxy, Way.UP)
    (lot,) = far.lots
    with proxy.failing(Fault(What.HOLD, after=places(length - 1, 4)[place], marker=MARKER)):
        far.shorten(1.0)
        with pytest.raises(Away):
            commit_pair(far, 12)
        far.shorten(None)
        seen = other.run(other.store.beat([])).others
        (lost,) = [each for each in seen if each.number == lot]
        assert other.run(other.store.adopt(lost)) is not None
    eventually(lambda: proxy.open_connections <= 2, "what was on its way has arrived")
    check_pair(other_view(other, far), 11)
    with pytest.raises(Fenced):
        commit_pair(far, 12)


def other_view(store: SyncStore, lost: SyncStore) -> SyncStore:
    """The adopter, with the lot that it has adopted."""
    store.lots = dict(lost.lots)
    return store


def test_an_adopter_whose_answer_was_lost_adopts_again(
    far: SyncStore, make: Callable[..., SyncStore], proxy: Proxy
) -> None:
    one = make()
    (lot,) = one.lots

    def seen() -> OtherLot:
        (found,) = [each for each in far.run(far.store.beat([])).others if each.number == lot]
        return found

    before = seen()
    proxy.fail(Fault(What.RESET, DOWN, marker=b"epoch", once=True))
    with pytest.raises(Away):
        far.run(far.store.adopt(before))
    proxy.heal()
    lots = {each.number for each in far.run(far.store.beat([])).lots}
    if lot not in lots:  # the update itself was lost
        assert far.run(far.store.adopt(seen())) is not None
    with pytest.raises(Fenced):
        one.commit(a_job(one.number(1)))
