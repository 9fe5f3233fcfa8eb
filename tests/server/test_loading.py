"""How far a server is that reads its file, as other threads see it."""

import threading
from itertools import pairwise
from pathlib import Path

from gearflow.broker.storage import Contents
from gearflow.server import JobServer
from gearflow.server.loading import Loading
from gearflow.stores import SqliteStore
from tests.server.filled import filled, jobs

MANY = 20_000


def test_the_share_grows_with_each_job_up_to_all() -> None:
    loading = Loading()
    assert loading.share is None
    seen: list[float] = []
    with loading.going_on():
        assert loading.share == 0
        for _ in loading.followed(Contents(b"name", 11, jobs(10), expected=10)).jobs:
            assert loading.share is not None
            seen.append(loading.share)
        assert loading.share == 1
    assert loading.share is None
    assert all(one < two for one, two in pairwise(seen))
    assert seen[0] < 0.2 < 0.8 < seen[-1]


def test_a_store_that_does_not_know_how_many_jobs_it_has_shows_no_progress() -> None:
    loading = Loading()
    with loading.going_on():
        shares = {loading.share for _ in loading.followed(Contents(b"name", 11, jobs(10))).jobs}
        assert len(shares) == 1


def test_a_file_knows_how_many_jobs_it_has(tmp_path: Path) -> None:
    store = SqliteStore(filled(tmp_path, 7) / "gearflow.db")
    contents = store.load()
    assert contents.expected == len(list(contents.jobs)) == 7
    store.close()


def test_other_threads_see_how_much_of_a_file_is_read(tmp_path: Path) -> None:
    server = JobServer(port=0, data=filled(tmp_path, MANY))
    seen: list[float] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            share = server.loading
            if share is not None and (not seen or share != seen[-1]):
                seen.append(share)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        assert not server.is_serving
        with server:
            over.set()
            watcher.join()
            assert server.is_serving
            assert server.loading is None
            assert server.restored == MANY
    finally:
        over.set()
    assert not server.is_serving
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert any(0.1 < share < 1 for share in seen)
