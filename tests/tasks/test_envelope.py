"""What is said beside the payload, and that nothing is said where nothing need be."""

import contextlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.errors import PayloadInvalid
from gearflow.tasks.envelope import MAGIC, Envelope, unwrap, wrap


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
    assert unwrap(wrap(payload, timeout=timeout)) == (Envelope(timeout), payload)


def test_what_a_later_version_may_say_is_ignored() -> None:
    head = json.dumps({"attempt": 2, "trace": {"id": "x"}, "timeout": 3}).encode()
    assert unwrap(enveloped(head, b"x")) == (Envelope(timeout=3), b"x")


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
    ],
)
def test_a_corrupt_envelope_says_what_is_wrong(workload: bytes, fault: str) -> None:
    with pytest.raises(PayloadInvalid, match=fault):
        unwrap(workload)


@given(st.binary())
def test_garbage_behind_the_magic_is_nothing_worse(data: bytes) -> None:
    with contextlib.suppress(PayloadInvalid):
        unwrap(MAGIC + data)
