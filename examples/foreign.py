"""A function that a program in another language runs, called with types; and the other way round.

    python examples/foreign.py        (needs the C tools: apt install gearman-tools)

``shout`` is served by ``gearman -w``, which pipes each payload through ``tr``: gearflow knows its signature
only. ``word_count`` is a task of ours, called by ``gearman -f``. Payloads are plain on the wire (the text
itself, JSON), so neither side knows what the other is written in.
"""

import asyncio
import shutil
import sys
from asyncio.subprocess import PIPE

from gearflow import JobServer, connect, task
from gearflow.worker import Worker


@task(name="shout", foreign=True)
def shout(text: str) -> str:
    """Upper case; somebody else's, so there is no body."""
    raise NotImplementedError


@task(name="word_count")
def word_count(text: str) -> int:
    """How many words there are."""
    return len(text.split())


async def main(gearman: str) -> None:
    """Call them, be called by them."""
    async with JobServer(port=0) as server, connect(server.address):
        at = [gearman, "-h", server.host, "-p", str(server.port)]
        theirs = await asyncio.create_subprocess_exec(*at, "-w", "-f", "shout", "tr", "a-z", "A-Z")
        try:
            print(await shout.acall("is anybody there?"))
        finally:
            theirs.kill()
            await theirs.wait()

        async with Worker([word_count], servers=[server.address]):
            ours = await asyncio.create_subprocess_exec(
                *at, "-f", "word_count", "is anybody there?", stdout=PIPE
            )
            print((await ours.communicate())[0].decode())


if __name__ == "__main__":
    tool = shutil.which("gearman")
    if tool is None:
        sys.exit("this needs the program 'gearman': apt install gearman-tools")
    asyncio.run(main(tool))
