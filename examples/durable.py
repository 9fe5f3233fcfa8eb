"""A background job outlives its server, and so does its result.

    python examples/durable.py

Three servers in a row have the same folder for their jobs. The first one only accepts a job, and ends. The
second one finds it in the folder, and a worker runs it. The third one is asked for the result, by somebody
who knows no more of the job than its handle. (``gearflow server`` does the same with a process for each: it
may as well be killed. Here they only stop, so that one program can show it all.)
"""

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

from gearflow import JobServer, connect, task
from gearflow.worker import Worker


@task
def letters(word: str) -> int:
    """How many letters a word has."""
    return len(word)


async def main(data: Path) -> None:
    """Submit to one server, work for the next, ask the last."""
    async with JobServer(port=0, data=data) as server, connect(server.address):
        handle = (await letters.abackground("durable")).handle
        print("the first server has accepted a job")

    async with JobServer(port=0, data=data) as server, connect(server.address):
        print("the second has found", server.restored)
        async with Worker([letters], servers=[server.address]):
            print("its result:", await letters.ref(handle).aresult(timeout=30))

    async with JobServer(port=0, data=data) as server, connect(server.address):
        print("the third has found", server.restored)
        print("the result is still there:", await letters.ref(handle).aresult(timeout=0))


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))
