"""The n-th write of the store fails, or the server dies before, in or after it: for each n of a short story.

Each story runs on one server, step by step, and ends with SIGKILL; then the next server is asked.
"""

from __future__ import annotations

import re
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

from gearflow.protocol import server_calls
from gearflow.server.settings import FILE_NAME
from tests.crash.caller import Call, Caller, Gone, attached, detached, plain
from tests.crash.faults import MARK, Fault, How
from tests.crash.ledger import Ledger
from tests.crash.nest import TIMEOUT, Nest, NotStarted
from tests.crash.test_matrix import wait_until_idle
from tests.crash.worker import Gone as WorkerGone
from tests.crash.worker import Worker

_DEATHS: Final[tuple[How, ...]] = ("killed before", "killed within", "killed after")
_LEFT: Final = "SELECT count(*) FROM jobs WHERE dead = 0"
_REFUSAL: Final = re.compile(
    rb"the job could not be stored: .*planned|no number for the job: the store cannot"
)


class Closed(Exception):
    """The server takes no background jobs any more."""


class Story:
    """What happens on one server, one thing after another; it tells the ledger."""

    def __init__(self, ledger: Ledger, data: Path, fault: Fault) -> None:
        self._ledger = ledger
        self._data = data
        self._refused_once_is_for_ever = fault.at == "sync"
        self.cancelled: list[str] = []  # handles of jobs whose cancellation was confirmed

    def tell(self, caller: Caller) -> None:
        """From the first submission to the last.

        Raises:
            Gone, ConnectionError: The server has died.
            Closed: It goes on without background jobs.
        """
        self._caller = caller
        self._all_done(lambda again: [plain(f"a{again}")])
        self._all_done(
            lambda again: [plain(f"{do}{again}", do) for do in ("fail", "raise", "retry", "leave", "tell")]
        )
        self._all_done(
            lambda again: [
                detached(f"unique{again}", unique=f"u{again}", keep=600),
                detached(f"unkept{again}", keep=0),
                detached(f"delayed{again}", delay=0.01),
                plain(f"large{again}", size=5000),
            ]
        )
        self._all_done(
            lambda again: [
                attached(f"attached{again}"),
                attached(f"promoted{again}", unique=f"p{again}"),
                plain(f"joins{again}", unique=f"p{again}", shared=True),
            ]
        )
        self._cancel()
        self._replay()

    def _all_done(self, calls: Callable[[str], Sequence[Call]]) -> None:
        """Submit, and submit again what is refused; then wait for the end of all."""
        caller, wanted = self._caller, calls("")
        deadline = time.monotonic() + TIMEOUT
        for again in count():
            caller.errors.clear()
            caller.faults.clear()
            before = set(self._ledger.refused)
            caller.call(wanted)
            refused = self._ledger.refused - before
            if not refused:
                caller.drain(self._ledger.promises, TIMEOUT)
                return
            assert all(_REFUSAL.search(error.text) for error in caller.errors), caller.errors
            assert all(fault["type"] == "gearflow:store" for fault in caller.faults), caller.faults
            if self._refused_once_is_for_ever:
                raise Closed
            places = [place for place, call in enumerate(wanted) if call.key in refused]
            wanted = [calls(f"-{again}")[place] for place in places]
            assert time.monotonic() < deadline, f"{wanted} was refused again and again"

    def _cancel(self) -> None:
        request = server_calls.SubmitRequest(function="nobody", detached=True)
        handle = self._insist(server_calls.SUBMIT, request)["handle"]
        answer = self._insist(
            server_calls.CANCEL, server_calls.CancelRequest(handle=handle), "cancelled, but"
        )
        assert answer.get("jobs") == 1 or answer["type"] == "gearflow:store", answer
        self.cancelled.append(handle)

    def _insist(self, name: bytes, request: server_calls.Message, done: str = "done") -> dict[str, Any]:
        """What a reserved function answers when the store can be written again, or as soon as it is done."""
        deadline = time.monotonic() + TIMEOUT
        while "store" in (answer := self._caller.ask(name, request)).get("type", "") + answer.get(
            "message", ""
        ):
            if done in answer["message"]:
                break
            if self._refused_once_is_for_ever:
                raise Closed
            assert time.monotonic() < deadline, answer
        return answer

    def _replay(self) -> None:
        """The dead letters run again, and end as before."""
        dead = [promise for promise in self._ledger.promises if promise.do in ("fail", "raise")]
        for promise in dead:
            promise.ended = None  # from now on it may run
        wait_until_recorded(self._data)  # only then it is a letter
        answer = self._caller.ask(server_calls.DEAD, server_calls.DeadRequest(action="replay"))
        self._caller.drain(dead, TIMEOUT)
        if "jobs" in answer:
            assert answer["jobs"] == len(dead) > 0
            runs = [run.handle for run in self._ledger.runs()]
            assert all(runs.count(promise.handle) > 1 for promise in dead), "a letter was not replayed"


