"""A broker with a client, for each test."""

import pytest

from tests.broker.harness import Peer, World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World) -> Peer:
    return world.peer("client")
