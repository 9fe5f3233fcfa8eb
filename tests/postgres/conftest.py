"""Stores of several servers in one database. Each test has a schema of its own in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.postgres.adapter import SyncStore
from tests.postgres.cluster import Cluster, Database

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def one_database(postgres: Cluster) -> Iterator[Database]:
    """The database of all tests of a module."""
    with postgres.database() as database:
        yield database


@pytest.fixture
def schema() -> str:
    """A name that no other test has."""
    return f"Schema {next(_numbers)}"


@pytest.fixture
def make(one_database: Database, schema: str) -> Iterator[Callable[..., SyncStore]]:
    """``make(timeout=1.0)``: a server's store, open, with a lot of its own; closed after the test."""
    opened: list[SyncStore] = []

    def make_one(**fields: Any) -> SyncStore:
        fields.setdefault("schema", schema)
        store = SyncStore(one_database, **fields)
        opened.append(store)
        store.open()
        return store

    yield make_one
    for store in opened:
        store.close()


@pytest.fixture
def one(make: Callable[..., SyncStore]) -> SyncStore:
    """A server's store."""
    return make()


@pytest.fixture
def other(one: SyncStore, make: Callable[..., SyncStore]) -> SyncStore:
    """Another server's."""
    return make()
