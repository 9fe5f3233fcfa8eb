"""What is said beside the payload, and that nothing is said where nothing need be."""

import contextlib
import json
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.errors import PayloadInvalid
from gearflow.protocol.envelope import MAGIC, Envelope, header, unwrap, with_trace, wrap
from gearflow.protocol.server_calls import RetryPlan

PLAN = RetryPlan(delays=(1.0, 2.5), jitter=False, on=("builtins.OSError",))


def enveloped(head: bytes, payload: bytes = b"") -> bytes:
    return MAGIC + struct.pack(">I", len(head)) + head + payload


def test_a_payload_without_anything_to_say_goes_as_it_is() -> None:
    assert wrap(b'{"a":1}', timeout=None) == b'{"a":1}'
    assert unwrap(b'{"a":1}') == (Envelope(), b'{"a":1}')


def test_a_run_limit_goes_into_the_envelope() -> None:
    workload = wrap(b"x", timeout=1.5)
    assert workload == b"\0gf1\0\0\0\x10" + b'{"timeout": 1.5}' + b"x"
    assert unwrap(workload) == (Envelope(timeout=1.5), b"x")


@given(st.binary(), st.booleans(), st.none() | st.floats(min_value=1e-9, allow_infinity=False))
def test_any_payload_arrives_as_it_was(payload: bytes, as_envelope: bool, timeout: float | None) -> None:
    payload = MAGIC + payload if as_envelope else payload
    assert unwrap(wrap(payload, timeout=timeout)) == (Envelope(timeout=timeout), payload)


def test_what_a_later_version_may_say_is_ignored() -> None:
    head = json.dumps({"colour": {"id": "x"}, "timeout": 3}).encode()
    assert unwrap(enveloped(head, b"x")) == (Envelope(timeout=3), b"x")


def test_all_that_can_be_said_arrives() -> None:
    said = Envelope(attempt=3, timeout=1.5, retries=PLAN, detached=True)
    workload = wrap(b"x", attempt=3, timeout=1.5, retries=PLAN, detached=True)
    assert unwrap(workload) == (said, b"x")


@pytest.mark.parametrize("head", [b"", header(timeout=2, detached=True), header(chunk=3)])
def test_a_trace_is_added_to_a_header(head: bytes) -> None:
    trace = {"traceparent": "00-1-2-01", "baggage": "a=\u00e9"}
    expected, _ = unwrap(head)
    workload = with_trace(head, json.dumps(trace).encode()) + b"x"
    assert unwrap(workload) == (replace(expected, trace=trace), b"x")


@pytest.mark.parametrize("trace", ["text", 3, [], {}, {"a": 1}, {"a": {"b": "c"}}])
def test_a_trace_that_cannot_be_read_is_left_out(trace: object) -> None:
    assert unwrap(enveloped(json.dumps({"trace": trace}).encode(), b"x")) == (Envelope(), b"x")


def test_what_a_later_version_may_say_of_retries_is_ignored() -> None:
    workload = enveloped(b'{"retries": {"delays": [1], "budget": 3}}')
    assert unwrap(workload) == (Envelope(retries=RetryPlan(delays=(1,))), b"")


def test_a_header_before_a_workload_has_the_same_options() -> None:
    for payload in (b"x", MAGIC + b"x"):
        said = header(timeout=2, retries=PLAN, detached=True) + wrap(payload)
        assert unwrap(said) == (Envelope(timeout=2, retries=PLAN, detached=True), payload)
    assert header() == b""


def test_what_the_servers_envelope_says_counts_before_the_producers() -> None:
    inner = wrap(b"x", timeout=1, retries=PLAN)
    outer = enveloped(b'{"attempt": 2, "timeout": 5}', inner)
    assert unwrap(outer) == (Envelope(attempt=2, timeout=5, retries=PLAN), b"x")


@given(st.binary(), st.integers(min_value=1, max_value=9))
def test_a_raw_payload_that_looks_like_an_envelope_survives_the_servers(data: bytes, attempt: int) -> None:
    payload = wrap(wrap(MAGIC + data, timeout=3), timeout=4)  # looks like three
    workload = wrap(payload)
    assert unwrap(workload) == (Envelope(), payload)
    served = enveloped(json.dumps({"attempt": attempt}).encode(), workload)
    assert unwrap(served) == (Envelope(attempt=attempt), payload)


def test_there_are_two_envelopes_at_most() -> None:
    third = enveloped(b'{"timeout": 3}', b"x")
    assert unwrap(enveloped(b"{}", enveloped(b"{}", third))) == (Envelope(), third)


@pytest.mark.parametrize(
    ("workload", "fault"),
    [
        (MAGIC, "within its length"),
        (MAGIC + b"\0\0\0", "within its length"),
        (MAGIC + b"\xff\xff\xff\xff{}", "cut off after 2"),
        (enveloped(b"{"), "not JSON"),
        (enveloped(b""), "not JSON"),
        (enveloped(b"\xff"), "not JSON"),
        (enveloped(b"[" * 100_000), "not JSON"),
        (enveloped(b"[]"), "list, not an object"),
        (enveloped(b'{"timeout": "soon"}'), "'soon'"),
        (enveloped(b'{"timeout": true}'), "True"),
        (enveloped(b'{"timeout": 0}'), "0"),
        (enveloped(b'{"timeout": NaN}'), "nan"),
        (enveloped(b'{"attempt": 0}'), "0, not a number from 1"),
        (enveloped(b'{"attempt": true}'), "True"),
        (enveloped(b'{"attempt": "2"}'), "'2'"),
        (enveloped(b'{"detached": 1}'), "1, not true or false"),
        (enveloped(b'{"retries": 3}'), "3, which is no plan"),
        (enveloped(b'{"retries": {}}'), "no plan of retries"),
        (enveloped(b'{"retries": {"delays": [-1]}}'), "no plan of retries"),
        (enveloped(b"{}", MAGIC), "within its length"),
    ],
)
def test_a_corrupt_envelope_says_what_is_wrong(workload: bytes, fault: str) -> None:
    with pytest.raises(PayloadInvalid, match=fault):
        unwrap(workload)


@given(st.binary())
def test_garbage_behind_the_magic_is_nothing_worse(data: bytes) -> None:
    with contextlib.suppress(PayloadInvalid):
        unwrap(MAGIC + data)


def test_a_server_says_where_a_run_goes_on_and_how_far_the_last_one_was() -> None:
    said = header(parts=3, previous=(1, 20, "half")) + b"x"
    assert unwrap(said) == (Envelope(parts=3, previous=(1, 20, "half")), b"x")
    assert unwrap(header(previous=(1, 2, None)))[0].previous == (1, 2, None)
    assert header(parts=0) == b""


@pytest.mark.parametrize(
    "head",
    [
        b'{"parts": -1}',
        b'{"parts": true}',
        b'{"parts": 1.5}',
        b'{"previous": [1, 2]}',
        b'{"previous": [1, "2", null]}',
        b'{"previous": [true, 2, null]}',
        b'{"previous": {"done": 1}}',
        b'{"previous": [1, 2, 3]}',
    ],
)
def test_parts_and_progress_that_make_no_sense_are_refused(head: bytes) -> None:
    with pytest.raises(PayloadInvalid):
        unwrap(enveloped(head))
