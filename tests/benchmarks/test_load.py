"""The load generator counts what happens, and finishes every kind of load."""

import os
import shutil
from typing import get_args

import pytest

from tests.benchmarks.load import Kind, Load, generator, run
from tests.benchmarks.servers import Server, cpu
from tests.conftest import missing


@pytest.fixture
def server(any_server: str) -> Server:
    """A server, without the figures of its process: gearflow's runs in this one."""
    if shutil.which("cc") is None:
        missing("cc is not installed")
    return Server("under test", int(any_server.rpartition(":")[2]), os.getpid())


@pytest.mark.parametrize("kind", get_args(Kind))
def test_each_kind_of_load_comes_to_its_end(kind: Kind, server: Server, function: str) -> None:
    load = Load(kind, 500, clients=3, depth=7, workers=5, grabs=2, function=function)
    figures = run(generator(), server, load)
    assert figures.phase.seconds > 0
    assert bool(figures.latency) == (kind in ("calls", "wake"))
    assert {"enqueue", kind} >= figures.phases.keys()


@pytest.mark.parametrize("payload", [16, 5_000, 32 << 10, 33_000, 3 << 20])
def test_a_payload_of_any_size_goes_there_and_back(payload: int, server: Server, function: str) -> None:
    load = Load("calls", 40, clients=2, depth=4, workers=3, grabs=2, payload=payload, function=function)
    figures = run(generator(), server, load)
    assert figures.latency["p50"] <= figures.latency["p99"] <= figures.latency["max"]
    assert figures.latency["max"] <= figures.phase.seconds * 1e6


def test_the_clock_of_a_process_is_that_of_its_cpu_time() -> None:
    before = sum(os.times()[:2])
    while sum(os.times()[:2]) < before + 0.05:
        pass
    assert cpu(os.getpid()) == pytest.approx(sum(os.times()[:2]), abs=0.05)
