import asyncio

from gearflow import JobServer, connect, task
from gearflow.worker import Worker


@task
def add(a: int, b: int = 1) -> int:
    return a + b


async def main() -> None:
    async with JobServer(port=0) as server, Worker([add], servers=[server.address]), connect(server.address):
        print(await add.acall(1, b=2))  # 3, from the worker; add.call(1, b=2) where no event loop runs
        print(await add.amap([1, 2, 3]))  # [2, 3, 4], three jobs at once


asyncio.run(main())
