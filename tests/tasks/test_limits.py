"""Limits of tasks: what may be declared, which keys there are, and what the caller sends."""

import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, Field

from gearflow import Concurrency, Context, Rate, TaskDefinitionError, task
from gearflow.client import Client, SubmitOptions
from gearflow.client.operate import change_limits
from gearflow.errors import UnsupportedByServer
from gearflow.protocol import limits as wire
from gearflow.protocol.server_calls import SubmitRequest
from gearflow.tasks import limits as module
from gearflow.tasks.declared_limits import apply_request
from tests.tasks.conftest import Serve


class Customer(BaseModel):
    id: int
    tags: list[str] = []


class Order(BaseModel):
    customer: str
    tenant_name: str = Field(default="", alias="tenant")
    buyer: Customer | None = None
    prices: dict[str, float] = {}


def customer_of(order: Order) -> str:
    return order.customer


def customer_in(order: Order, shop: str) -> str:
    return f"{order.customer}@{shop}"


def length_of_shop(order: Order, shop: str) -> int:
    return len(shop)


def text_of(text: str) -> str | None:
    return text or None


def listed(number: int) -> list[int]:
    return [number]


def parity(number: int) -> str | None:
    return "even" if number % 2 == 0 else None


ORDER = Order(customer="ada", tenant="x", buyer=Customer(id=7))


# --------------------------------------------------------------------------------------- what is a limit


def test_the_bounds_are_those_of_the_wire() -> None:
    assert (module.MOST, module.LONGEST, module.SENT) == (wire.MOST, wire.LONGEST, wire.SENT)


def test_the_time_of_a_rate_is_a_text_seconds_or_a_timedelta() -> None:
    given: list[Any] = ["1m", 60, 60.0, timedelta(minutes=1), "30s30s"]
    assert {Rate(100, per=per) for per in given} == {Rate(100)}
    assert Rate(1, per="1h30m").seconds == 5400


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Concurrency, {"count": 0}, r"Concurrency\(count=0\): it is at least 1; .*'gearflow pause'"),
        (Concurrency, {"count": "3"}, "whole number of jobs"),
        (Concurrency, {"count": True}, "whole number of jobs"),
        (Concurrency, {"count": 10**10}, "1,000,000,000 is the most"),
        (Concurrency, {"count": 1, "over": "newest"}, "did you mean 'keep-newest'"),
        (Concurrency, {"count": 1, "name": "a b"}, "printable text without spaces"),
        (Concurrency, {"count": 1, "name": 3}, "it is a text"),
        (Concurrency, {"count": 1, "key": 3}, "a JSON pointer into the payload.* or a function"),
        (Concurrency, {"count": 1, "key": Order}, "a JSON pointer into the payload.* or a function"),
        (Concurrency, {"count": 1, "key": "order.customer"}, "write '/order/customer'"),
        (Concurrency, {"count": 1, "key": "/"}, "write '/customer'"),
        (Concurrency, {"count": 1, "key": "/a~b"}, "write '~0' for '~'"),
        (Rate, {"count": 1, "per": "1x"}, "a text such as '30s'"),
        (Rate, {"count": 1, "per": 0}, "more than 0, and at most a year"),
        (Rate, {"count": 1, "per": "366d"}, "more than 0, and at most a year"),
        (Rate, {"count": 1, "burst": 0}, r"Rate\(burst=0\): it is at least 1"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_where_it_is_written(
    kind: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        kind(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limits": Concurrency(1)}, r"it is a list; write limits=\[\.\.\.\]"),
        ({"limits": [20]}, r"write Concurrency\(20\)"),
        ({"limits": "20"}, "a list of Concurrency and Rate"),
        ({"fair": "tenant"}, r"@task\(fair='tenant'\).*write '/tenant'"),
    ],
)
def test_options_that_are_no_limits_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        task(**options)


def test_a_limit_without_a_name_has_that_of_its_function_kind_and_key() -> None:
    limits: list[Concurrency | Rate] = [
        Concurrency(20),
        Concurrency(1, key="/customer"),
        Concurrency(1, key=customer_of),
        Rate(5),
        Rate(5, name="shopify"),
    ]

    @task(name="limited", limits=limits)
    def of_five(order: Order) -> None: ...

    names = [limit.name for limit in of_five.limits]
    assert names == [
        "limited:concurrency",
        "limited:concurrency:/customer",
        "limited:concurrency:*",
        "limited:rate",
        "shopify",
    ]


def test_two_limits_of_a_task_do_not_share_a_name() -> None:
    with pytest.raises(TaskDefinitionError, match=r"two limits have the name 'sync:rate'.*with name="):

        @task(name="sync", limits=[Rate(1), Rate(1000, per="1h")])
        def sync() -> None: ...


# ------------------------------------------------------------------------------------------ where a key is


@pytest.mark.parametrize("key", ["/customer", "/tenant", "/buyer/id", "/buyer/tags/0", "/prices/eur"])
def test_a_model_that_is_the_only_parameter_is_the_payload_itself(key: str) -> None:
    @task(limits=[Concurrency(1, key=key)])
    def of_model(ctx: Context, order: Order) -> None: ...

    place: Any = json.loads(of_model.prepare((ORDER,), {}).workload)
    for part in key[1:].split("/")[:2]:
        if part not in ("tags", "prices", "eur"):
            place = place[part]  # so it is there on the wire


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("/custmer", "did you mean '/customer'"),
        ("/order/customer", "did you mean '/customer'"),
        ("/tenant_name", "did you mean '/tenant'"),
        ("/id", "did you mean '/buyer/id'"),
        ("/buyer", "an object or a list.*did you mean '/buyer/id'"),
        ("/customer/x", "did you mean '/customer'"),
        ("/zzz", "there are '/customer', '/tenant', '/buyer/id'"),
    ],
)
def test_a_key_that_the_payload_does_not_have_is_refused_with_the_nearest(key: str, remedy: str) -> None:
    with pytest.raises(TaskDefinitionError, match=remedy):

        @task(limits=[Rate(1, key=key)])
        def sync(order: Order) -> None: ...

    with pytest.raises(TaskDefinitionError, match=remedy):

        @task(fair=key)
        def fairly(order: Order) -> None: ...


