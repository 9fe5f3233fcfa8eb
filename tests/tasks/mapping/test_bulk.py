"""Many background calls at once: all of them, or an account of which."""

import pickle
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import anyio
import pytest

from gearflow import JobServer, ServerSettings
from gearflow.client import Admin, connect
from gearflow.errors import (
    NoServer,
    PartlySubmitted,
    PayloadInvalid,
    QueueFull,
    SubmitUnknown,
    UnsupportedByServer,
)
from gearflow.protocol.packets import JobCreated, SubmitJobBg
from gearflow.tasks import Task
from gearflow.tasks.mapping.bulk import GROUP
from gearflow.testing.peer import ScriptedPeer, ScriptedServer
from tests.tasks.conftest import Serve, ServeSync

Fresh: TypeAlias = Callable[..., str]

NOWHERE = "127.0.0.1:1"  # nothing listens there


def make(name: str, seen: list[int] | None = None) -> Task[[int], int]:
    async def double(n: int) -> int:
        if seen is not None:
            seen.append(n)
        return 2 * n

    return Task(double, name=name)


async def test_each_item_is_one_job(serve: Serve, fresh: Fresh) -> None:
    seen: list[int] = []
    double = make(fresh(), seen)
    async with serve(double, concurrency=100):
        refs = await double.abackground_many(range(2 * GROUP + 500))
        assert len({ref.handle for ref in refs}) == 2 * GROUP + 500
        while len(seen) < len(refs):
            await refs[-1].astatus()
    assert sorted(seen) == list(range(2 * GROUP + 500))


async def test_the_references_are_in_the_order_of_the_items(bundled: str, fresh: Fresh) -> None:
    async with connect(bundled):
        refs = await make(fresh()).options(unique=numbered).abackground_many(iter(range(300)))
        infos = [await ref.ainfo() for ref in (refs[0], refs[-1])]
        assert [info.unique for info in infos] == ["n0", "n299"]


def numbered(n: int) -> str:
    return f"n{n}"


async def test_options_hold_for_each(bundled: str, fresh: Fresh) -> None:
    double = make(fresh())
    async with connect(bundled):
        refs = await double.options(delay=3600, keep=5, priority="low").abackground_many([1, 2, 3])
        assert [(await ref.ainfo()).state for ref in refs] == ["delayed"] * 3
        assert [(await ref.ainfo()).priority for ref in refs] == ["low"] * 3


async def test_equal_uniques_are_one_job(any_server: str, fresh: Fresh) -> None:
    async with connect(any_server):
        first, second, other = await make(fresh()).options(unique=True).abackground_many([1, 1, 2])
        assert first == second != other


async def test_of_nothing_there_is_nothing(fresh: Fresh) -> None:
    async with connect(NOWHERE):
        assert await make(fresh()).abackground_many([]) == []


# -------------------------------------------------------------------------------------- before sending


async def test_a_collection_is_validated_before_any_is_sent(any_server: str, fresh: Fresh) -> None:
    name = fresh()
    items: Any = [1] * GROUP + ["no"]
    async with connect(any_server):
        with pytest.raises(PayloadInvalid):
            await make(name).abackground_many(items)
        assert name not in await known_functions(any_server)


async def test_what_comes_one_by_one_is_taken_as_it_is_sent(any_server: str, fresh: Fresh) -> None:
    taken: list[int] = []

    def items() -> Iterator[Any]:
        for n in range(GROUP + 3):
            taken.append(n)
            yield n
        yield "no"

    name = fresh()
    async with connect(any_server):
        with pytest.raises(PartlySubmitted, match=f"{GROUP} jobs were accepted") as caught:
            await make(name).abackground_many(items())
        account = caught.value
        assert list(account.accepted) == list(range(GROUP))
        assert list(account.failures) == [GROUP + 3]
        assert isinstance(account.failures[GROUP + 3], PayloadInvalid)
        assert account.untried == GROUP


async def test_the_next_group_is_encoded_while_the_server_has_one(fresh: Fresh) -> None:
    double = make(fresh())
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(4 * GROUP):
            taken.append(n)
            yield n

    async with ScriptedServer() as server, connect(server.address), anyio.create_task_group() as tasks:
        tasks.start_soon(double.abackground_many, items())
        peer = await server.accept()
        await peer.shake_hands()
        for answered in range(1, 4):
            await hear(peer, double, GROUP)
            await anyio.wait_all_tasks_blocked()
            assert len(taken) == (answered + 1) * GROUP  # and no more
            await peer.send(*(JobCreated(b"H:%d" % n) for n in range(GROUP)))
        tasks.cancel_scope.cancel()


