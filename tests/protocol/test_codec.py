"""The table of packets, and bytes <-> packets in the forms that stock peers send."""

import json
from typing import Final

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gearflow.errors import LocalProtocolError, RemoteProtocolError
from gearflow.protocol.codec import (
    FAILURE_MARK,
    LAYOUTS,
    Layout,
    decode,
    encode,
    encode_response,
    mark_failure,
    marked_failure,
)
from gearflow.protocol.constants import (
    HEADER,
    HEADER_SIZE,
    MAX_BODY,
    MAX_TYPE,
    REQ,
    RES,
    UNUSED_TYPE,
    PacketType,
)
from gearflow.protocol.framing import FrameBuffer
from gearflow.protocol.packets import (
    EchoReq,
    Error,
    GetStatus,
    JobAssign,
    Packet,
    Role,
    SubmitJob,
    WorkComplete,
    WorkData,
    WorkException,
    WorkFail,
    WorkStatus,
    WorkWarning,
)
from tests import strategies

C, W, S = Role.CLIENT, Role.WORKER, Role.SERVER
SUBMIT: Final = "function unique workload*"
REDUCE: Final = "function unique reducer ignored workload*"

# The protocol's table: number, name, who sends it, arguments in their order; a star is opaque data.
TABLE: Final[list[tuple[int, str, Role, str]]] = [
    (1, "CAN_DO", W, "function"),
    (2, "CANT_DO", W, "function"),
    (3, "RESET_ABILITIES", W, ""),
    (4, "PRE_SLEEP", W, ""),
    (6, "NOOP", S, ""),
    (7, "SUBMIT_JOB", C, SUBMIT),
    (8, "JOB_CREATED", S, "handle"),
    (9, "GRAB_JOB", W, ""),
    (10, "NO_JOB", S, ""),
    (11, "JOB_ASSIGN", S, "handle function workload*"),
    (12, "WORK_STATUS", W | S, "handle numerator denominator"),
    (13, "WORK_COMPLETE", W | S, "handle result*"),
    (14, "WORK_FAIL", W | S, "handle"),
    (15, "GET_STATUS", C, "handle"),
    (16, "ECHO_REQ", C | W, "data*"),
    (17, "ECHO_RES", S, "data*"),
    (18, "SUBMIT_JOB_BG", C, SUBMIT),
    (19, "ERROR", S, "code text"),
    (20, "STATUS_RES", S, "handle known running numerator denominator"),
    (21, "SUBMIT_JOB_HIGH", C, SUBMIT),
    (22, "SET_CLIENT_ID", C | W, "client_id"),
    (23, "CAN_DO_TIMEOUT", W, "function milliseconds"),
    (24, "ALL_YOURS", W, ""),
    (25, "WORK_EXCEPTION", W | S, "handle data*"),
    (26, "OPTION_REQ", C | W, "option"),
    (27, "OPTION_RES", S, "option"),
    (28, "WORK_DATA", W | S, "handle data*"),
    (29, "WORK_WARNING", W | S, "handle data*"),
    (30, "GRAB_JOB_UNIQ", W, ""),
    (31, "JOB_ASSIGN_UNIQ", S, "handle function unique workload*"),
    (32, "SUBMIT_JOB_HIGH_BG", C, SUBMIT),
    (33, "SUBMIT_JOB_LOW", C, SUBMIT),
    (34, "SUBMIT_JOB_LOW_BG", C, SUBMIT),
    (35, "SUBMIT_JOB_SCHED", C, "function unique minute hour day_of_month month day_of_week workload*"),
    (36, "SUBMIT_JOB_EPOCH", C, "function unique epoch workload*"),
    (37, "SUBMIT_REDUCE_JOB", C, REDUCE),
    (38, "SUBMIT_REDUCE_JOB_BACKGROUND", C, REDUCE),
    (39, "GRAB_JOB_ALL", W, ""),
    (40, "JOB_ASSIGN_ALL", S, "handle function unique reducer workload*"),
    (41, "GET_STATUS_UNIQUE", C, "unique"),
    (42, "STATUS_RES_UNIQUE", S, "unique known running numerator denominator clients"),
]


def one(magic: bytes, stream: bytes) -> Packet:
    """The only packet of a stream."""
    [(kind, body)] = FrameBuffer(magic).feed(stream)
    return decode(kind, body)


def by_name(layout: Layout) -> str:
    return layout.packet.type.name


def test_the_packets_are_those_of_the_protocol() -> None:
    built = [
        (kind.value, kind.name, layout.packet.senders, " ".join(layout.fields) + "*" * layout.opaque)
        for kind, layout in sorted(LAYOUTS.items())
    ]
    assert built == TABLE
    assert set(LAYOUTS) == set(PacketType) == set(range(1, MAX_TYPE + 1)) - {UNUSED_TYPE}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=by_name)
