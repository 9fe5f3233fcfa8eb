"""What a server of a group says of it, and that a server alone says nothing more than before."""

import json
from collections.abc import Callable

from gearflow.broker.core import ServerGroup
from gearflow.errors import StoreError
from gearflow.protocol import packets as p
from gearflow.protocol.codec import encode
from gearflow.protocol.group_info import GROUP as GROUP_CALL
from gearflow.protocol.group_info import GroupInfo, GroupServer
from gearflow.protocol.server_calls import INFO, Fault
from tests.broker.harness import Peer, World

GROUP = ServerGroup("jobs 0123456789abcdef", "5f3a", ("10.0.0.7:4730", "10.0.0.8:4730"), "10.0.0.8:4730")


def server_info(client: Peer) -> dict[str, object]:
    created, answer = client(p.SubmitJob(INFO, b"", b""))
    assert isinstance(created, p.JobCreated)
    assert isinstance(answer, p.WorkComplete)
    told: dict[str, object] = json.loads(answer.result)
    return told


def test_a_server_alone_answers_the_option_with_its_name(client: Peer) -> None:
    assert client(p.OptionReq(b"gearflow")) == [p.OptionRes(b"gearflow")]


def test_a_server_of_a_group_answers_the_option_with_the_group_and_itself(world: World, client: Peer) -> None:
    world.broker.group = GROUP
    assert client(p.OptionReq(b"gearflow")) == [p.OptionRes(b"gearflow\0jobs 0123456789abcdef\x005f3a")]
    assert client(p.OptionReq(b"exceptions")) == [p.OptionRes(b"exceptions")]


def test_a_server_of_a_group_says_it_only_to_those_that_have_sent_the_token() -> None:
    world = World(token=b"secret")
    world.broker.group = GROUP
    client = world.peer()
    assert client(p.OptionReq(b"gearflow")) == [p.OptionRes(b"gearflow:auth")]
    heard = client(encode(p.SubmitJob(b"gearflow:auth", b"", b"secret")) + encode(p.OptionReq(b"gearflow")))
    assert heard[-1] == p.OptionRes(b"gearflow\0jobs 0123456789abcdef\x005f3a")


def test_the_servers_of_a_group_are_those_of_now(world: World, client: Peer) -> None:
    alone = server_info(client)
    assert not alone.keys() & {"group", "server", "address", "servers"}
    world.broker.group = GROUP
    told = server_info(client)
    assert told == {
        **alone,
        "group": "jobs 0123456789abcdef",
        "server": "5f3a",
        "address": "10.0.0.8:4730",
        "servers": ["10.0.0.7:4730", "10.0.0.8:4730"],
    }
    world.broker.group = GROUP._replace(servers=("10.0.0.8:4730",))
    assert server_info(client)["servers"] == ["10.0.0.8:4730"]
    world.broker.group = None
    assert server_info(client) == alone


# ---------------------------------------------------------------------------------------- gearflow:group


def asked(client: Peer) -> list[p.Packet | bytes]:
    client(p.OptionReq(b"exceptions"))
    created, *rest = client(p.SubmitJob(GROUP_CALL, b"", b"{}"))
    assert isinstance(created, p.JobCreated)
    return rest


def fault(packet: p.Packet | bytes) -> Fault:
    assert isinstance(packet, p.WorkException)
    return Fault.model_validate_json(packet.data)


def test_the_shell_finds_out_about_the_group(world: World, client: Peer) -> None:
    waiting: list[Callable[[GroupInfo | StoreError], None]] = []
    world.broker.group = GROUP
    world.broker.group_facts = waiting.append
    assert asked(client) == []
    assert asked(client) == []
    info = GroupInfo(group=GROUP.name, servers=(GroupServer(address="10.0.0.7:4730", lots=8),), jobs=5)
    waiting[1](info)
    (answer,) = client.read()
    assert isinstance(answer, p.WorkComplete)
    assert GroupInfo.model_validate_json(answer.result) == info
    waiting[0](StoreError("the database gives no answer"))
    assert fault(*client.read()) == Fault(type="gearflow:store", message="the database gives no answer")


def test_a_client_that_has_left_is_not_answered(world: World, client: Peer) -> None:
    waiting: list[Callable[[GroupInfo | StoreError], None]] = []
    world.broker.group = GROUP
    world.broker.group_facts = waiting.append
    asked(client)
    client.leave()
    waiting[0](StoreError("the database gives no answer"))


def test_a_server_alone_refuses_to_say_who_is_in_its_group(client: Peer) -> None:
    refused = fault(*asked(client))
    assert refused.type == "gearflow:refused"
    assert "in no group" in refused.message
