"""The reserved functions that change and show limits and policies."""

import json
from typing import Any

import pytest

from gearflow.broker.storage import Setting
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.limits import LIMIT, LIMITS, POLICY, LimitChanges, LimitList, Policies
from tests.broker.harness import Disk, Durable, World

Asked = dict[str, Any]

SHOP: Asked = {
    "action": "apply",
    "origin": "shop.tasks",
    "limits": {"shopify": {"count": 100, "per": 60, "burst": 10}, "sync:customer": {"count": 1}},
    "functions": {
        "sync": {
            "limits": [{"limit": "shopify"}, {"limit": "sync:customer", "key": "/customer"}],
            "fair": "/tenant",
        }
    },
}


@pytest.fixture
def world() -> Durable:
    return Durable()


def ask(world: World, function: bytes, request: Asked) -> dict[str, Any]:
    """The answer of a call, or its fault."""
    peer = world.peer("operator")
    peer(p.OptionReq(b"exceptions"))
    sent = peer(p.SubmitJob(function, b"", json.dumps(request).encode()))
    for _ in range(50):
        if isinstance(world, Durable):
            world.commit()
        world.finish()
    (answer,) = (packet for packet in (*sent, *peer.read()) if not isinstance(packet, p.JobCreated))
    peer.leave()
    assert isinstance(answer, (p.WorkComplete, p.WorkException))
    found: dict[str, Any] = json.loads(answer.result if isinstance(answer, p.WorkComplete) else answer.data)
    return found


def changes(world: World, request: Asked) -> list[tuple[str, ...]]:
    answer = ask(world, LIMIT, request)
    assert "type" not in answer, answer
    return [
        (change.change, change.kind, change.name, change.before, change.after, change.note)
        for change in LimitChanges.model_validate_json(json.dumps(answer)).changes
    ]


def listed(world: World, **request: str) -> LimitList:
    return LimitList.model_validate_json(json.dumps(ask(world, LIMITS, request)))


def texts(world: World) -> dict[str, str]:
    """The limits that hold."""
    return {limit.name: limit.text + (", paused" if limit.paused else "") for limit in listed(world).limits}


def policies(world: World, **request: Any) -> Policies:
    answer = ask(world, POLICY, request)
    assert "type" not in answer, answer
    return Policies.model_validate_json(json.dumps(answer))


# -------------------------------------------------------------------------------- what code declares


def test_declared_limits_are_applied_once(world: Durable) -> None:
    assert changes(world, SHOP) == [
        ("added", "limit", "shopify", "", "100/m, burst 10", ""),
        ("added", "limit", "sync:customer", "", "1", ""),
        ("added", "function", "sync", "", "shopify, sync:customer by /customer, fair by /tenant", ""),
    ]
    assert changes(world, SHOP) == []
    found = listed(world)
    assert [(limit.name, limit.text, limit.origin, limit.functions) for limit in found.limits] == [
        ("shopify", "100/m, burst 10", "shop.tasks", ("sync",)),
        ("sync:customer", "1", "shop.tasks", ("sync",)),
    ]
    (function,) = found.functions
    assert (function.function, function.fair, function.origin) == ("sync", "/tenant", "shop.tasks")
    assert [(use.limit, use.key) for use in function.limits] == [
        ("shopify", None),
        ("sync:customer", "/customer"),
    ]


def test_a_dry_run_changes_nothing(world: Durable) -> None:
    assert len(changes(world, SHOP | {"dry_run": True})) == 3
    assert listed(world) == LimitList()
    assert len(changes(world, SHOP)) == 3


def test_a_declaration_that_changes_is_shown_with_what_was(world: Durable) -> None:
    changes(world, SHOP)
    declared = SHOP | {"limits": SHOP["limits"] | {"shopify": {"count": 50, "per": 60}}}
    assert changes(world, declared) == [("changed", "limit", "shopify", "100/m, burst 10", "50/m", "")]
    assert texts(world)["shopify"] == "50/m"


def test_prune_removes_what_the_same_origin_does_not_declare_any_more(world: Durable) -> None:
    changes(world, SHOP)
    other: Asked = {
        "action": "apply",
        "origin": "mail.tasks",
        "limits": {"smtp": {"count": 5}},
        "functions": {"mail": {"limits": [{"limit": "smtp"}, {"limit": "shopify"}]}},
    }
    changes(world, other)
    nothing: Asked = {"action": "apply", "origin": "shop.tasks"}
    assert changes(world, nothing) == []
    assert changes(world, nothing | {"prune": True}) == [
        ("removed", "function", "sync", "shopify, sync:customer by /customer, fair by /tenant", "", ""),
        ("removed", "limit", "sync:customer", "1", "", ""),
    ]
    found = listed(world)
    assert [limit.name for limit in found.limits] == ["shopify", "smtp"]  # the first is used by ``mail``
    assert [function.function for function in found.functions] == ["mail"]


