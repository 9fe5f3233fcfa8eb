"""The events of ``gearflow:events`` and ``gearflow:watch``, from one side to the other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.protocol import server_events as events


@given(st.binary(min_size=1, max_size=63), st.integers(0, 1 << 62))
def test_a_credit_arrives_as_it_was_given(handle: bytes, parts: int) -> None:
    event = events.credit_event(handle, parts)
    assert events.credit_of(event) == (handle, parts)
    assert events.cancelled_handle(event) is None


@pytest.mark.parametrize(
    "event", [b"", b"[]", b"{}", b'{"event":"credit","handle":1,"parts":2}', b"[" * 9999]
)
def test_what_is_no_credit_is_none(event: bytes) -> None:
    assert events.credit_of(event) is None
    assert events.credit_of(events.cancel_event(b"H:x:1")) is None


@given(st.binary(max_size=50))
def test_a_part_that_is_watched_arrives_as_it_was(part: bytes) -> None:
    assert events.read_watch_event(events.part_event(7, part)) == ({"event": "part", "position": 7}, part)


def test_an_event_has_its_fields() -> None:
    event = events.watch_event("warned", text="low\non disk")
    assert events.read_watch_event(event) == ({"event": "warned", "text": "low\non disk"}, b"")


@pytest.mark.parametrize("event", [b"", b"[1]\nx", b"nonsense", b"[" * 9999])
def test_an_event_that_makes_no_sense_has_no_fields(event: bytes) -> None:
    assert events.read_watch_event(event)[0] == {}
