"""For a client, servers that share a database have their schedules together."""

import pytest

from gearflow import Every
from gearflow.client import Client
from tests.shared.group import Group


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The servers are other processes: one loop is enough here."""
    return "asyncio"


async def test_servers_of_a_group_are_one_place_for_schedules(group: Group) -> None:
    names = [f"of-clients-{number}" for number in range(10)]
    async with Client(group.addresses) as client:
        for name in names:
            await client.schedules.put(name, "f", Every(hours=1))
        listed = await client.schedules.list(function="f")
        assert [info.schedule.name for info in listed] == names
        assert (await client.schedules.pause(names[0])).paused
        for name in names[:5]:
            await client.schedules.delete(name)


async def test_a_server_of_a_group_that_is_away_is_not_missed(group: Group) -> None:
    group.kill(0)
    async with Client(group.addresses) as client:
        await client.schedules.put("of-clients", "f", Every(hours=1))
        assert (await client.schedules.get("of-clients")).schedule.function == "f"
        for info in await client.schedules.list(function="f"):
            await client.schedules.delete(info.schedule.name)