async def test_what_cannot_be_encoded_hides_no_refusal_of_what_was_sent(fresh: Fresh) -> None:
    double = make(fresh())
    async with JobServer(port=0) as server, connect(server.address):
        await double.abackground(0)
        await Admin(server.address).max_queue(double.name, GROUP)
        with pytest.raises(PartlySubmitted) as caught:
            await double.abackground_many(broken())
        assert len(caught.value.accepted) == GROUP - 1
        assert [type(failure) for failure in caught.value.failures.values()] == [QueueFull]


async def test_without_a_server_nothing_is_accounted_for(fresh: Fresh) -> None:
    async with connect(NOWHERE):
        with pytest.raises(NoServer):
            await make(fresh()).abackground_many([1, 2])


async def test_an_option_that_the_server_cannot_honour_is_found_first(gearmand: str, fresh: Fresh) -> None:
    name = fresh()
    async with connect(gearmand):
        with pytest.raises(UnsupportedByServer, match="keep="):
            await make(name).options(keep=60).abackground_many([1, 2])
        assert name not in await known_functions(gearmand)


async def known_functions(server: str) -> list[str]:
    return [row.name.decode() for row in await Admin(server).status()]


# -------------------------------------------------------------------------------------- the account


@pytest.mark.parametrize("options", [{}, {"keep": 60}], ids=["plain", "with options"])
async def test_a_full_queue_is_accounted_for(options: Any, fresh: Fresh) -> None:
    double = make(fresh())
    async with JobServer(ServerSettings(port=0)) as server, connect(server.address):
        await double.abackground(0)
        await Admin(server.address).max_queue(double.name, 3)
        with pytest.raises(PartlySubmitted, match="2 jobs were accepted and 3 were not") as caught:
            await double.options(**options).abackground_many([1, 2, 3, 4, 5])
        account = caught.value
        assert list(account.accepted) == [0, 1]
        assert [type(failure) for failure in account.failures.values()] == [QueueFull] * 3
        assert list(account.failures) == [2, 3, 4]
        assert account.untried == 5
        assert (await account.accepted[0].astatus()).known


async def test_after_a_failure_no_more_items_are_taken(fresh: Fresh) -> None:
    double = make(fresh())
    endless = iter(int, 1)
    async with JobServer(port=0) as server, connect(server.address):
        await double.abackground(0)
        await Admin(server.address).max_queue(double.name, 2)
        with pytest.raises(PartlySubmitted) as caught:
            await double.abackground_many(endless)
        assert caught.value.untried == GROUP


async def test_jobs_in_doubt_are_accounted_for(fresh: Fresh) -> None:
    double = make(fresh())
    caught: list[PartlySubmitted] = []
    async with (
        ScriptedServer() as server,
        connect(server.address),
        anyio.create_task_group() as tasks,
    ):

        async def submit() -> None:
            with pytest.raises(PartlySubmitted) as error:
                await double.abackground_many([1, 2, 3])
            caught.append(error.value)

        tasks.start_soon(submit)
        peer = await server.accept()
        await peer.shake_hands()
        await hear(peer, double, 3)
        await peer.send(JobCreated(b"H:1"))
        await peer.close()
        await server.stop_listening()
    (account,) = caught
    assert {place: ref.handle for place, ref in account.accepted.items()} == {0: "H:1"}
    assert [type(failure) for failure in account.failures.values()] == [SubmitUnknown] * 2


async def hear(peer: ScriptedPeer, task: Task[[int], int], count: int) -> None:
    for n in range(count):
        heard = await peer.receive()
        assert isinstance(heard, SubmitJobBg)
        assert heard.function == task.name.encode(), n


def test_an_account_can_be_pickled() -> None:
    account = PartlySubmitted({0: "a"}, {1: QueueFull("QUEUE_ERROR", "full")}, 5)
    again = pickle.loads(pickle.dumps(account))
    assert (again.accepted, again.untried, str(again)) == ({0: "a"}, 5, str(account))
    assert isinstance(again.failures[1], QueueFull)


# ---------------------------------------------------------------------------------- without an event loop


def test_the_blocking_face_does_the_same(serve_sync: ServeSync, any_server: str, fresh: Fresh) -> None:
    double = make(fresh())
    with serve_sync(double):
        assert len(double.background_many(range(GROUP + 1))) == GROUP + 1
        assert [str(ref.server) for ref in double.background_many(iter([1, 2]))] == [any_server] * 2
        with fails() as caught:
            double.background_many(broken())
    assert (len(caught[0].accepted), list(caught[0].failures)) == (GROUP, [GROUP])
    assert isinstance(caught[0].failures[GROUP], ZeroDivisionError)


def broken() -> Iterable[int]:
    yield from range(GROUP)
    raise ZeroDivisionError


@contextmanager
def fails() -> Generator[list[PartlySubmitted]]:
    caught: list[PartlySubmitted] = []
    with pytest.raises(PartlySubmitted) as error:
        yield caught
    caught.append(error.value)


async def test_it_names_its_twin_in_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match="abackground_many"):
        make("double").background_many([1])
