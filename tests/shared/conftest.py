"""A group of three servers on one PostgreSQL. Tests kill, stop and cut them off in turn."""

from collections.abc import Iterator

import pytest

from tests.conftest import own_postgres
from tests.shared.group import Group


@pytest.fixture(scope="session")
def _one_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    with own_postgres() as cluster, cluster.database() as database:
        directory = tmp_path_factory.mktemp("group")
        with Group(directory, database, servers=3, workers=2).running() as group:
            yield group


@pytest.fixture
def group(_one_group: Group) -> Iterator[Group]:
    """Three servers, each with a proxy before PostgreSQL, and two workers. All is well before each test.

    PostgreSQL is theirs alone. What a test ends or cuts is started or healed after it.
    """
    _one_group.recover()
    yield _one_group
    _one_group.recover()
    complaints = _one_group.complaints()
    assert not complaints, "\n".join(complaints)
