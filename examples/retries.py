"""What becomes of a job whose task raises: it is tried again, put off, or given up.

    python examples/retries.py

``fetch`` is tried again after an ``OSError``, and after nothing else. ``publish`` says itself what is to
become of its job: ``Snooze`` puts it off without counting the run, ``TryAgain`` asks for another attempt,
``Discard`` ends it although attempts are left. Each job keeps its handle throughout.
"""

import asyncio
import logging

from gearflow import Context, Discard, JobServer, Retry, Snooze, TaskFailed, TryAgain, connect, task
from gearflow.worker import Worker

SOON = 0.05  # seconds
seen: list[str] = []  # what publish was called for


@task(retries=Retry(4, on=OSError, backoff=SOON))
async def fetch(ctx: Context, url: str) -> str:
    """The page at an address; the server behind it is not the best."""
    print(f"  attempt {ctx.attempt}")
    if ctx.attempt < 3:
        raise ConnectionRefusedError("nobody listens")
    if url == "nonsense":
        raise ValueError("this is no address")
    return f"the page at {url}"


@task
async def publish(ctx: Context, article: str) -> str:
    """Put an article online."""
    seen.append(article)
    print(f"  attempt {ctx.attempt}")
    if article == "withdrawn":
        raise Discard("the author took it back")
    if seen.count(article) == 1:
        raise Snooze(SOON)  # it is too early
    if seen.count(article) == 2:
        raise TryAgain(after=SOON)
    return f"{article} is online"


async def main() -> None:
    """Run jobs of all kinds to their ends."""
    logging.getLogger("gearflow.worker").setLevel(logging.CRITICAL)  # it would tell of the failures, too
    print("fetch:", fetch.retries)
    async with (
        JobServer(port=0) as server,
        Worker([fetch, publish], servers=[server.address]),
        connect(server.address),
    ):
        print(await fetch.acall("http://a/"))

        try:
            await fetch.acall("nonsense")
        except ValueError as error:
            print("not tried again:", error)

        ref = await publish.abackground("news")
        print(await ref.aresult(timeout=30))

        ref = await publish.abackground("withdrawn")
        try:
            await ref.aresult(timeout=30)
        except TaskFailed as error:
            print("given up:", error.message)


if __name__ == "__main__":
    asyncio.run(main())
