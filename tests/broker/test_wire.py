"""The broker reads the wire as the codec does, in whatever pieces it comes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gearflow.broker import Session
from gearflow.broker.session import LARGE
from gearflow.errors import RemoteProtocolError
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import HEADER, REQ
from gearflow.protocol.packets import Packet, Role
from tests import strategies
from tests.broker.harness import World

requests: st.SearchStrategy[Packet] = strategies.packets.filter(lambda packet: packet.senders != Role.SERVER)


def receive(world: World, session: Session, data: bytes) -> None:
    """Give bytes to the broker as the shell does: into a large body's own room while there is one."""
    while (
        data
        and (partial := world.broker.parser.partials.get(session)) is not None
        and partial.body is not None
    ):
        room = partial.room()
        count = min(len(room), len(data))
        room[:count] = data[:count]
        world.broker.receive_large(session, count, world.now)
        data = data[count:]
    if data:
        world.broker.receive(session, data, world.now)


def answers(pieces: list[bytes]) -> bytes:
    """All that a connection is sent when it sends these pieces; the last word is whether it was closed."""
    world = World()
    peer = world.peer()
    try:
        for piece in pieces:
            receive(world, peer.session, piece)
    except RemoteProtocolError:
        return b"".join(peer.session.outbox) + b"closed"
    return b"".join(peer.session.outbox)


@given(
    st.lists(st.one_of(requests.map(encode), strategies.lines.map(lambda line: line + b"\n")), max_size=8),
    st.data(),
)
def test_where_the_bytes_are_cut_never_matters(sent: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(sent)
    assert answers(data.draw(strategies.cut(stream))) == answers([stream])


@given(
    st.lists(
        st.tuples(st.sampled_from([b"f\0u\0", b"f\0\0"]), st.integers(LARGE - 20, LARGE + 20)), max_size=3
    ),
    st.data(),
)
@settings(max_examples=30)
def test_that_holds_for_large_bodies_too(sent: list[tuple[bytes, int]], data: st.DataObject) -> None:
    stream = b"".join(HEADER.pack(REQ, 7, len(head) + size) + head + b"\0" * size for head, size in sent)
    assert answers(data.draw(strategies.cut(stream))) == answers([stream])


@given(st.lists(requests, max_size=8))
def test_every_packet_that_the_codec_encodes_is_understood(sent: list[Packet]) -> None:
    world = World()
    peer = world.peer()
    peer(*sent)


@given(
    st.lists(requests.map(encode), max_size=3),
    strategies.garbage,
    st.lists(requests.map(encode), max_size=2),
    st.data(),
)
def test_garbage_raises_nothing_but_the_protocols_own_error(
    before: list[bytes], garbage: bytes, after: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join([*before, garbage, *after])
    assert answers(data.draw(strategies.cut(stream))) == answers([stream])


@given(st.lists(st.tuples(st.booleans(), requests), max_size=30))
def test_what_one_peer_is_sent_is_always_whole_packets(sent: list[tuple[bool, Packet]]) -> None:
    """Whatever two peers do to each other, the bytes to each are answers that a client can read."""
    world = World()
    one, two = world.peer(), world.peer()
    for which, packet in sent:
        for item in (one if which else two)(packet):
            assert isinstance(item, bytes) or Role.SERVER in item.senders
    for peer in (one, two):
        peer.read()
