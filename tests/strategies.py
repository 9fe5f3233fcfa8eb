"""What may stand on the wire, as hypothesis strategies: packets, text lines, frames, cuts, garbage."""

from collections.abc import Callable
from typing import TypeVar

from hypothesis import strategies as st

from gearflow.protocol.codec import LAYOUTS, Layout
from gearflow.protocol.constants import HEADER, REQ, RES, PacketType
from gearflow.protocol.framing import TEXT, Frame
from gearflow.protocol.packets import Packet

T = TypeVar("T")
Draw = Callable[[st.SearchStrategy[T]], T]

magics = st.sampled_from([REQ, RES])

names = st.binary(max_size=24).map(lambda name: name.replace(b"\0", b""))
"""A function, handle, unique, number ...: whatever has no NUL, also nothing at all."""

data = st.one_of(st.binary(max_size=64), st.binary(min_size=200, max_size=400))
"""A workload or result: NULs and all."""


def _packet(layout: Layout) -> st.SearchStrategy[Packet]:
    fields = [names] * len(layout.fields)
    if layout.opaque:
        fields[-1] = data
    return st.builds(layout.packet, *fields)


packets: st.SearchStrategy[Packet] = st.one_of([_packet(layout) for layout in LAYOUTS.values()])
"""Every packet of the protocol, in both directions."""

packet_types = st.sampled_from(list(PacketType))

binary_frames: st.SearchStrategy[Frame] = st.tuples(packet_types, data)

lines = st.binary(max_size=80).map(lambda line: line.replace(b"\n", b"").lstrip(b"\0").rstrip(b"\r"))
"""A line of text without its end; the empty one is not sent as such, but by CRLF or LF alone."""

text_frames: st.SearchStrategy[Frame] = st.tuples(st.just(TEXT), lines)

frames = st.lists(st.one_of(binary_frames, text_frames), max_size=8)
"""Packets with text lines in between."""


def on_the_wire(magic: bytes, frame: Frame, end: bytes = b"\n") -> bytes:
    """A frame as a peer would send it."""
    kind, body = frame
    return body + end if kind == TEXT else HEADER.pack(magic, kind, len(body)) + body


@st.composite
def cut(draw: Draw[int], stream: bytes) -> list[bytes]:
    """The stream in pieces, as a socket may deliver it."""
    pieces: list[bytes] = []
    size = st.integers(min_value=1, max_value=max(len(stream), 1))
    while stream:
        length = draw(size)
        pieces.append(stream[:length])
        stream = stream[length:]
    return pieces


def _almost_a_packet(parts: tuple[bytes, int, int, bytes]) -> bytes:
    *header, rest = parts
    return HEADER.pack(*header) + rest


_numbers = st.integers(0, 0xFFFF_FFFF)

garbage: st.SearchStrategy[bytes] = st.one_of(
    st.binary(max_size=64),
    st.tuples(st.just(b"\0"), st.binary(max_size=8)).map(b"".join),
    st.tuples(magics, st.binary(max_size=40)).map(b"".join),
    st.tuples(magics, _numbers, _numbers, st.binary(max_size=40)).map(_almost_a_packet),
)
"""What nobody who speaks the protocol would send, from noise to all but a packet."""