def test_a_limit_that_another_origin_declares_is_taken_over_with_a_note(world: Durable) -> None:
    changes(world, SHOP)
    moved = SHOP | {"origin": "shop.jobs", "functions": {}, "limits": {"sync:customer": {"count": 1}}}
    note = "shop.tasks declared it before"
    assert changes(world, moved) == [("changed", "limit", "sync:customer", "1", "1", note)]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            {"functions": {"sync": {"limits": [{"limit": "shopfy"}]}}},
            "sync uses a limit shopfy, which nothing declares; did you mean shopify?",
        ),
        (
            {"functions": {"sync": {"limits": [{"limit": "x"}]}}, "limits": {}},
            "sync uses a limit x, which nothing declares; there are none",
        ),
        ({"functions": {"gearflow:x": {}}}, "there can be no jobs of a function 'gearflow:x'"),
        ({"functions": {"f" * 9000: {}}}, "there can be no jobs of a function"),
        ({"limits": {"mail:policy": {"count": 1}}}, "only limits of policies have names that end with"),
        ({"limits": {"shopify": {"count": 0}}}, "limits.shopify.count: Input should be greater than"),
        (
            {"functions": {"sync": {"fair": "tenant"}}},
            "functions.sync.fair: Value error, 'tenant' is no key: write a JSON pointer such as /customer",
        ),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused_as_a_whole(
    world: Durable, change: Asked, fault: str
) -> None:
    answer = ask(world, LIMIT, SHOP | change)
    assert answer["type"] in ("gearflow:invalid", "gearflow:unknown")
    assert fault in answer["message"]
    assert listed(world) == LimitList()


# ------------------------------------------------------------------------------ what operators change


def test_the_value_of_an_operator_wins_until_it_is_unset(world: Durable) -> None:
    changes(world, SHOP)
    override: Asked = {"action": "set", "name": "shopify", "value": {"count": 50, "per": 60}}
    assert changes(world, override) == [
        ("changed", "limit", "shopify", "100/m, burst 10", "50/m, burst 10", "")
    ]
    assert changes(world, override) == []
    note = "an operator has set it to 50/m, burst 10, which goes on to hold"
    declared = SHOP | {"limits": {"shopify": {"count": 200, "per": 60}}}
    assert changes(world, declared) == [("changed", "limit", "shopify", "100/m, burst 10", "200/m", note)]
    assert texts(world)["shopify"] == "50/m, burst 10"
    assert texts(world.restarted())["shopify"] == "50/m, burst 10"
    unset: Asked = {"action": "unset", "name": "shopify"}
    assert changes(world, unset) == [("changed", "limit", "shopify", "50/m, burst 10", "200/m", "")]
    assert changes(world, unset) == []
    assert texts(world.restarted())["shopify"] == "200/m"


def test_a_pause_outlives_a_restart_and_what_code_declares(world: Durable) -> None:
    changes(world, SHOP)
    assert changes(world, {"action": "pause", "name": "sync:customer"}) == [
        ("changed", "limit", "sync:customer", "1", "1, paused", "")
    ]
    world = world.restarted()
    (change,) = changes(world, SHOP | {"limits": SHOP["limits"] | {"sync:customer": {"count": 2}}})
    assert change[-1] == "an operator has paused it"
    assert texts(world)["sync:customer"] == "2, paused"
    assert changes(world, {"action": "resume", "name": "sync:customer"}) == [
        ("changed", "limit", "sync:customer", "2, paused", "2", "")
    ]
    assert not world.restarted().broker.core.settings.values.get("override")


def test_what_an_operator_has_set_outlives_a_limit_that_is_removed(world: Durable) -> None:
    changes(world, SHOP)
    changes(world, {"action": "set", "name": "shopify", "value": {"count": 50, "per": 60}})
    changes(world, {"action": "apply", "origin": "shop.tasks", "prune": True})
    assert texts(world) == {"shopify": "50/m, burst 10"}
    changes(world, SHOP)
    assert texts(world)["shopify"] == "50/m, burst 10"
    changes(world, {"action": "apply", "origin": "shop.tasks", "prune": True})
    changes(world, {"action": "unset", "name": "shopify"})
    assert listed(world) == LimitList()


