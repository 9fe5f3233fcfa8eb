"""What clients were promised, what workers did, and what is wrong between the two.

What a worker did stands in a file that the workers themselves append to, in one write for each run, before
they report. What a client was promised stands here: the client's process is the one that survives.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.crash.nest import TIMEOUT


class Run(NamedTuple):
    """A line of the workers' log."""

    at: int  # where in the file it stands
    handle: str
    key: str


@dataclass(eq=False)
class Promise:
    """A background job whose submission was acknowledged."""

    key: str
    do: str
    handle: str
    unique: str  # "": none
    shared: bool  # others submit with the same unique: then perhaps another's payload is run
    kept: bool  # its result is
    ended: tuple[str, bytes] | None = None  # how, and with what, as soon as the server reports it
    known_at: int = 0  # how long the workers' log was then


class Ledger:
    """Owns what is known; several threads write to it."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._log.touch()
        self.promises: list[Promise] = []
        self.faults: list[str] = []
        self.refused: set[str] = set()
        """Keys of jobs whose submitters got ERROR: they are not to run."""
        self._given: dict[str, str] = {}
        self._unshared: set[str] = set()
        self._events = 0
        self._changed = threading.Condition()

    # ------------------------------------------------------------------------------------ what clients say

    def given(self, handle: str, to: str, shared: bool = False) -> None:
        """The server has given a handle: to a job with that key, or that shared unique; never twice."""
        with self._changed:
            before = self._given.setdefault(handle, to)
            if before != to or (handle in self._unshared):
                self.faults.append(f"{handle} was given to {before}, and then to {to}")
            if not shared:
                self._unshared.add(handle)
            self._events += 1
            self._changed.notify_all()

    def promised(self, promise: Promise) -> None:
        with self._changed:
            self.promises.append(promise)

    def ended(self, promise: Promise, how: str, body: bytes) -> None:
        """The server reported how a job ended. From now on it must not run again or end otherwise."""
        with self._changed:
            if promise.ended is None:
                promise.known_at = self._log.stat().st_size
                promise.ended = how, body
            elif promise.ended != (how, body) and (promise.kept or how != "not kept"):
                self.wrong(f"{promise} has ended with {(how, body)} now")

    def wrong(self, what: str) -> None:
        self.faults.append(what)

    def happened(self) -> int:
        """Handles given so far."""
        return self._events

    def wait_for(self, events: int) -> None:
        """Until so many handles have been given in all, or something is wrong."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._events >= events or self.faults, TIMEOUT), (
                f"only {self._events} of {events} submissions were answered"
            )

    # ------------------------------------------------------------------------------------ what must hold

    def runs(self) -> list[Run]:
        """All that workers did so far."""
        runs: list[Run] = []
        at = 0
        for line in self._log.read_bytes().splitlines(keepends=True):
            handle, key, _ = line.decode().split()
            runs.append(Run(at, handle, key))
            at += len(line)
        return runs

    def check(self) -> None:
        """No handle is two jobs', nothing refused has run, and nothing that was known to have ended."""
        runs = self.runs()
        by_handle = _by_handle(runs)
        for handle, these in by_handle.items():
            if len(keys := {run.key for run in these}) > 1:
                self.wrong(f"{handle} is several jobs: {sorted(keys)}")
        self.faults += [f"{run} although it was refused" for run in runs if run.key in self.refused]
        for promise in self.promises:
            again = [run for run in by_handle[promise.handle] if run.at >= promise.known_at]
            if promise.ended is not None and again:
                self.wrong(f"{promise} ran again: {again}")
        assert not self.faults, "\n".join(self.faults[:20])

    def check_all_ran(self) -> None:
        """Everything that was promised has run, with its own payload: accepted is a subset of executed."""
        by_handle = _by_handle(self.runs())
        for promise in self.promises:
            keys = {run.key for run in by_handle[promise.handle]}
            if not keys:
                self.wrong(f"{promise} never ran")
            elif not promise.shared and keys != {promise.key}:
                self.wrong(f"{promise} ran as {sorted(keys)}")
            elif promise.ended is None:
                self.wrong(f"{promise} ran, and how it ended is not known")
            else:
                self._check_end(promise, keys.pop())
        assert not self.faults, "\n".join(self.faults[:20])

    def _check_end(self, promise: Promise, key: str) -> None:
        assert promise.ended is not None
        how, body = promise.ended
        if how == "not kept":
            good = not promise.kept
        elif promise.do == "fail":
            good = how == "failed"
        elif promise.do == "raise":
            good = how == "raised" and key.encode() in body
        else:
            good = (how, body.rstrip(b".")) == ("completed", b"did " + key.encode())
        if not good:
            self.wrong(f"{promise} has the wrong end")


def _by_handle(runs: Iterable[Run]) -> defaultdict[str, list[Run]]:
    by_handle = defaultdict[str, list[Run]](list)
    for run in runs:
        by_handle[run.handle].append(run)
    return by_handle
