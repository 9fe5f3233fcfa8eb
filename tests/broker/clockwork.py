"""A broker with a store, whose clock is made up, and the calls about schedules."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from gearflow.broker.storage import Change, StoredJob, Ticked
from gearflow.protocol import packets as p
from tests.broker.harness import Disk, Durable, Peer

NOON: Final = datetime(2026, 11, 28, 12, tzinfo=UTC).timestamp()
MINUTE: Final = 60.0
HOUR: Final = 3600.0
DAY: Final = 86_400.0


class TickingDisk(Disk):
    """A disk that remembers the jobs that it was given, by unique."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[StoredJob] = []
        self.writes = 0

    def write(self, changes: Sequence[Change]) -> None:
        super().write(changes)
        self.writes += 1
        for change in changes:
            if isinstance(change, Ticked) and change.job is not None:
                self.made.append(change.job)
            elif isinstance(change, StoredJob):
                self.made.append(change)


class Refused(Exception):
    """A call ended with a fault."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Clockwork(Durable):
    """A server with schedules. ``unix`` is the time that it sees."""

    now: float
    unix: float

    def __init__(self, disk: TickingDisk | None = None, unix: float = NOON) -> None:
        self.ticking_disk = disk or TickingDisk()
        self.unix = unix
        super().__init__(self.ticking_disk)
        self.set_clock(unix)
        self._caller: Peer | None = None
        self.settle()

    def set_clock(self, unix: float) -> None:
        """The wall clock is set, while no time passes."""
        self.unix = unix
        self.broker.clock.now = self.now
        self.broker.clock.offset = unix - self.now

    def wait(self, seconds: float) -> None:
        """Time passes, at most a second at a time, and the server does what is due."""
        end = self.now + seconds
        while self.now < end:
            due = self.broker.next_due()
            step = min(end, max(due, self.now)) if due is not None else end
            self.unix += step - self.now
            self.now = step
            self.settle()
            due = self.broker.next_due()
            if due is not None and due <= self.now:
                self.unix += min(0.25, end - self.now)
                self.now = min(end, self.now + 0.25)
        self.settle()

    def settle(self) -> None:
        """The server does what is due now, and all that follows from it."""
        for _ in range(100_000):
            self.broker.tick(self.now)
            self.work()
            due = self.broker.next_due()
            if (due is None or due > self.now) and not self.broker.journal.entries:
                return
        raise AssertionError("it does not settle")

    def rebooted(self, away: float = 0.0) -> "Clockwork":
        """The next server on the same disk, after some time."""
        return type(self)(self.ticking_disk, self.unix + away)

    # ---------------------------------------------------------------------------------------- calls

    def call(self, reserved: bytes, /, **request: Any) -> Any:
        """The answer to a call. Raises Refused."""
        if self._caller is None:
            self._caller = self.peer("caller")
            self._caller(p.OptionReq(b"exceptions"))
        caller = self._caller
        answers = caller(p.SubmitJob(reserved, b"", json.dumps(request).encode()))
        for _ in range(100):
            self.settle()
            answers += caller.read()
            last = answers[-1]
            if isinstance(last, p.WorkComplete):
                return json.loads(last.result)
            if isinstance(last, p.WorkException):
                fault = json.loads(last.data)
                raise Refused(fault["type"], fault["message"])
            self.wait(1)
        raise AssertionError(answers)

    def put(self, name: str = "s", *, function: str = "work", payload: str = "", **when: Any) -> Any:
        """Put a schedule, every hour by default."""
        if "cron" not in when and "every" not in when:
            when["cron"] = "0 * * * *"
        spec = {"name": name, "function": function, "payload": payload, "when": when}
        return self.call(b"gearflow:schedule", do="put", schedules=[spec])

    def change(self, do: str, name: str = "s", **request: Any) -> Any:
        return self.call(b"gearflow:schedule", do=do, name=name, **request)

    def show(self, name: str = "s", times: int = 1) -> Any:
        (found,) = self.call(b"gearflow:schedules", name=name, times=times)["schedules"]
        return found

    # ---------------------------------------------------------------------------------------- what came

    @property
    def times(self) -> list[float]:
        """The times of all jobs that schedules made, in order."""
        return [scheduled_at(job) for job in self.ticking_disk.made]

    @property
    def after_noon(self) -> list[float]:
        """The same, in minutes after noon."""
        return [(time - NOON) / MINUTE for time in self.times]

    def runner(self, *functions: bytes) -> "Runner":
        """A worker that runs each job until a test ends it."""
        return Runner(self.worker(*functions or (b"work",)), self.settle)

    def log(self) -> list[str]:
        """What the server has logged since the last look."""
        notices = self.broker.outgoing.notices
        texts = [notice.text % notice.arguments for notice in notices]
        notices.clear()
        return texts


class Runner:
    """A worker that ends a job when a test says so."""

    def __init__(self, peer: Peer, settle: Callable[[], None]) -> None:
        self._peer = peer
        self._settle = settle

    def take(self) -> bytes | None:
        return self._peer.grab()

    def end(self, handle: bytes) -> None:
        self._peer(p.WorkComplete(handle, b""))
        self._settle()

    def run_all(self) -> int:
        """Run all jobs that wait; how many."""
        count = 0
        while (handle := self.take()) is not None:
            self.end(handle)
            count += 1
        return count


def scheduled_at(job: StoredJob) -> float:
    time, _ = json.loads(job.options)["scheduled_at"]
    assert isinstance(time, float | int)
    return float(time)
