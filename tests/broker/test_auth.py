"""The token: who has not said it is told whom he talks to, and nothing else is done for him."""

import pytest

from gearflow.broker.auth import Unauthorized
from gearflow.errors import RemoteProtocolError
from gearflow.protocol import packets as p
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import AUTH, HEADER, REQ, PacketType
from gearflow.protocol.packets import Packet
from tests.broker.harness import Peer, World

TOKEN = b"sesame"
FIRST = b"say the token first: submit a job of gearflow:auth, with the token as its workload"


@pytest.fixture
def world() -> World:
    return World(token=TOKEN)


def said(token: bytes) -> p.SubmitJob:
    return p.SubmitJob(AUTH, b"", token)


def refusal(peer: Peer, *sent: Packet | bytes) -> list[Packet | bytes]:
    """What a peer is told when its connection ends for what it sent."""
    with pytest.raises(Unauthorized):
        peer(*sent)
    return peer.read()


def test_who_says_the_token_is_served(client: Peer) -> None:
    created, done = client(said(TOKEN))
    assert isinstance(created, p.JobCreated)
    assert done == p.WorkComplete(created.handle, b"{}")
    assert client(p.EchoReq(b"x")) == [p.EchoRes(b"x")]
    assert client(b"status\n") == [b"you said status"]


def test_what_comes_behind_the_token_in_one_go_is_served(client: Peer) -> None:
    *_, echo, line = client(said(TOKEN), p.EchoReq(b"x"), b"status\n")
    assert (echo, line) == (p.EchoRes(b"x"), b"you said status")


def test_where_the_bytes_are_cut_does_not_matter(client: Peer) -> None:
    data = encode(p.OptionReq(b"gearflow")) + encode(said(TOKEN)) + encode(p.EchoReq(b"x"))
    answers: list[Packet | bytes] = []
    for position in range(len(data)):
        answers += client(data[position : position + 1])
    assert [type(answer) for answer in answers] == [p.OptionRes, p.JobCreated, p.WorkComplete, p.EchoRes]


@pytest.mark.parametrize(
    "sent",
    [
        p.EchoReq(b"x"),
        p.CanDo(b"work"),
        p.SubmitJob(b"work", b"", b"x"),
        p.SubmitJob(b"gearflow:info", b"", b""),
        p.SubmitJobBg(AUTH, b"", TOKEN),
        p.SubmitJobHigh(AUTH, b"", TOKEN),
        HEADER.pack(REQ, PacketType.SUBMIT_JOB, 1 << 31),  # long before such a body would have come
    ],
)
def test_anything_else_is_refused_and_not_done(world: World, client: Peer, sent: Packet | bytes) -> None:
    assert refusal(client, sent, said(TOKEN)) == [p.Error(b"UNAUTHORIZED", FIRST)]
    assert not world.broker.functions.by_name
    assert not world.broker.jobs.by_number


@pytest.mark.parametrize("token", [b"", b"sesam", b"sesame2", b"SESAME", TOKEN + b"\0", b"x" * 1024])
def test_a_wrong_token_is_refused(client: Peer, token: bytes) -> None:
    assert refusal(client, said(token)) == [p.Error(b"UNAUTHORIZED", b"that is not the token")]


@pytest.mark.parametrize("text", [b"status\n", b"s", b"shutdown\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_text_is_refused_in_text(client: Peer, text: bytes) -> None:
    assert refusal(client, text) == [b"ERR UNAUTHORIZED " + FIRST.replace(b" ", b"+")]


def test_a_stranger_learns_that_it_is_gearflow_and_that_a_token_is_wanted(client: Peer) -> None:
    assert client(p.OptionReq(b"gearflow")) == [p.OptionRes(AUTH)]
    assert client(p.OptionReq(b"exceptions")) == [p.OptionRes(b"exceptions")]
    client(said(TOKEN))
    assert client(p.OptionReq(b"gearflow")) == [p.OptionRes(b"gearflow")]


def test_a_stranger_may_ask_for_a_few_options_only(world: World, client: Peer) -> None:
    for _ in range(16):
        assert client(p.OptionReq(b"gearflow"), p.OptionReq(b"none"))[0] == p.OptionRes(AUTH)
    assert refusal(client, p.OptionReq(b"gearflow")) == [p.Error(b"UNAUTHORIZED", FIRST)]
    client.leave()
    friend = world.peer()
    assert len(friend(*[p.OptionReq(b"gearflow")] * 32, said(TOKEN), *[p.OptionReq(b"gearflow")] * 32)) == 66


def test_options_set_before_the_token_hold(world: World, client: Peer) -> None:
    client(p.OptionReq(b"exceptions"), said(TOKEN))
    handle = client.submit()
    worker = world.peer()
    worker(said(TOKEN))
    worker.can_do(b"work")
    assert worker.grab() == handle
    worker(p.WorkException(handle, b"why"))
    assert client.read() == [p.WorkException(handle, b"why")]


def test_one_who_has_said_it_lets_in_nobody_else(world: World, client: Peer) -> None:
    client(said(TOKEN))
    assert refusal(world.peer(), p.EchoReq(b"x")) == [p.Error(b"UNAUTHORIZED", FIRST)]


def test_a_stranger_who_leaves_is_forgotten(world: World, client: Peer) -> None:
    client(encode(said(TOKEN))[:20])
    client.leave()
    assert not world.broker.auth.unauthenticated


def test_what_comes_behind_a_refusal_is_not_handled(world: World, client: Peer) -> None:
    refusal(client, said(b"wrong"))
    client.leave()
    assert client(said(TOKEN), p.EchoReq(b"x")) == []


def test_without_a_token_whatever_is_said_is_welcome() -> None:
    client = World().peer()
    assert client(p.OptionReq(b"gearflow")) == [p.OptionRes(b"gearflow")]
    created, done = client(said(b"anything"))
    assert isinstance(created, p.JobCreated)
    assert done == p.WorkComplete(created.handle, b"{}")


@pytest.mark.parametrize("token", [None, TOKEN])
def test_tls_where_there_is_none_is_told_from_nonsense(token: bytes | None) -> None:
    client = World(token=token).peer()
    with pytest.raises(RemoteProtocolError, match="it speaks TLS, which this server does not"):
        client(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