@pytest.mark.parametrize(
    ("request_", "kind", "fault"),
    [
        ({"action": "pause", "name": "shopfy"}, "unknown", "there is no limit shopfy; did you mean shopify?"),
        ({"action": "unset", "name": "zzz"}, "unknown", "there is no limit zzz; there are shopify, sync"),
        (
            {"action": "set", "name": "shopify", "value": {"count": 5}},
            "invalid",
            "shopify limits how many jobs start in a time (100/m, burst 10): give a rate such as 50/m",
        ),
        (
            {"action": "set", "name": "sync:customer", "value": {"count": 5, "per": 1}},
            "invalid",
            "sync:customer limits how many jobs run at once (1): give a number such as 20",
        ),
        (
            {"action": "set", "name": "sync:customer", "value": {"count": 5, "burst": 2}},
            "invalid",
            "burst is for a rate",
        ),
        (
            {"action": "set", "name": "shopify", "value": {"count": 5, "per": 1, "over": "drop"}},
            "invalid",
            "over is for the number of jobs that run at once",
        ),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(
    world: Durable, request_: Asked, kind: str, fault: str
) -> None:
    changes(world, SHOP)
    answer = ask(world, LIMIT, request_)
    assert answer["type"] == f"gearflow:{kind}"
    assert answer["message"].startswith(fault)


def test_lists_are_of_a_limit_or_of_a_function(world: Durable) -> None:
    changes(world, SHOP)
    found = listed(world, name="shopify")
    assert [limit.name for limit in found.limits] == ["shopify"]
    assert [function.function for function in found.functions] == ["sync"]
    found = listed(world, function="sync")
    assert [limit.name for limit in found.limits] == ["shopify", "sync:customer"]
    assert listed(world, function="mail") == LimitList()
    answer = ask(world, LIMITS, {"name": "shopfy"})
    assert answer["message"] == "there is no limit shopfy; did you mean shopify?"


# ------------------------------------------------------------------------------------------ policies


RETRIES: Asked = {"delays": [1, 2]}


def test_a_policy_is_set_shown_and_unset(world: Durable) -> None:
    world.worker(b"mail")
    answer = policies(world, action="set", function="mail", policy={"retries": RETRIES, "limit": 20})
    (shown,) = answer.policies
    assert (shown.function, shown.workers, shown.policy.limit) == ("mail", 1, 20)
    (shown,) = policies(world, action="set", function="mail", policy={"keep": 60, "limit": 5}).policies
    assert shown.policy.retries is not None
    assert (shown.policy.keep, shown.policy.limit) == (60, 5)
    assert policies(world, action="list").policies == (shown,)
    assert policies(world.restarted(), action="list").policies == (shown.model_copy(update={"workers": 0}),)
    (shown,) = policies(world, action="unset", function="mail", options=["retries", "limit"]).policies
    assert json.loads(shown.policy.to_wire()) == {"keep": 60}
    assert policies(world, action="unset", function="mail") == Policies()
    assert policies(world.restarted(), action="list") == Policies()


def test_the_limit_of_a_policy_is_listed_and_changed_with_the_policy(world: Durable) -> None:
    changes(world, SHOP)
    policies(world, action="set", function="sync", policy={"limit": 20})
    (limit,) = listed(world, name="sync:policy").limits
    assert (limit.text, limit.origin, limit.functions) == ("20", "policy", ("sync",))
    (function,) = listed(world, function="sync").functions
    assert [use.limit for use in function.limits] == ["shopify", "sync:customer", "sync:policy"]
    for action in ({"action": "set", "value": {"count": 5}}, {"action": "pause"}):
        answer = ask(world, LIMIT, action | {"name": "sync:policy"})
        assert answer["type"] == "gearflow:refused"
        assert "change that with gearflow:policy" in answer["message"]
    policies(world, action="unset", function="sync")
    assert "sync:policy" not in texts(world)


@pytest.mark.parametrize(
    ("request_", "kind", "fault"),
    [
        (
            {"action": "unset", "function": "mial"},
            "unknown",
            "there is no policy for mial; did you mean mail?",
        ),
        (
            {"action": "set", "function": "gearflow:x", "policy": {"limit": 1}},
            "invalid",
            "there can be no jobs of a function 'gearflow:x'",
        ),
        (
            {"action": "set", "function": "mail", "policy": {"limit": 0}},
            "invalid",
            "the request cannot be read: policy.limit: Input should be greater than or equal to 1",
        ),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(
    world: Durable, request_: Asked, kind: str, fault: str
) -> None:
    policies(world, action="set", function="mail", policy={"limit": 20})
    answer = ask(world, POLICY, request_)
    assert answer["type"] == f"gearflow:{kind}"
    assert answer["message"] == fault


# ----------------------------------------------------------------------------------------- the store


def test_what_could_not_be_written_does_not_hold() -> None:
    disk = Disk()
    world = Durable(disk)
    changes(world, SHOP)
    disk.full = True
    for function, request in (
        (LIMIT, {"action": "pause", "name": "shopify"}),
        (LIMIT, SHOP | {"limits": {"shopify": {"count": 7}}}),
        (POLICY, {"action": "set", "function": "mail", "policy": {"limit": 20}}),
    ):
        answer = ask(world, function, request)
        assert answer["type"] == "gearflow:store"
        assert "the disk is full" in answer["message"]
    disk.full = False
    assert texts(world) == {"shopify": "100/m, burst 10", "sync:customer": "1"}


def test_a_server_without_a_store_has_limits_as_long_as_it_runs() -> None:
    world = World()
    changes(world, SHOP)
    policies(world, action="set", function="mail", policy={"limit": 20})
    assert list(texts(world)) == ["mail:policy", "shopify", "sync:customer"]


def test_what_another_server_of_the_group_has_changed_holds_here_as_well(world: Durable) -> None:
    other = Durable()
    changes(other, SHOP)
    changes(other, {"action": "pause", "name": "shopify"})
    policies(other, action="set", function="mail", policy={"limit": 20})
    world.broker.reload_settings(other.disk.load().settings)
    assert (
        texts(world)
        == texts(other)
        == {
            "shopify": "100/m, burst 10, paused",
            "sync:customer": "1",
            "mail:policy": "20",
        }
    )
    world.broker.reload_settings(())
    assert listed(world) == LimitList()


@pytest.mark.parametrize("kind", ["limit", "override", "function"])
@pytest.mark.parametrize("value", [b"{", b"[]", b'{"declared": {"later": 1}, "value": {"later": 1}}'])
def test_a_setting_of_a_later_version_is_reported_and_ignored(
    world: Durable, kind: str, value: bytes
) -> None:
    world.broker.core.settings.apply(Setting(b"shopify", kind, value))
    (notice,) = world.broker.outgoing.notices
    assert notice.text.startswith("cannot use a setting, and ignores it")
    assert notice.subject == f"{kind} shopify".encode()
    assert listed(world) == LimitList()


# --------------------------------------------------------------------------------- what jobs wait for


def why(world: Durable, handle: bytes) -> str:
    return str(ask(world, api.INFO, {"handle": handle.decode()}).get("why", ""))


def test_a_job_says_why_it_waits(world: Durable) -> None:
    client = world.peer()
    first, second = client.submit(b"mail"), client.submit(b"mail")
    assert why(world, first) == "no worker offers its function"
    worker = world.worker(b"mail")
    assert why(world, first) == ""
    policies(world, action="set", function="mail", policy={"limit": 1})
    assert worker.grab() == first
    assert worker.grab() is None
    assert why(world, first) == ""
    assert why(world, second) == "mail:policy: 1 of 1 runs"
    (limit,) = listed(world, function="mail").limits
    assert (limit.running, limit.waiting) == (1, 1)
    ask(world, api.PAUSE, {"function": "mail"})
    assert why(world, second) == "its function is paused"
    ask(world, api.PAUSE, {"function": "mail", "paused": False})
    policies(world, action="unset", function="mail")
    assert worker.grab() == second


def test_a_job_says_when_a_rate_lets_it_start(world: Durable) -> None:
    rate: Asked = {
        "action": "apply",
        "origin": "shop.tasks",
        "limits": {"shopify": {"count": 100, "per": 60}},
        "functions": {"sync": {"limits": [{"limit": "shopify"}]}},
    }
    changes(world, rate)
    client, worker = world.peer(), world.worker(b"sync")
    first, second = client.submit(b"sync"), client.submit(b"sync")
    assert worker.grab() == first
    assert worker.grab() is None
    assert why(world, second) == "shopify: 100/m, next in 600 ms"
    (limit,) = listed(world, name="shopify").limits
    assert limit.next == pytest.approx(0.6)
    changes(world, {"action": "pause", "name": "shopify"})
    assert why(world, second) == "the limit shopify is paused"
    world.pass_time(10)
    assert worker.grab() is None
    changes(world, {"action": "resume", "name": "shopify"})
    assert worker.grab() == second


def test_limits_hold_for_a_function_that_becomes_known_again(world: Durable) -> None:
    policies(world, action="set", function="mail", policy={"limit": 1})
    assert world.broker.drop(b"mail")
    client, worker = world.peer(), world.worker(b"mail")
    first, _ = client.submit(b"mail"), client.submit(b"mail")
    assert worker.grab() == first
    assert worker.grab() is None