@contextmanager
def a_worker(port: int, directory: Path) -> Generator[None]:
    """A worker in a thread, which ends with the server."""
    worker = Worker(port, str(directory / "runs"), str(directory))

    def work() -> None:
        with suppress(WorkerGone, OSError):
            worker.work()
        worker.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def tell_it(nest: Nest, directory: Path, sync: str, fault: Fault) -> bool:
    """Tell the story with that fault, then see what the next server finds; whether the fault came at all."""
    directory.mkdir()
    ledger = Ledger(directory / "runs")
    story = Story(ledger, directory / "data", fault)
    with suppress(NotStarted):
        server = nest.start(directory / "data", fault, sync=sync)
        with a_worker(server.port, directory):
            try:
                with Caller(server.port, ledger) as caller:
                    story.tell(caller)
                    wait_until_idle(caller)
                    caller.drain(ledger.promises, TIMEOUT)
                    wait_until_recorded(directory / "data")
            except Closed:
                server.kill()
            except (Gone, ConnectionError):
                assert fault.how != "refused", server.why("it died")
                assert server.wait() == -signal.SIGKILL, server.why("it died")
            else:
                server.kill()
    log = (directory / "data.log").read_text()
    assert "Traceback" not in log, log
    ledger.check()
    see_what_is_there(nest, directory, sync, ledger, story)
    return MARK.decode() in log


def wait_until_recorded(data: Path, left: int = 0) -> None:
    """Until the store knows that so many jobs are left, also where that could not be written at once."""
    deadline = time.monotonic() + TIMEOUT
    with closing(sqlite3.connect(f"file:{data / FILE_NAME}?mode=ro", uri=True)) as connection:
        while (found := connection.execute(_LEFT).fetchone()[0]) != left:
            assert time.monotonic() < deadline, f"{found} jobs are left"


def see_what_is_there(nest: Nest, directory: Path, sync: str, ledger: Ledger, story: Story) -> None:
    server = nest.start(directory / "data", sync=sync)
    with a_worker(server.port, directory):
        with Caller(server.port, ledger) as caller:
            caller.drain([promise for promise in ledger.promises if promise.ended is not None], 0)
            caller.drain(ledger.promises, TIMEOUT)
            for handle in story.cancelled:
                info = caller.ask(server_calls.INFO, server_calls.InfoRequest(handle=handle))
                assert info["state"] == "cancelled", info
            caller.ask(server_calls.PURGE, server_calls.PurgeRequest(function="nobody"))
            wait_until_idle(caller)
        server.stop()
    ledger.check()
    ledger.check_all_ran()


def for_each_n(nest: Nest, directory: Path, sync: str, kind: Fault) -> None:
    number = 1
    while tell_it(nest, directory / str(number), sync, kind._replace(number=number)):
        number += 1
    assert number > 10


@pytest.mark.parametrize("times", [1, 3])  # the group alone, then tried one by one; or these, too
def test_the_nth_write_is_refused(nest: Nest, tmp_path: Path, times: int) -> None:
    for_each_n(nest, tmp_path, "batch", Fault("write", 0, "refused", times))


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sync", ["batch", "always", "off"])
@pytest.mark.parametrize("times", [1, 2, 3, 5, 8, 20])
def test_the_nth_write_and_those_after_it_are_refused(
    nest: Nest, tmp_path: Path, sync: str, times: int
) -> None:
    for_each_n(nest, tmp_path, sync, Fault("write", 0, "refused", times))


@pytest.mark.parametrize("how", _DEATHS)
def test_the_server_dies_at_the_nth_write(nest: Nest, tmp_path: Path, how: How) -> None:
    for_each_n(nest, tmp_path, "batch", Fault("write", 0, how))


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sync", ["always", "off"])
@pytest.mark.parametrize("how", _DEATHS)
def test_the_server_dies_at_the_nth_write_in_the_other_modes(
    nest: Nest, tmp_path: Path, sync: str, how: How
) -> None:
    for_each_n(nest, tmp_path, sync, Fault("write", 0, how))


@pytest.mark.parametrize("how", ["refused", "killed before", "killed after"])
def test_the_nth_sync_fails_where_each_group_is_synced(nest: Nest, tmp_path: Path, how: How) -> None:
    for_each_n(nest, tmp_path, "always", Fault("sync", 0, how))
