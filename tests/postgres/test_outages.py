"""Connections that end at any byte, servers that do not answer, and standbys that are promoted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest
import uvloop

from gearflow.broker.storage import Change, Forgotten, JobOf, JobPart, Joined, Rescheduled
from gearflow.errors import StoreError
from gearflow.stores.shared import Away
from tests.conftest import own_postgres
from tests.postgres.adapter import SyncStore
from tests.postgres.cluster import Cluster, Database, eventually, folder
from tests.postgres.proxy import Fault, Proxy, Way, What
from tests.stores.values import a_dead_letter, a_job, an_end

MakeGroup = Callable[[SyncStore, int], list[Change]]


@pytest.fixture(scope="module")
def proxy(postgres: Cluster) -> Iterator[Proxy]:
    with Proxy(postgres.port).running() as proxy:
        yield proxy


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def cut_off(
    make: Callable[..., SyncStore], one_database: Database, proxy: Proxy, request: pytest.FixtureRequest
) -> SyncStore:
    """A server's store behind the proxy."""
    conninfo = one_database.cluster.conninfo(one_database.name, port=proxy.port)
    return make(conninfo=conninfo, new_loop=request.param)


def submissions(store: SyncStore, turn: int) -> list[Change]:
    number = store.number(turn * 10)
    return [a_job(number, unique=b"k%d" % turn), a_job(number + 1), a_job(number + 2, b"x" * 100, unique=b"")]


def ends(store: SyncStore, turn: int) -> list[Change]:
    number = store.number(turn * 10)
    return [
        an_end(number),
        a_dead_letter(number + 1, 7),
        Rescheduled(number + 2, 5.0, 1, 0),
        JobPart(number + 2, 1, b"part"),
        Forgotten(number),
    ]


def prepare_ends(store: SyncStore, turns: range) -> None:
    for turn in turns:
        store.commit(*submissions(store, turn))


def state(store: SyncStore, turns: Sequence[int]) -> list[str]:
    """The rows of each turn, without what is of the turn itself."""
    first = f"number - {store.number(0)}"
    rows = store.psql(
        f"SELECT ({first}) / 10, ({first}) % 10, dead, due, attempt FROM {{s}}.jobs ORDER BY number; "
        f"SELECT ({first}) / 10, ({first}) % 10, dead, outcome FROM {{s}}.records ORDER BY number; "
        f"SELECT ({first}) / 10, ({first}) % 10, position, body FROM {{s}}.stream_parts ORDER BY number"
    )
    found: dict[int, str] = dict.fromkeys(turns, "")
    for row in rows.splitlines():
        turn, _, rest = row.partition("\t")
        if int(turn) in found:
            found[int(turn)] += rest + "\n"
    return list(found.values())


