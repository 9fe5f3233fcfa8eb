"""Where a line's fault comes, in whatever parts the packets come."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.protocol.codec import encode
from gearflow.protocol.packets import EchoReq, GrabJob
from tests.faults.lines import Fault, Place, What, draw

PACKETS = [encode(GrabJob()), encode(EchoReq(b"x" * 40)), encode(GrabJob()), encode(EchoReq(b""))]


@given(st.integers(0, 3), st.integers(0, 20), st.lists(st.integers(1, 30)))
def test_a_fault_comes_at_its_place_however_the_stream_is_cut(
    packets: int, more: int, sizes: list[int]
) -> None:
    place = Place(Fault(What.CLOSE, packets, more))
    stream, at = b"".join(PACKETS), 0
    for size in [*sizes, len(stream)]:
        found = place.find(stream[at : at + size])
        if found is not None:
            assert at + found == sum(map(len, PACKETS[:packets])) + more
            return
        at += size
    assert sum(map(len, PACKETS[:packets])) + more > len(stream)


@pytest.mark.parametrize("what", What)
def test_every_fault_is_drawn_in_both_directions(what: What) -> None:
    drawn = [draw(Random(seed)) for seed in range(300)]
    for direction in (0, 1):
        faults = [lines[direction].fault for lines in drawn]
        assert any(fault is not None and fault.what is what for fault in faults)
