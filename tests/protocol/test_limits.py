"""The texts and requests of limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gearflow.protocol.limits import (
    FunctionLimits,
    LimitRequest,
    LimitUse,
    LimitValue,
    Policy,
    PolicyRequest,
    limit_text,
    read_limit,
)


@pytest.mark.parametrize(
    ("text", "count", "per"),
    [
        ("20", 20, None),
        (" 20 ", 20, None),
        ("50/m", 50, 60.0),
        ("100/1m", 100, 60.0),
        ("10/s", 10, 1.0),
        ("1000/h", 1000, 3600.0),
        ("100/30s", 100, 30.0),
        ("5/1.5d", 5, 129600.0),
    ],
)
def test_a_limit_is_read_as_people_write_it(text: str, count: int, per: float | None) -> None:
    assert read_limit(text) == (count, per)


@pytest.mark.parametrize(
    "text", ["", "0", "m", "50/", "50/x", "-5", "50/0s", "5.5", "50/m/m", "9" * 13, "1/366d"]
)
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no limit|the count is|the time of a rate"):
        read_limit(text)


@given(st.integers(1, 10**9), st.sampled_from([None, 0.25, 1.0, 30.0, 60.0, 90.0, 300.0, 3600.0, 86400.0]))
def test_a_limit_is_written_as_it_is_read(count: int, per: float | None) -> None:
    assert read_limit(limit_text(count, per)) == (count, per)


def test_a_limit_says_what_it_does() -> None:
    assert str(LimitValue(count=100, per=60.0, burst=10)) == "100/m, burst 10"
    assert str(LimitValue(count=1, over="keep-newest")) == "1, over keep-newest"


@pytest.mark.parametrize("key", ["*", "", "/customer", "/a/0/b", "/a~0b~1c"])
def test_a_key_is_a_pointer_or_sent_by_the_caller(key: str) -> None:
    assert LimitUse(limit="shopify", key=key).key == key


@pytest.mark.parametrize("key", ["customer", "/a~2", "**", "/a~"])
def test_another_key_is_refused(key: str) -> None:
    with pytest.raises(ValidationError, match="key"):
        LimitUse(limit="shopify", key=key)


def test_a_function_uses_a_limit_once() -> None:
    with pytest.raises(ValidationError, match="uses the limit shopify twice"):
        FunctionLimits(limits=(LimitUse(limit="shopify"), LimitUse(limit="shopify", key="/customer")))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"count": 0}', "greater than or equal to 1"),
        ('{"count": 5, "burst": 2}', "burst is for a rate"),
        ('{"count": 5, "per": 60, "over": "drop"}', "not with per"),
        ('{"count": 5, "per": 0}', "greater than 0"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(text: str, fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        LimitValue.model_validate_json(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"action": "set", "name": "shopify"}', "set needs a value"),
        ('{"action": "pause"}', "pause needs the name"),
        ('{"action": "pause", "name": "shopify", "value": {"count": 5}}', "no other action has one"),
        ('{"action": "apply"}', "apply needs an origin"),
        ('{"action": "apply", "origin": "a", "name": "b"}', "no name and no value"),
        ('{"action": "unset", "name": "b", "prune": true}', "are for apply"),
    ],
)
def test_a_request_has_what_its_action_needs(text: str, fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        LimitRequest.model_validate_json(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"action": "set", "policy": {"limit": 5}}', "set needs a function"),
        ('{"action": "set", "function": "mail"}', "set needs a policy"),
        ('{"action": "set", "function": "mail", "policy": {}}', "has no option"),
        ('{"action": "list", "options": ["keep"]}', "options is for unset"),
    ],
)
def test_a_request_about_a_policy_has_what_its_action_needs(text: str, fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        PolicyRequest.model_validate_json(text)


def test_a_policy_is_sent_without_what_is_left_out() -> None:
    request = PolicyRequest(action="set", function="mail", policy=Policy(limit=20))
    assert request.to_wire() == b'{"action":"set","function":"mail","policy":{"limit":20}}'