@pytest.mark.timeout(60)  # a reset that is not noticed costs 5 s
@pytest.mark.parametrize("what", [What.RESET, What.SWALLOW])
@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("group", [submissions, ends])
def test_a_group_whose_connection_ends_at_any_byte_is_kept_once(
    cut_off: SyncStore, proxy: Proxy, group: MakeGroup, way: Way, what: What
) -> None:
    store = cut_off
    if group is ends:
        prepare_ends(store, range(1, 80))
    store.commit(*group(store, 1))
    store.commit(*group(store, 2))
    before = proxy.passed[way]
    store.commit(*group(store, 3))
    size = proxy.passed[way] - before
    last = 2 if what is What.SWALLOW else 12
    cuts = sorted({0, 1, 5, *range(7, size, size // last), size - 6, size - 5, size - 1})
    for turn, after in enumerate(cuts, 4):
        changes = group(store, turn)
        if what is What.SWALLOW:
            store.shorten(0.3)
        with proxy.failing(Fault(what, frozenset([way]), after)), pytest.raises(Away):
            store.commit(*changes)
        store.shorten(None)
        assert store.commit(*changes) == [None] * len(changes)
    turns = range(1, len(cuts) + 4)
    states = state(store, turns)
    assert states == [states[0]] * len(turns)
    assert states[0]


def test_a_group_that_was_kept_counts_as_sent_even_if_its_outcome_cannot_be_looked_up(
    cut_off: SyncStore, make: Callable[..., SyncStore], proxy: Proxy
) -> None:
    """A job has met another with its unique, so a second statement asks which."""
    store, other = cut_off, make()
    other.commit(a_job(other.number(1), unique=b"k"))
    store.commit(a_job(store.number(1)), a_job(store.number(2)))
    group = a_job(store.number(3), unique=b"k"), a_job(store.number(4))
    fault = Fault(What.RESET, frozenset([Way.UP]), marker=b"LEFT JOIN")
    with proxy.failing(fault), pytest.raises(Away) as caught:
        store.commit(*group)
    assert caught.value.sent
    assert other.job(store.number(4)) is not None
    assert store.commit(*group) == [Joined(other.number(1)), None]


def test_a_question_gets_its_own_answer_after_an_outage(cut_off: SyncStore, proxy: Proxy) -> None:
    store = cut_off
    store.commit(a_job(store.number(1)), a_job(store.number(2)))
    assert store.job(store.number(1)) is not None
    with proxy.failing(What.HOLD):
        store.shorten(0.2)
        with pytest.raises(Away):
            store.job(store.number(1))
        store.shorten(None)
    found = store.job(store.number(2))
    assert found is not None
    assert found.number == store.number(2)


def test_a_call_that_is_cancelled_leaves_no_answer_to_the_next(cut_off: SyncStore, proxy: Proxy) -> None:
    store = cut_off
    store.commit(a_job(store.number(1)), a_job(store.number(2)))
    assert store.job(store.number(1)) is not None

    async def cancel() -> None:
        task = asyncio.ensure_future(store.store.answer([JobOf(store.number(1))]))
        await asyncio.to_thread(eventually, lambda: proxy.passed[Way.UP] > sent, "it is sent")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    sent = proxy.passed[Way.UP]
    with proxy.failing(Fault(What.HOLD, frozenset([Way.DOWN]))):
        store.run(cancel())
    found = store.job(store.number(2))
    assert found is not None
    assert found.number == store.number(2)


def test_a_session_that_is_ended_while_nothing_runs_is_opened_again(one: SyncStore) -> None:
    one.commit(a_job(one.number(1)))
    name = f"gearflow {one.store.server}"
    one.psql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{name}'")
    gone = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'"
    eventually(lambda: one.psql(gone) == "0", "the sessions are gone")
    one.run(asyncio.sleep(0))  # it may notice
    try:
        outcome = one.commit(a_job(one.number(2)))
    except Away:  # it had not
        outcome = one.commit(a_job(one.number(2)))
    assert outcome == [None]


def test_a_former_session_that_ends_by_itself_before_it_is_ended_is_no_obstacle(
    one: SyncStore, make: Callable[..., SyncStore], one_database: Database
) -> None:
    """PostgreSQL then says that it has not ended it. Here it always says so."""
    one.psql(
        "CREATE SCHEMA says_no; CREATE FUNCTION says_no.pg_terminate_backend(int, int) RETURNS bool AS "
        "'SELECT pg_catalog.pg_terminate_backend($1, $2) IS NULL' LANGUAGE sql"
    )
    store = make(conninfo=f"{one_database.conninfo} options='-c search_path=says_no,pg_catalog'")
    name = f"gearflow {store.store.server}"
    with store.hold("SELECT 'former'", application=name):
        former = f"SELECT pid FROM pg_stat_activity WHERE application_name = '{name}' AND query ~ 'former'"
        store.store.sessions[0].close()
        store.store.sessions[0].pid = int(store.psql(former))
        assert store.commit(a_job(store.number(1))) == [None]
        assert store.psql(former) == ""


def test_a_server_that_becomes_read_only_is_not_written_to_until_it_is_not(one_database: Database) -> None:
    database = one_database
    store = SyncStore(database, schema="demoted")
    try:
        store.open()
        database.psql(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
        store.run(store.set_read_only())
        for _ in range(2):
            with pytest.raises(Away, match="read-only") as caught:
                store.commit(a_job(store.number(1)))
            assert not caught.value.sent
        database.cluster.psql(f"ALTER DATABASE {database.name} RESET default_transaction_read_only")
        assert store.commit(a_job(store.number(1))) == [None]
    finally:
        store.close()


def is_away(store: SyncStore) -> bool:
    """Whether there is no server that takes writes."""
    try:
        store.commit(a_job(store.number(2)))
    except Away as error:
        return not error.sent and "cannot be reached" in str(error)
    return False


def test_a_standby_that_is_promoted_is_found_and_has_another_history() -> None:
    with own_postgres() as primary, folder() as directory, primary.database() as database:
        standby = primary.standby(directory)
        ports = f"{standby.port},{primary.port}"
        conninfo = f"host=localhost,127.0.0.1 port={ports} dbname={database.name} user=gearflow"
        store = SyncStore(database, conninfo=conninfo)
        try:
            store.open()
            history = store.run(store.store.ready())
            assert store.commit(a_job(store.number(1))) == [None]
            standby.catch_up(primary)
            primary.kill()
            eventually(lambda: is_away(store), "it cannot be reached")
            standby.promote()
            assert store.commit(a_job(store.number(2))) == [None]
            era = store.run(store.store.ready())
            assert era != history
            with pytest.raises(Away):  # its answer might lack what was confirmed
                store.job(store.number(1))
            store.store.caught_up(era)
            assert store.job(store.number(1)) is not None
        finally:
            store.close()
            standby.stop("immediate")


@pytest.mark.parametrize(("sync", "is_same"), [("always", True), ("batch", False), ("off", False)])
def test_a_restart_is_another_history_where_commits_do_not_wait_for_the_disk(
    database: Database, sync: str, is_same: bool
) -> None:
    store = SyncStore(database, sync=sync)
    try:
        store.open()
        history = store.run(store.store.ready())
        assert store.commit(a_job(store.number(1))) == [None]
        assert database.cluster.terminate(database=database.name)
        eventually(lambda: is_kept(store, 2), "it is connected again")
        assert store.run(store.store.ready()) == history
        database.cluster.restart("immediate")
        eventually(lambda: is_kept(store, 3), "it is connected again")
        assert (store.run(store.store.ready()) == history) is is_same
    finally:
        store.close()


def is_kept(store: SyncStore, n: int) -> bool:
    with suppress(Away):
        return store.commit(a_job(store.number(n))) == [None]
    return False


def test_a_commit_waits_for_its_standby_however_often_it_is_tried() -> None:
    """The rows are there after the first attempt, so a second one has nothing to write."""
    with own_postgres() as primary, folder() as directory, primary.database() as database:
        standby = primary.standby(directory, synchronous=True)
        store = SyncStore(database)
        try:
            store.open()
            change = a_job(store.number(1))
            standby.stop("immediate")
            store.shorten(0.5)
            with pytest.raises(Away) as caught:
                store.commit(change)
            assert caught.value.sent
            for _ in range(2):
                with pytest.raises(Away, match="SyncRep") as caught:
                    store.commit(change)
                assert caught.value.sent
            store.shorten(None)
            standby.start()
            assert store.commit(change) == [None]
            assert standby.psql("SELECT count(*) FROM gearflow.jobs", database.name) == "1"
        finally:
            store.close()
            standby.stop("immediate")
            primary.stop("immediate")  # else its sessions wait for the standby
            primary.start(synchronous_standby_names="")


def test_the_loop_goes_on_while_an_address_does_not_answer(one_database: Database, proxy: Proxy) -> None:
    store = SyncStore(
        one_database,
        conninfo=one_database.cluster.conninfo(one_database.name, port=proxy.port),
        connect_timeout=0.5,
    )

    async def opened() -> int:
        task = asyncio.ensure_future(store.store.open())
        turns = 0
        while not task.done():
            await asyncio.sleep(0.01)
            turns += 1
        with pytest.raises(StoreError, match="no answer within"):
            await task
        return turns

    try:
        with proxy.failing(What.HOLD):
            assert store.run(opened()) > 5
    finally:
        store.close()


@pytest.mark.parametrize("sync", ["always", "batch", "off"])
def test_questions_are_answered_whether_or_not_commits_wait_for_the_disk(
    database: Database, sync: str
) -> None:
    store = SyncStore(database, sync=sync)
    try:
        store.open()
        assert store.commit(a_job(store.number(1))) == [None]
        assert store.job(store.number(1)) is not None
    finally:
        store.close()
