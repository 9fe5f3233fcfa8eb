"""A server under load is killed at random moments, again and again, and restarted on what it left."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from gearflow.protocol import server_calls
from tests.crash.caller import Caller
from tests.crash.crew import clients, workers
from tests.crash.ledger import Ledger
from tests.crash.nest import TIMEOUT, Nest

SYNC = ("batch", "always", "off")


def live_and_die(nest: Nest, directory: Path, sync: str, seed: int, rounds: int) -> None:
    """Rounds of load, each ended by SIGKILL; after each, and at the end, see whether promises were kept."""
    ledger = Ledger(directory / "runs")
    chance = random.Random(seed)
    for number in range(rounds):
        server = nest.start(directory / "data", sync=sync)
        name = f"{sync}.{seed}.{number}"
        with workers(server.port, directory, 3), clients(server.port, ledger, name, 3):
            ledger.wait_for(ledger.happened() + chance.randrange(5, 400))
            time.sleep(chance.random() / 50)  # the moment of death must not depend on what was answered
            server.kill()
        ledger.check()
        assert "Traceback" not in server.log, server.why(name)
    end_in_peace(nest, directory, ledger, sync)


def end_in_peace(nest: Nest, directory: Path, ledger: Ledger, sync: str) -> None:
    """Nobody dies until all jobs are done; then the server ends in good order, and tells the same."""
    server = nest.start(directory / "data", sync=sync)
    with workers(server.port, directory, 3):
        with Caller(server.port, ledger) as caller:
            known = [promise for promise in ledger.promises if promise.ended is not None]
            caller.drain(known, 0)
            caller.drain(ledger.promises, TIMEOUT)
            wait_until_idle(caller)
        server.stop()
    ledger.check()
    ledger.check_all_ran()
    server = nest.start(directory / "data", sync=sync)
    with Caller(server.port, ledger) as caller:
        caller.drain(ledger.promises, 0)
        assert caller.ask(server_calls.INFO, server_calls.InfoRequest())["jobs"] == 0
    server.stop()
    ledger.check()


def wait_until_idle(caller: Caller) -> None:
    """Until no job is left, those included whose submitters were not there any more to be answered."""
    deadline = time.monotonic() + TIMEOUT
    while (info := caller.ask(server_calls.INFO, server_calls.InfoRequest()))["jobs"]:
        assert time.monotonic() < deadline, info


@pytest.mark.parametrize("sync", SYNC)
def test_whatever_was_acknowledged_runs_and_what_has_ended_does_not_run_again(
    nest: Nest, tmp_path: Path, sync: str
) -> None:
    live_and_die(nest, tmp_path, sync, seed=1, rounds=8)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 105))
@pytest.mark.parametrize("sync", SYNC)
def test_the_same_in_hundreds_of_rounds(nest: Nest, tmp_path: Path, sync: str, seed: int) -> None:
    live_and_die(nest, tmp_path, sync, seed, rounds=40)
