"""A small shop whose workers and jobs the tests of the dashboard look at.

``Shop`` runs its worker in a thread of this process. A "deployment" is an attribute that a task reads.
"""

import json
import linecache
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from types import FunctionType
from typing import Final, TypeVar, cast

import anyio
from anyio.from_thread import start_blocking_portal

from gearflow import Context, task
from gearflow.client import JobFailed, JobRequest, SubmitOptions, SyncClient
from gearflow.client.operate import workers
from gearflow.protocol.server_calls import JobInfo, RetryPlan
from gearflow.worker import Worker

F = TypeVar("F", bound=Callable[..., object])

DEPLOYED: Final = "/srv/shop/billing.py"
PATIENCE: Final = 20.0

TWICE: Final = RetryPlan(delays=(0.01,), jitter=False)


class Shop:
    """The state of the shop, which its tasks read, and a client that submits its jobs.

    Playwright runs an event loop in the thread of the tests, so they cannot call the tasks themselves.

    Attributes:
        is_broken: Whether charging a card fails, because of the last deployment.
        doors: Holds the tasks that wait. They end when it is set.
    """

    def __init__(self) -> None:
        self.is_broken = False
        self.doors = threading.Event()
        self.client: SyncClient

    def submit(self, function: str, **arguments: object) -> str:
        """Submit a background job of one of the tasks. Its handle."""
        return self.client.enqueue(order(function, **arguments)).handle

    def begin(self, handle: str) -> None:
        """Wait until a job runs. Pages that are not live show it so."""
        until = time.monotonic() + PATIENCE
        while (state := self.client.info(handle).state) != "running":
            assert time.monotonic() < until, f"it is {state}"
            time.sleep(0.01)

    def end(self, handle: str) -> JobInfo:
        """Wait for the end of a job, whatever it is."""
        with suppress(JobFailed, CancelledError):
            self.client.result(handle, timeout=20)
        return self.client.info(handle)


def order(function: str, **arguments: object) -> JobRequest:
    """A job of one of the tasks. Those of a shop are tried twice."""
    return JobRequest(function, json.dumps(arguments).encode(), options=SubmitOptions(retries=TWICE))


SHOP: Final = Shop()


def deployed(function: F) -> F:
    """Have tracebacks show the file of a deployment, so that pictures do not depend on the machine."""
    changed = cast(FunctionType, function)
    code = changed.__code__
    linecache.cache[DEPLOYED] = (0, None, linecache.getlines(code.co_filename), DEPLOYED)
    changed.__code__ = code.replace(co_filename=DEPLOYED)
    return function


@task(name="billing.charge")
@deployed
async def charge(customer: int, card: str) -> str:
    """Charges a card, unless the deployment is broken."""
    if SHOP.is_broken:
        raise KeyError("currency")
    return f"customer {customer} paid with {card}"


@task(name="video.encode")
async def encode(context: Context, name: str, frames: int) -> str:
    """Encodes a video until the doors open."""
    done = frames * 2 // 5
    while not SHOP.doors.is_set():
        context.progress(done, frames, f"frame {done} of {name}")
        done = min(done + 1, frames)
        await anyio.sleep(0.2)
    return name


@task(name="story.tell")
async def tell(words: list[str]) -> AsyncIterator[str]:
    """Tells a story, word by word, and goes on until the doors open."""
    for word in words:
        yield word
    while not SHOP.doors.is_set():  # noqa: ASYNC110  (another thread sets it)
        await anyio.sleep(0.1)
    yield "the end"


@task(name="report.build")
def build(number: int) -> dict[str, int]:
    """A task that just works."""
    return {"number": number, "pages": 12}


@task(name="shop.fail")
def fail(text: str, code: int = 1) -> None:
    """Fails at once."""
    raise RuntimeError(f"{text} ({code})")


def _is_known(client: SyncClient, name: str, slots: int) -> bool:
    """Whether the server knows all of a worker that pages show."""
    return any(
        (each.client_id, each.slots) == (name, slots) for each in client.run(lambda asked: workers(asked))
    )


@contextmanager
def open_shop(*addresses: str, name: str = "shop-1", concurrency: int = 8) -> Generator[Shop]:
    """Run a worker for the shop's tasks, in a thread of its own. The first server knows it."""
    SHOP.is_broken = False
    SHOP.doors = threading.Event()
    worker = Worker(
        [charge, encode, tell, build, fail], servers=list(addresses), client_id=name, concurrency=concurrency
    )
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(worker),
        SyncClient(addresses[:1]) as SHOP.client,
    ):
        until = time.monotonic() + PATIENCE
        while not _is_known(SHOP.client, name, concurrency):
            assert time.monotonic() < until, f"no worker {name} has come"
            time.sleep(0.01)
        try:
            yield SHOP
        finally:
            SHOP.doors.set()