def test_a_packet_class_is_named_for_its_packet(layout: Layout) -> None:
    assert layout.packet.__name__ == layout.packet.type.name.title().replace("_", "")
    assert layout.separators == max(len(layout.fields) - 1, 0)


@given(strategies.packets)
def test_every_packet_survives_encode_and_decode(packet: Packet) -> None:
    assert one(RES if packet.senders == S else REQ, encode(packet)) == packet
    assert one(RES, encode_response(packet)) == packet


def test_a_packet_on_the_wire() -> None:
    assert encode(SubmitJob(b"resize", b"", b"a\0b")) == b"\0REQ\0\0\0\x07\0\0\0\x0bresize\0\0a\0b"
    assert encode(JobAssign(b"H:1", b"f", b"")) == b"\0RES\0\0\0\x0b\0\0\0\x06H:1\0f\0"
    assert encode_response(WorkFail(b"H:1")) == b"\0RES\0\0\0\x0e\0\0\0\x03H:1"


@given(strategies.packets, st.data())
def test_a_nul_where_it_would_move_the_following_fields_is_our_fault(
    packet: Packet, data: st.DataObject
) -> None:
    layout = LAYOUTS[packet.type]
    assume(layout.separators)
    place = data.draw(st.integers(0, layout.separators - 1))
    values = [getattr(packet, name) for name in layout.fields]
    values[place] += b"\0"
    with pytest.raises(LocalProtocolError, match=f"{packet.type.name}: the {layout.fields[place]} .* NUL"):
        encode(layout.packet(*values))


def test_a_body_over_the_wires_limit_is_our_fault() -> None:
    zeros = bytes(MAX_BODY + 1)  # which take no memory before somebody touches them
    with pytest.raises(LocalProtocolError, match=f"ECHO_REQ: a body of {MAX_BODY + 1} bytes is over"):
        encode(EchoReq(zeros))


@given(st.integers(0, 0xFFFF_FFFF) | strategies.packet_types, st.binary(max_size=60))
def test_garbage_decodes_to_what_encodes_again_or_is_the_peers_fault(kind: int, body: bytes) -> None:
    try:
        packet = decode(kind, body)
    except RemoteProtocolError:
        return
    again = encode_response(packet)
    assert HEADER.unpack(again[:HEADER_SIZE])[1] == kind == packet.type
    assert decode(kind, again[HEADER_SIZE:]) == packet or kind == PacketType.WORK_FAIL


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=by_name)
def test_a_body_with_too_few_arguments_names_the_packet(layout: Layout) -> None:
    lacking = layout.separators - 2 if layout.packet in BENT else layout.separators - 1
    for separators in range(lacking + 1):
        with pytest.raises(
            RemoteProtocolError, match=f"{layout.packet.type.name} has {separators + 1} of its"
        ):
            decode(layout.packet.type, b"x" + b"\0y" * separators)


BENT: Final = {WorkComplete, WorkData, WorkWarning, WorkException, WorkStatus}


@pytest.mark.parametrize("packet", [WorkComplete, WorkData, WorkWarning, WorkException])
def test_an_empty_result_may_come_without_its_nul_as_from_perl(
    packet: type[WorkComplete | WorkData | WorkWarning | WorkException],
) -> None:
    assert decode(packet.type, b"H:1") == packet(b"H:1", b"")


def test_a_progress_may_come_without_a_denominator_as_from_perl() -> None:
    assert decode(PacketType.WORK_STATUS, b"H:1\x003") == WorkStatus(b"H:1", b"3", b"")


def test_a_failure_loses_the_nul_that_gearmand_puts_behind_the_handle() -> None:
    assert decode(PacketType.WORK_FAIL, b"H:1\0") == WorkFail(b"H:1")


def test_a_body_where_none_belongs_is_ignored_as_by_gearmand() -> None:
    packet = decode(PacketType.GRAB_JOB, b"junk")
    assert encode(packet) == HEADER.pack(REQ, PacketType.GRAB_JOB, 0)


def test_the_last_argument_takes_what_is_left() -> None:
    assert decode(PacketType.GET_STATUS, b"H:1\0junk") == GetStatus(b"H:1\0junk")
    assert decode(PacketType.ERROR, b"code\0text\0more") == Error(b"code", b"text\0more")


failures = st.dictionaries(st.text(), st.none() | st.text(), min_size=1)


@given(failures)
def test_a_failure_is_marked_as_json_and_comes_back_byte_for_byte(failure: dict[str, object]) -> None:
    data = json.dumps(failure).encode()
    marked = mark_failure(data)
    assert json.loads(marked) == {"gearflow": "failure", **failure}
    assert marked_failure(marked) == data


@given(st.binary() | failures.map(lambda failure: json.dumps(failure).encode()))
def test_no_other_warning_is_taken_for_a_failure(data: bytes) -> None:
    assume(not data.startswith(FAILURE_MARK))  # Hypothesis tries what it finds in the source
    assert marked_failure(data) is None
