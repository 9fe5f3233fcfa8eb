"""Background calls of which the latest wins."""

from collections.abc import Callable
from datetime import UTC, datetime

import anyio
import pytest

from gearflow.client import connect
from gearflow.errors import UnsupportedByServer
from gearflow.server import JobServer
from gearflow.tasks import task
from gearflow.worker import Worker

Fresh = Callable[..., str]


async def test_the_latest_payload_is_what_runs(bundled: str, fresh: Fresh) -> None:
    ran: list[int] = []
    done = anyio.Event()

    @task(name=fresh(), unique="k")
    async def sync(number: int) -> None:
        ran.append(number)
        done.set()

    with anyio.fail_after(20):
        async with connect(bundled), Worker([sync], servers=[bundled]):
            late = sync.options(debounce=0.5, max_wait=10)
            refs = [await late.abackground(number) for number in range(5)]
            assert len(set(refs)) == 1
            await refs[0].aresult(timeout=20)
    assert ran == [4]


async def test_clients_that_name_the_servers_in_another_order_meet_on_one(fresh: Fresh) -> None:
    @task(name=fresh())
    async def sync(number: int) -> None: ...

    async with JobServer(port=0) as one, JobServer(port=0) as two:
        for key in ("a", "b", "c", "d"):
            late = sync.options(debounce=60, unique=key)
            async with connect(one.address, two.address):
                first = await late.abackground(1)
            async with connect(two.address, one.address):
                assert await late.abackground(2) == first


async def test_gearmand_is_not_asked_for_it(gearmand: str, fresh: Fresh) -> None:
    @task(name=fresh())
    async def sync() -> None: ...

    async with connect(gearmand):
        with pytest.raises(UnsupportedByServer, match=r"debounce=.*'gearflow server'"):
            await sync.options(debounce=1, unique=fresh()).abackground()


def test_options_that_make_no_sense_are_refused(fresh: Fresh) -> None:
    @task(name=fresh())
    async def sync() -> None: ...

    with pytest.raises(ValueError, match="max_wait= limits the wait of debounce="):
        sync.options(max_wait=1)
    with pytest.raises(ValueError, match="delay= and debounce= do not go together"):
        sync.options(debounce=1, delay=1)
    with pytest.raises(ValueError, match="at= and debounce= do not go together"):
        sync.options(debounce=1, at=datetime.now(UTC))
    with pytest.raises(ValueError, match="reuse= and debounce= do not go together"):
        sync.options(debounce=1, reuse=True, unique="k")
    for late in (sync.options(debounce=1), sync.options(debounce=1, unique=True)):
        with pytest.raises(ValueError, match="give unique= a key"):
            late.background()
    with pytest.raises(ValueError, match="debounce= is for background jobs"):
        sync.options(debounce=1, unique="k").call()