def test_several_parameters_are_fields_of_the_payload() -> None:
    @task(limits=[Concurrency(1, key="/order/customer"), Rate(1, key="/shop")])
    def of_two(order: Order, shop: str = "main") -> None: ...

    with pytest.raises(TaskDefinitionError, match="did you mean '/order/customer'"):

        @task(limits=[Concurrency(1, key="/customer")])
        def wrong(order: Order, shop: str = "main") -> None: ...


def test_a_payload_without_fields_has_no_key() -> None:
    with pytest.raises(TaskDefinitionError, match=r"the payload is the str itself.*'lambda text: \.\.\.'"):

        @task(limits=[Concurrency(1, key="/text")])
        def shout(text: str) -> str:
            return text

    with pytest.raises(TaskDefinitionError, match="the task has no parameters"):

        @task(limits=[Concurrency(1, key="/text")])
        def nothing() -> None: ...


@task(limits=[Concurrency(1, key="/nmae")])
def late(item: "Below") -> None: ...


class Below(BaseModel):
    name: str


def test_a_key_in_a_model_that_is_defined_below_is_checked_with_the_types() -> None:
    with pytest.raises(TaskDefinitionError, match="did you mean '/name'"):
        late.check()


# ----------------------------------------------------------------------------------- what the caller sends


def options_of(made: Any, *args: Any, **kwargs: Any) -> SubmitOptions:
    options: SubmitOptions = made.prepare_background(args, kwargs).options
    assert options == made.prepare(args, kwargs).options
    return options


def test_a_key_that_is_a_function_is_sent_by_the_caller() -> None:
    limits: list[Concurrency | Rate] = [Concurrency(1, key=customer_in), Rate(9, key="/shop")]

    @task(name="sync", limits=limits, fair=length_of_shop)
    def sync(ctx: Context, order: Order, *, shop: str = "main") -> None: ...

    expected = SubmitOptions(limited=True, keys=(("sync:concurrency:*", "ada@main"),), group="4")
    assert options_of(sync, ORDER) == options_of(sync, order=ORDER, shop="main") == expected
    request = SubmitRequest(function="sync", **expected.for_server())
    assert (request.keys, request.group) == ({"sync:concurrency:*": "ada@main"}, "4")


def test_none_is_no_key_and_a_long_key_is_hashed() -> None:
    @task(limits=[Concurrency(1, key=text_of)])
    def shout(text: str) -> None: ...

    assert options_of(shout, "").keys == ()
    ((_, key),) = options_of(shout, "x" * 256).keys
    assert len(key) == 40
    assert options_of(shout, "y" * 256).keys != options_of(shout, "x" * 256).keys


def test_a_function_that_returns_no_key_is_named() -> None:
    @task(limits=[Concurrency(1, key=listed)])
    def wrong_key(number: int) -> None: ...

    with pytest.raises(ValueError, match=r"given as key= returned \[3\]; a key is a text"):
        wrong_key.prepare((3,), {})


