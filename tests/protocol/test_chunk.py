"""Several calls in one job, as bytes: whatever is packed is unpacked, and nothing else is taken for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.errors import PayloadInvalid, RemoteProtocolError
from gearflow.protocol.chunk import (
    MAGIC,
    ItemOutcome,
    OutcomeKind,
    pack_outcomes,
    pack_payloads,
    unpack_outcomes,
    unpack_payloads,
)
from gearflow.protocol.envelope import Envelope, header, unwrap, wrap

payloads = st.lists(st.binary(max_size=30), max_size=8)
outcomes = st.lists(st.tuples(st.sampled_from(OutcomeKind), st.binary(max_size=30)), max_size=8)


@given(payloads)
def test_payloads_arrive_as_they_are(sent: list[bytes]) -> None:
    assert unpack_payloads(pack_payloads(sent), len(sent)) == sent


@given(payloads.filter(bool), st.data())
def test_payloads_that_are_cut_off_or_too_many_are_refused(sent: list[bytes], data: st.DataObject) -> None:
    packed = pack_payloads(sent)
    cut = data.draw(st.integers(0, len(packed) - 1))
    for wrong, number in ((packed[:cut], len(sent)), (packed + b"x", len(sent)), (packed, len(sent) - 1)):
        with pytest.raises(PayloadInvalid, match="does not fit"):
            unpack_payloads(wrong, number)


@given(outcomes)
def test_outcomes_arrive_as_they_are(sent: list[ItemOutcome]) -> None:
    assert unpack_outcomes(pack_outcomes(sent)) == sent


@given(outcomes.filter(bool), st.data())
def test_outcomes_that_are_cut_off_are_refused(sent: list[ItemOutcome], data: st.DataObject) -> None:
    packed = pack_outcomes(sent)
    last = len(pack_outcomes(sent[:-1]))
    cut = data.draw(st.integers(last + 1, len(packed) - 1))
    with pytest.raises(RemoteProtocolError, match="cut off"):
        unpack_outcomes(packed[:cut])


@pytest.mark.parametrize("result", [b"", b"[1, 2]", b"\0gf1", MAGIC[:3]])
def test_another_result_has_no_outcomes(result: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="leave out chunk="):
        unpack_outcomes(result)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="unknown kind"):
        unpack_outcomes(MAGIC + b"\x09\0\0\0\0")


@given(payloads.filter(bool), st.floats(1, 100))
def test_a_chunk_travels_in_an_envelope_and_in_two(sent: list[bytes], timeout: float) -> None:
    packed = pack_payloads(sent)
    inner = wrap(packed, chunk=len(sent))
    assert unwrap(inner) == (Envelope(chunk=len(sent)), packed)
    outer = header(attempt=2, timeout=timeout) + inner
    assert unwrap(outer) == (Envelope(attempt=2, timeout=timeout, chunk=len(sent)), packed)


def test_runs_in_other_jobs_count_as_attempts() -> None:
    inner = wrap(b"x", earlier=1)
    assert unwrap(inner) == (Envelope(attempt=2), b"x")
    assert unwrap(header(attempt=3) + inner) == (Envelope(attempt=4), b"x")
