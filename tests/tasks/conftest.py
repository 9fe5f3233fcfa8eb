"""Workers for the tests of verbs: in the test's own event loop, or in a thread."""

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from typing import Any, TypeAlias

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from gearflow.client import Client, SyncClient, connect
from gearflow.tasks import Task
from gearflow.worker import Worker

Serve: TypeAlias = Callable[..., AbstractAsyncContextManager[Client]]
ServeSync: TypeAlias = Callable[..., AbstractContextManager[SyncClient]]


@pytest.fixture
def serve(any_server: str) -> Serve:
    """``async with serve(add, resize) as client``: a worker for them, and the client that calls use."""
    return _serving(any_server)


@pytest.fixture
def bundled_serve(bundled: str) -> Serve:
    """The same on gearflow's server."""
    return _serving(bundled)


def _serving(server: str) -> Serve:
    @asynccontextmanager
    async def serving(*tasks: Task[..., Any], concurrency: int = 10) -> AsyncGenerator[Client]:
        worker = Worker(tasks, servers=[server], concurrency=concurrency, drain=0)
        with anyio.fail_after(60):
            async with worker, connect(server) as client:
                await worker.ready.wait()
                yield client

    return serving


@pytest.fixture
def serve_sync(any_server: str) -> ServeSync:
    """``with serve_sync(add) as client``: the same for code without an event loop."""
    return _serving_sync(any_server)


@pytest.fixture
def bundled_serve_sync(bundled: str) -> ServeSync:
    """The same on gearflow's server."""
    return _serving_sync(bundled)


def _serving_sync(server: str) -> ServeSync:
    @contextmanager
    def serving(*tasks: Task[..., Any]) -> Generator[SyncClient]:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal())
            worker = portal.call(lambda: Worker(tasks, servers=[server], drain=0))
            stack.enter_context(portal.wrap_async_context_manager(worker))
            portal.call(worker.ready.wait)
            yield stack.enter_context(connect(server))

    return serving
