"""What tests of faults share: a thread for the proxies, and a nest of servers."""

from collections.abc import Iterator

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from tests.crash.conftest import nest as nest


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    """The event loop of the proxies."""
    with start_blocking_portal() as portal:
        yield portal
