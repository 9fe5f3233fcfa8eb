"""The rows of the table: what is done with a peer for each, and the figures that it gives."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from statistics import median
from typing import Final, TypeAlias

from tests.benchmarks.peers.measuring import TooLong, Tree, Trial

Figures: TypeAlias = dict[str, float]

IDLE: Final = 5.0
"""Seconds for which an idle worker is looked at."""

WARMING: Final = 1
"""Jobs without work that a client hands over before it begins."""

PREFETCH: Final = 200
"""More jobs than any peer's busy worker takes in advance, so that an idle one gets some."""

SETTLED: Final = 3.0
"""Seconds in which those that can be run have been."""

CPU_TASK: Final = 0.02
"""Seconds that a task for the processor takes."""


@dataclass(frozen=True)
class Sizes:
    """How much is done in each row."""

    drain: int = 20_000
    calls: int = 500
    gather: int = 1_000
    submit: int = 2_000
    cpu: int = 200
    naps: int = 2_000
    patience: float = 20.0
    """Seconds after which a killed worker's jobs are taken for not handed on."""


def drain(trial: Trial, sizes: Sizes) -> Figures:
    """Jobs without work: handed over while no worker is there, then run by up to ten slots."""
    _, enqueueing = trial.client("enqueue", "noop", sizes.drain)
    with trial.worker("noop") as worker:
        begin = trial.marked(1)
        before = trial.there()
        used = worker.cpu()
        seconds = trial.marked(sizes.drain + WARMING) - begin
        drained = sizes.drain + WARMING - before
        used = worker.cpu() - used
    return {
        f"(a) {sizes.drain:,} jobs: enqueue and drain, s": sum(enqueueing) + seconds,
        "(a) of these, to enqueue them": sum(enqueueing),
        "(d) worker's CPU for a job, us": used / drained * 1e6,
    }


def round_trip(trial: Trial, sizes: Sizes) -> Figures:
    """One call at a time, each with its result."""
    with trial.worker("noop"):
        _warm(trial)
        seconds = trial.results("call", sizes.calls)
    return {"(b) round trip, us": median(seconds) * 1e6}


def gather(trial: Trial, sizes: Sizes) -> Figures:
    """Many at once, with all their results."""
    with trial.worker("noop"):
        _warm(trial)
        seconds = trial.results("gather", sizes.gather)
    return {f"(c) {sizes.gather:,} calls and results, ms": sum(seconds) * 1e3}


def submit(trial: Trial, sizes: Sizes) -> Figures:
    """Background jobs, one at a time, each acknowledged."""
    _, seconds = trial.client("submit", sizes.submit)
    return {"(e) background, one at a time, us": median(seconds) * 1e6}


def cpu(trial: Trial, sizes: Sizes) -> Figures:
    """Tasks that compute, in two processes: as a multiple of what two bare ones take, right after."""
    with trial.worker("cpu", 2) as worker:
        seconds = _through(trial, worker, "spin", sizes.cpu)
    return {"(f) CPU work, of bare processes": seconds / trial.bare(sizes.cpu)}


def naps(trial: Trial, sizes: Sizes) -> Figures:
    """Tasks that wait, a hundred at a time."""
    with trial.worker("light", 100) as worker:
        seconds = _through(trial, worker, "nap", sizes.naps)
    return {f"(g) {sizes.naps:,} naps of 10 ms, 100 at once, s": seconds}


def kill(trial: Trial, sizes: Sizes) -> Figures:
    """A worker is killed: how long until another one runs its job."""
    with trial.worker("light", 1) as victim:
        trial.client("enqueue", "hang", 1)
        trial.marked(1, ".hang")
        with trial.worker("light", 1):
            trial.client("enqueue", "noop", PREFETCH)
            with suppress(TooLong):  # the busy one may have taken some of them in advance
                trial.marked(PREFETCH + 2 * WARMING, within=SETTLED)
            trial.marked(1 + WARMING)  # the second worker is there
            begin = time.monotonic()
            victim.kill()
            seconds = inf
            with suppress(TooLong):
                seconds = trial.marked(2, ".hang", sizes.patience) - begin
            return {"(h) a killed worker's job runs again, ms": seconds * 1e3}


def idle(trial: Trial, sizes: Sizes) -> Figures:
    """A worker that has nothing to do."""
    with trial.worker() as worker:
        _warm(trial)
        time.sleep(1)  # what it has begun when it started comes to its end
        used = worker.cpu()
        time.sleep(IDLE)
        used = worker.cpu() - used
        return {"(i) idle worker, MiB": worker.memory(), "(i) idle worker, CPU ms each s": used / IDLE * 1e3}


def start(trial: Trial, sizes: Sizes) -> Figures:
    """From the start of a worker to the end of its first job, which waits for it."""
    trial.client("enqueue", "noop", 1)
    with trial.worker() as worker:
        return {"(j) worker start to first task, ms": (trial.marked(1) - worker.began) * 1e3}


ROWS: Final[dict[str, Callable[[Trial, Sizes], Figures]]] = {
    "a": drain,
    "b": round_trip,
    "c": gather,
    "e": submit,
    "f": cpu,
    "g": naps,
    "h": kill,
    "i": idle,
    "j": start,
}
"""By their letters; d comes with a."""


def _warm(trial: Trial) -> None:
    """The worker has run something."""
    trial.client("enqueue", "noop", 20)
    trial.marked(20 + WARMING)
    trial.forget()


def _through(trial: Trial, worker: Tree, task: str, count: int) -> float:
    """Seconds from the first submission to the end of the last job, with a worker that is warm."""
    _warm(trial)
    began, _ = trial.client("enqueue", task, count)
    return trial.marked(count + WARMING) - began
