"""What the commands show and do with servers that share a database."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gearflow.client import SyncClient
from gearflow.errors import StoreError
from gearflow.protocol.group_info import GroupInfo, GroupServer, Standby
from tests.cli.shell import Shell
from tests.groups import GROUP, Fleet, Member


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet() as fleet:
        yield fleet


def describe(*members: Member) -> GroupInfo:
    """Have the servers say this of their group."""
    info = GroupInfo(
        group=GROUP,
        servers=tuple(
            GroupServer(
                address=member.address,
                server=member.name,
                version="gearflow-0.1.0",
                beat=0.25,
                lots=8,
                jobs=3,
            )
            for member in members
        ),
        jobs=6,
        dead_rows=1200,
        last_vacuum=1_900_000_000,
        oldest_snapshot=12.5,
        standbys=(Standby(name="pg2", state="streaming", sync="async", lag=0.125), Standby(name="pg3")),
    )
    for member in members:
        member.engine.broker.group_facts = lambda answer: answer(info)
    return info


def test_status_of_one_server_shows_its_group(fleet: Fleet, tmp_path: Path) -> None:
    first, second = fleet.grow(2)
    info = describe(first, second)
    with SyncClient([second.address], discover=False) as client:
        client.submit_background("img.resize", b"{}")
    shell = Shell(tmp_path, {"GEARMAN_SERVERS": first.address})
    functions, servers, standbys = shell.run("status").stdout.decode().split("\n\n")
    header, row = functions.splitlines()
    assert header.split()[:2] == ["server", "function"]
    assert row.split()[:3] == [second.address, "img.resize", "1"]
    title, header, *rows = servers.splitlines()
    assert title.startswith(f"group {GROUP}: about 6 jobs, 1200 dead rows, last vacuum 2030-03-17")
    assert title.endswith("oldest transaction 12.5 s")
    assert header.split() == ["server", "lots", "jobs", "beat", "version"]
    assert [row.split() for row in rows] == [
        [member.address, "8", "3", "0.2", "s", "gearflow-0.1.0"] for member in (first, second)
    ]
    header, *rows = standbys.splitlines()
    assert header.split() == ["standby", "state", "sync", "lag"]
    assert [row.split() for row in rows] == [["pg2", "streaming", "async", "0.1", "s"], ["pg3", "-"]]
    told = json.loads(shell.run("status", "--json").stdout)
    assert [each["server"] for each in told] == [first.address, second.address]
    assert [GroupInfo.model_validate_json(json.dumps(each["group"])) for each in told] == [info, info]
    alone = json.loads(shell.run("status", "--json", GEARFLOW_DISCOVER="0").stdout)
    assert [each["server"] for each in alone] == [first.address]


def test_a_server_that_is_asked_by_another_name_is_shown_once(fleet: Fleet, tmp_path: Path) -> None:
    first, second = fleet.grow(2)
    describe(first, second)
    name = f"localhost:{first.engine.port}"
    told = json.loads(Shell(tmp_path).run("status", "--json", "-s", name).stdout)
    assert [each["server"] for each in told] == [name, second.address]


def test_status_says_why_a_group_cannot_be_shown(fleet: Fleet, tmp_path: Path) -> None:
    (first,) = fleet.grow()
    first.engine.broker.group_facts = lambda answer: answer(StoreError("the database gives no answer"))
    ended = Shell(tmp_path).run("status", "--json", "-s", first.address)
    assert json.loads(ended.stdout)[0]["group"] is None
    assert b"the database gives no answer" in ended.stderr


def test_dead_letters_of_a_group_are_listed_by_one_server(fleet: Fleet, tmp_path: Path) -> None:
    first, second = fleet.grow(2)
    for member in (first, second):  # each has its own, as they share no database
        with SyncClient([member.address], discover=False) as client:
            client.submit_background("f", b"x")
            client.cancel(client.submit_background("f", b"y"))
    ended = Shell(tmp_path).run("dead", "purge", "--all", "--yes", "-s", first.address, "-s", second.address)
    assert ended.stdout.decode().splitlines() == [f"{first.address}: purged 0 dead letters"]
