"""What type checkers say of limits: this file is checked, not run. Wrong uses are marked as in
``check_tasks.py``."""

from collections.abc import Iterator
from datetime import timedelta
from typing import assert_type

from pydantic import BaseModel

from gearflow import Concurrency, Context, Rate, task
from gearflow.client import Client, SyncClient
from gearflow.protocol.limits import LimitList


class Order(BaseModel):
    customer: str
    tenant: str


def tenant_of(order: Order) -> str:
    return order.tenant


SHOPIFY = Rate(100, per="1m", burst=10, name="shopify")


@task(limits=[Concurrency(20), Concurrency(1, key="/customer"), SHOPIFY], fair="/tenant")
async def sync(order: Order) -> str:
    return order.customer


@task(limits=(SHOPIFY,), fair=tenant_of, retries=3)
def check(ctx: Context, order: Order) -> bool:
    return True


@task(limits=[Concurrency(1, key=tenant_of, over="keep-newest")])
def stream(order: Order) -> Iterator[int]:
    yield 1


@task(limits=None, fair=None)
def free(number: int) -> int:
    return number


async def right() -> None:
    order = Order(customer="ada", tenant="x")
    assert_type(await sync.acall(order), str)
    assert_type(check.call(order), bool)
    assert_type(next(stream.stream(order)), int)
    assert_type(free.call(3), int)
    assert_type(sync.limits, tuple[Concurrency | Rate, ...])
    assert_type(SHOPIFY.seconds, float)
    Rate(1, per=timedelta(hours=1))
    async with Client() as client:
        await client.limits.set("shopify", "50/m", burst=2)
        assert_type(await client.limits.list(), LimitList)
    with SyncClient() as blocking:
        blocking.limits.set("shopify", 20, over="drop")
        assert_type(blocking.limits.list("shopify"), LimitList)


def wrong() -> None:
    task(limits=Concurrency(1))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    task(limits=[20])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    task(fair=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    task(redact={"card"}, limits=[SHOPIFY])
    task(redact="card")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    Concurrency("20")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Concurrency(1, over="newest")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Concurrency(1, "/customer")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Rate(1, burst=0.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    SHOPIFY.count = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    sync.submit("ada")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
