"""How many jobs run at once: in all, for each customer, and after an operator has changed it.

    python examples/limits.py

The worker has ten slots, and the server gives it two jobs at a time, never two of the same customer. The
limits are written to the server by ``gearflow limit apply``, as in a deployment.
"""

import asyncio
import subprocess
import sys
from collections import Counter
from pathlib import Path

from pydantic import BaseModel

from gearflow import Concurrency, JobServer, Rate, connect, task
from gearflow.worker import Worker

SHOPIFY = Rate(6000, per="1m", burst=100, name="shopify")

running: Counter[str] = Counter()
most: Counter[str] = Counter()


class Order(BaseModel):
    number: int
    customer: str


@task(limits=[Concurrency(2), Concurrency(1, key="/customer"), SHOPIFY], fair="/customer")
async def sync(order: Order) -> int:
    """Send an order to the shop."""
    running.update([order.customer, "all"])
    most[order.customer] = max(most[order.customer], running[order.customer])
    most["all"] = max(most["all"], running["all"])
    await asyncio.sleep(0.01)
    running.subtract([order.customer, "all"])
    return order.number


def apply(address: str) -> None:
    """What a deployment does."""
    command = [sys.executable, "-m", "gearflow_cli", "limit", "apply", "limits", "-s", address]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    print("\n".join(done.stdout.splitlines()[1:]))


async def main() -> None:
    """Run orders of three customers under the limits of the code, then under those of an operator."""
    orders = [Order(number=number, customer=f"customer {number % 3}") for number in range(30)]
    async with JobServer(port=0) as server, connect(server.address) as client:
        await asyncio.to_thread(apply, server.address)
        async with Worker([sync], servers=[server.address], concurrency=10):
            print(f"{sum([1 async for _ in sync.amap(orders)])} orders")
            print(f"at once: {most.pop('all')}, of one customer: {max(most.values())}")

            await client.limits.set("limits.sync:concurrency", 1)
            most.clear()
            print(f"{sum([1 async for _ in sync.amap(orders)])} orders")
            print(f"at once: {most['all']}")

            await client.limits.pause("shopify")
            ref = await sync.abackground(orders[0])
            print(f"{(await ref.ainfo()).state}: {(await ref.ainfo()).why}")
            await client.limits.resume("shopify")
            print(f"order {await ref.aresult(timeout=30)}")


if __name__ == "__main__":
    asyncio.run(main())