def test_keys_that_the_server_reads_cost_a_caller_no_option() -> None:
    @task(limits=[Concurrency(1, key="/customer")], fair="/tenant")
    def pointed(order: Order) -> None: ...

    assert options_of(pointed, ORDER) == SubmitOptions(limited=True)
    assert options_of(pointed, ORDER).is_plain


def test_items_of_a_chunk_have_no_keys_of_their_own() -> None:
    @task(limits=[Concurrency(1, key="/number")])
    def keyed(number: int) -> int:
        return number

    with pytest.raises(ValueError, match=r"chunk=: tests.*keyed has limits with keys"):
        keyed.map([1, 2], chunk=2)


async def test_only_gearflows_server_takes_a_task_with_limits(
    bundled_serve: Serve, gearmand: str, function: str
) -> None:
    @task(name=function, limits=[Concurrency(1, key=parity), Rate(1000, per=1)])
    async def square(number: int) -> int:
        return number * number

    async with bundled_serve(square):
        assert await square.acall(4) == 16
        assert await (await square.abackground(3)).aresult() == 9

    from gearflow.client import connect

    async with connect(gearmand):
        with pytest.raises(UnsupportedByServer, match="cannot honour limits= and fair="):
            await square.acall(4)
        with pytest.raises(UnsupportedByServer, match="cannot honour limits= and fair="):
            await square.abackground(4)


# ------------------------------------------------------------------------------------------- on a server


@dataclass
class Gate:
    """Runs wait here until they may end, and their names are known meanwhile."""

    inside: set[str] = field(default_factory=set[str])
    changed: anyio.Event = field(default_factory=anyio.Event)
    opened: anyio.Event = field(default_factory=anyio.Event)

    async def through(self, name: str) -> str:
        self.inside.add(name)
        self.changed.set()
        await self.opened.wait()
        return name

    async def until(self, *names: str) -> None:
        with anyio.fail_after(20):
            while self.inside != set(names):
                await self.changed.wait()
                self.changed = anyio.Event()


gates: dict[str, Gate] = {}


def first_letter(name: list[str], gate: str) -> str:
    return name[0]


def apply(client: Client, *tasks: Any) -> Coroutine[Any, Any, object]:
    return change_limits(client, apply_request(tasks, "tests"))


@pytest.mark.parametrize("key", ["/name/0", first_letter], ids=["pointer", "sent"])
async def test_a_key_has_a_limit_of_its_own(bundled_serve: Serve, fresh: Callable[[], str], key: Any) -> None:
    gate = fresh()

    @task(name=fresh(), limits=[Concurrency(1, key=key)])
    async def listed(name: list[str], gate: str) -> str:
        return await gates[gate].through("".join(name))

    gates[gate] = Gate()
    async with bundled_serve(listed) as client:
        await apply(client, listed)
        refs = [await listed.abackground(list(name), gate) for name in ("a1", "b1", "a2")]
        await gates[gate].until("a1", "b1")
        info = await refs[2].ainfo()
        assert info.state == "waiting"
        assert "(a): 1 of 1 runs" in info.why
        gates[gate].opened.set()
        assert [await ref.aresult(timeout=20) for ref in refs] == ["a1", "b1", "a2"]


async def test_a_named_limit_is_shared_and_changed_at_work(
    bundled_serve: Serve, fresh: Callable[[], str]
) -> None:
    gate, name = fresh(), fresh()
    shared = Concurrency(1, name=name)

    @task(name=fresh(), limits=[shared])
    async def order(name: str, gate: str) -> str:
        return await gates[gate].through(name)

    @task(name=fresh(), limits=[shared])
    async def invoice(name: str, gate: str) -> str:
        return await gates[gate].through(name)

    gates[gate] = Gate()
    async with bundled_serve(order, invoice) as client:
        await apply(client, order, invoice)
        first = await order.abackground("first", gate)
        await gates[gate].until("first")
        second = await invoice.abackground("second", gate)
        assert (await second.ainfo()).why == f"{name}: 1 of 1 runs"
        await client.limits.set(name, 2)
        await gates[gate].until("first", "second")
        await client.limits.pause(name)
        gates[gate].opened.set()
        assert [await first.aresult(timeout=20), await second.aresult(timeout=20)] == ["first", "second"]
        third = await order.abackground("third", gate)
        assert "paused" in (await third.ainfo()).why
        await client.limits.resume(name)
        assert await third.aresult(timeout=20) == "third"
