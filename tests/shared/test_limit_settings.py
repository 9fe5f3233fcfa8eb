"""Limits and policies that are set at one server hold at the others, and after they were killed."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from gearflow.client import SyncClient
from gearflow.protocol.limits import (
    LIMIT,
    LIMITS,
    POLICY,
    FunctionLimits,
    LimitOverride,
    LimitRequest,
    LimitsRequest,
    LimitUse,
    LimitValue,
    Policy,
    PolicyRequest,
)
from gearflow.protocol.server_calls import Message
from tests.postgres.cluster import eventually
from tests.shared.group import Group


@pytest.fixture
def name() -> str:
    """Of a limit and of a function."""
    return f"limited-{uuid4().hex}"


def ask(group: Group, server: int, function: bytes, request: Message) -> dict[str, Any]:
    with SyncClient([group.addresses[server]], discover=False) as client:
        answer: dict[str, Any] = json.loads(client.call_reserved(function, request))
        return answer


def shown(group: Group, server: int, name: str) -> list[tuple[str, bool]]:
    """The limits of a function at a server: their texts, and whether they are paused."""
    limits = ask(group, server, LIMITS, LimitsRequest(function=name)).get("limits", ())
    return [(limit["text"], limit.get("paused", False)) for limit in limits]


def declared(name: str, count: int) -> LimitRequest:
    uses = FunctionLimits(limits=(LimitUse(limit=name),))
    value = LimitValue(count=count)
    return LimitRequest(action="apply", origin=name, limits={name: value}, functions={name: uses})


def test_what_is_set_at_one_server_holds_at_all(group: Group, name: str) -> None:
    def everywhere(expected: list[tuple[str, bool]]) -> None:
        eventually(
            lambda: all(shown(group, server, name) == expected for server in range(3)),
            f"all servers have {expected}",
        )

    ask(group, 0, LIMIT, declared(name, 20))
    everywhere([("20", False)])
    ask(group, 1, LIMIT, LimitRequest(action="set", name=name, value=LimitOverride(count=5)))
    ask(group, 2, LIMIT, LimitRequest(action="apply", origin="nobody", prune=True))
    ask(group, 0, LIMIT, declared(name, 30))
    everywhere([("5", False)])  # a later ``apply`` leaves the operator's value
    ask(group, 2, LIMIT, LimitRequest(action="pause", name=name))
    ask(group, 0, POLICY, PolicyRequest(action="set", function=name, policy=Policy(limit=3)))
    everywhere([("5", True), ("3", False)])
    for server in range(3):
        group.kill(server)
    group.recover()
    everywhere([("5", True), ("3", False)])
    ask(group, 1, LIMIT, LimitRequest(action="resume", name=name))
    ask(group, 2, POLICY, PolicyRequest(action="unset", function=name))
    eventually(lambda: shown(group, 1, name) == [("5", False)], "the policy is unset there, too")
    ask(group, 1, LIMIT, LimitRequest(action="unset", name=name))
    everywhere([("30", False)])
    ask(group, 0, LIMIT, LimitRequest(action="apply", origin=name, prune=True))
    everywhere([])
