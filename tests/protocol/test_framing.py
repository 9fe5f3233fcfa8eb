"""FrameBuffer: the same frames wherever the bytes are cut, and one error for whatever is not Gearman's."""

from collections.abc import Iterable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.errors import RemoteProtocolError
from gearflow.protocol.codec import decode, encode
from gearflow.protocol.constants import (
    HEADER,
    MAX_ANSWER,
    MAX_TEXT_LINE,
    MAX_TYPE,
    REQ,
    RES,
    UNUSED_TYPE,
    PacketType,
)
from gearflow.protocol.framing import TEXT, Frame, FrameBuffer
from gearflow.protocol.packets import EchoReq
from tests import strategies

ECHO = encode(EchoReq(b"here"))
ECHO_FRAME: Frame = (PacketType.ECHO_REQ, b"here")


def read(magic: bytes, pieces: Iterable[bytes]) -> tuple[list[Frame], bool]:
    """The frames up to the end of the pieces or to the fault, and whether there was one."""
    buffer, frames = FrameBuffer(magic), list[Frame]()
    try:
        for piece in pieces:
            frames.extend(buffer.feed(piece))
    except RemoteProtocolError:
        return frames, True
    return frames, False


@given(strategies.magics, strategies.frames, st.data())
def test_where_the_stream_is_cut_never_matters(magic: bytes, sent: list[Frame], data: st.DataObject) -> None:
    ends = data.draw(st.lists(st.sampled_from([b"\n", b"\r\n"]), min_size=len(sent), max_size=len(sent)))
    stream = b"".join(map(strategies.on_the_wire, [magic] * len(sent), sent, ends))
    pieces = data.draw(strategies.cut(stream))
    assert read(magic, pieces) == (sent, False)


@given(strategies.magics, strategies.frames)
def test_a_stream_may_come_byte_by_byte(magic: bytes, sent: list[Frame]) -> None:
    stream = b"".join(strategies.on_the_wire(magic, frame) for frame in sent)
    assert read(magic, [stream[i : i + 1] for i in range(len(stream))]) == (sent, False)


@given(strategies.magics, strategies.frames, strategies.garbage, st.data())
def test_garbage_is_told_alike_wherever_it_is_cut_and_after_the_frames_before_it(
    magic: bytes, sent: list[Frame], garbage: bytes, data: st.DataObject
) -> None:
    stream = b"".join(strategies.on_the_wire(magic, frame) for frame in sent) + garbage
    frames, failed = read(magic, data.draw(strategies.cut(stream)))
    assert frames[: len(sent)] == sent
    assert (frames, failed) == read(magic, [stream])


@given(strategies.garbage)
def test_what_garbage_happens_to_be_framed_decodes_or_is_the_peers_fault(garbage: bytes) -> None:
    frames, _ = read(REQ, [garbage])
    for kind, body in frames:
        if kind != TEXT:
            with suppress(RemoteProtocolError):
                decode(kind, body)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(b"\0", id="a NUL that the magic does not follow"),
        pytest.param(b"\0RAQ", id="wrong magic"),
        pytest.param(RES, id="the other direction's magic"),
        pytest.param(HEADER.pack(REQ, 0, 0), id="type 0"),
        pytest.param(HEADER.pack(REQ, MAX_TYPE + 1, 0), id="type 43"),
        pytest.param(
            HEADER.pack(REQ, 0x8000_0007, 0), id="type with the top bit set, of which gearmand dies"
        ),
        pytest.param(b"x" * (MAX_TEXT_LINE + 1), id="endless line"),
    ],
)
def test_a_fault_is_told_after_the_frames_before_it(fault: bytes) -> None:
    assert read(REQ, [ECHO + fault + ECHO]) == ([ECHO_FRAME], True)


def test_a_wrong_magic_is_told_at_its_first_wrong_byte() -> None:
    assert read(REQ, [b"\0", b"R"]) == ([], False)
    assert read(REQ, [b"\0", b"X"]) == ([], True)


def test_a_broken_stream_stays_broken() -> None:
    buffer = FrameBuffer(REQ)
    for piece in (b"\0nonsense", ECHO):
        with pytest.raises(RemoteProtocolError, match="is not the magic"):
            list(buffer.feed(piece))


def test_the_unused_type_is_framed_since_a_server_answers_it() -> None:
    assert read(REQ, [HEADER.pack(REQ, UNUSED_TYPE, 1) + b"x"]) == ([(UNUSED_TYPE, b"x")], False)
    with pytest.raises(RemoteProtocolError, match="packet type 5 does not exist"):
        decode(UNUSED_TYPE, b"x")


def test_a_body_over_the_limit_is_refused_before_it_comes() -> None:
    buffer = FrameBuffer(REQ, max_body=10)
    assert list(buffer.feed(HEADER.pack(REQ, PacketType.ECHO_REQ, 10) + b"0123456789")) == [
        (PacketType.ECHO_REQ, b"0123456789")
    ]
    with pytest.raises(RemoteProtocolError, match="11 bytes is over the limit of 10"):
        list(buffer.feed(HEADER.pack(REQ, PacketType.ECHO_REQ, 11)))


@pytest.mark.parametrize(
    "kind", [PacketType.JOB_CREATED, PacketType.ERROR, PacketType.STATUS_RES, PacketType.WORK_STATUS]
)
def test_an_answer_that_brings_no_payload_is_short(kind: PacketType) -> None:
    assert read(RES, [HEADER.pack(RES, kind, MAX_ANSWER) + bytes(MAX_ANSWER)])[1] is False
    assert read(RES, [HEADER.pack(RES, kind, MAX_ANSWER + 1)]) == ([], True)


def test_the_longest_line_passes_and_one_byte_more_does_not() -> None:
    line = b"x" * MAX_TEXT_LINE
    assert read(REQ, [line + b"\n"]) == ([(TEXT, line)], False)
    assert read(REQ, [line + b"x\n"]) == ([], True)
    assert read(REQ, [line, b"x"]) == ([], True)


def test_a_line_loses_one_carriage_return() -> None:
    assert read(REQ, [b"a\r\r\n\r\n\n"]) == ([(TEXT, b"a\r"), (TEXT, b""), (TEXT, b"")], False)
