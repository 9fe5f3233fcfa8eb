"""What crash tests share: a nest of servers."""

from collections.abc import Iterator

import pytest

from tests.crash.nest import Nest


@pytest.fixture(scope="session")
def nest() -> Iterator[Nest]:
    """Where servers come from."""
    with Nest() as nest:
        yield nest
