"""What tests of every store share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gearflow.broker.storage import Store
from tests.stores.values import STORES, jobs_of


@pytest.fixture(params=STORES)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """``make()`` or ``make(keep_bytes=1000)``: a store, loaded, with nothing in it; closed after the test."""
    opened: list[Store] = []

    def make_one(keep_bytes: int | None = None) -> Store:
        store = STORES[request.param](tmp_path, keep_bytes)
        opened.append(store)
        assert jobs_of(store.load()) == []
        return store

    yield make_one
    for store in opened:
        store.close()


@pytest.fixture
def store(make: Callable[..., Store]) -> Store:
    return make()
