"""Servers that share a store: brokers in one process, over one memory."""

from collections import Counter
from collections.abc import Callable
from itertools import count

from gearflow.broker import SizeLimits
from gearflow.broker.handles import lot_of
from gearflow.broker.storage import (
    Change,
    Forgotten,
    Joined,
    Ordered,
    Overtaken,
    StoredJob,
    Ticked,
    Uncertain,
)
from gearflow.protocol import packets as p
from tests.broker.harness import DelayedPort, Disk, Peer, World


def number_of(handle: bytes) -> int:
    return int(handle.rpartition(b":")[2])


class Truth(Disk):
    """What the database has: jobs, records, and the owner of each lot."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: dict[int, Server] = {}
        self.orders: list[Ordered] = []
        self.epochs: Counter[int] = Counter()  # of the lots: how often each was adopted
        self._lots = count(1)

    def new_lots(self, owner: "Server", number: int) -> list[int]:
        lots = [next(self._lots) for _ in range(number)]
        self.owners.update(dict.fromkeys(lots, owner))
        return lots

    def jobs(self) -> list[StoredJob]:
        return list(self.load().jobs)

    def commit_one(self, owner: "Server", change: Change) -> str | Joined | None:
        """What comes of a change of this server's."""
        if isinstance(change, Ticked):
            return self._tick(owner, change)
        number = getattr(change, "number", None)
        if isinstance(change, Ordered):
            self.orders.append(change)
            return None
        if isinstance(change, Forgotten) and self.ended(change.number) is not None:
            self.write([change])
            return None
        if number is not None and self.owners.get(lot_of(number)) is not owner:
            return "another server has the lot"
        if isinstance(change, StoredJob) and change.unique:
            for job in self.jobs():
                same = (job.function, job.unique) == (change.function, change.unique)
                if same and job.number != number:
                    return Joined(job.number)
        self.write([change])
        return None

    def _tick(self, owner: "Server", change: Ticked) -> str | Joined | None:
        now = {setting.name: setting.value for setting in self.load().settings}.get(change.name, b"")
        if now != change.before:
            return Overtaken(now)
        outcome = None if change.job is None else self.commit_one(owner, change.job)
        if outcome is None or isinstance(outcome, Joined):
            self.write([change._replace(job=None)])
        return outcome


class Server(World):
    """One of the servers, and what its shell does."""

    def __init__(self, truth: Truth, lots: int = 1, limits: SizeLimits = SizeLimits()) -> None:  # noqa: B008  (frozen)
        self.port = DelayedPort(truth)
        self.port.shared = True
        self.prompt = True
        super().__init__(limits, self.port)
        self.truth = truth
        self.is_away = False
        self.broker.core.handles.share()
        self.broker.core.handles.own(truth.new_lots(self, lots))
        self.commit()

    @property
    def lots(self) -> set[int]:
        return self.broker.core.handles.lots

    def commit(self) -> None:
        """Write what has gathered, and go on with those that waited for it."""
        journal, submissions = self.broker.journal, self.broker.submissions
        while (journal.entries or submissions.ready_to_resume) and not self.is_away:
            for change, done in journal.drain():
                outcome = self.truth.commit_one(self, change) if change is not None else None
                if done is not None:
                    done(outcome)
            ready, submissions.ready_to_resume = submissions.ready_to_resume, {}
            for session in ready:
                self.broker.resume(session, self.now)
            self.answer()
        self.answer()

    def answer(self) -> None:
        """The store answers what it was asked, unless it is away."""
        while self.port.asked and self.prompt and not self.is_away:
            self.port.answer()
            self.finish()

    def settle(self) -> None:
        """Do all that can be done now."""
        while True:
            self.commit()
            self.finish()
            waits = self.broker.journal.entries and not self.is_away
            if not waits and not self.broker.turns.waiting:
                return

    def pass_time(self, seconds: float) -> None:
        super().pass_time(seconds)
        self.settle()

    def beat(self) -> None:
        """Carry out what other servers have ordered."""
        for order in list(self.truth.orders):
            if self.truth.owners.get(lot_of(order.number)) is self:
                self.truth.orders.remove(order)
                self.broker.carry_out(order.number, order.verb)
        self.broker.reload_settings(self.truth.load().settings)
        self.settle()

    def lose_patience(self, *, stored: bool = False) -> None:
        """The store does not answer for too long. It may have stored what it was sent last."""
        journal = self.broker.journal
        for change, done in journal.drain():
            if stored and change is not None:
                self.truth.commit_one(self, change)
            if done is not None:
                done(None if change is None else Uncertain("the database cannot be reached"))

    def adopt(self, lot: int) -> None:
        """Become the owner of a lot, whatever the one before knows of that."""
        self.truth.owners[lot] = self
        self.truth.epochs[lot] += 1
        self.broker.core.handles.own([lot], fresh=False)
        contents = self.truth.load()
        jobs = [job for job in contents.jobs if lot_of(job.number) == lot]
        self.broker.ownership.adopt(jobs, contents.parts)

    def read(self, lot: int) -> Callable[[], None]:
        """Become the owner of a lot, and read its jobs. The result adopts them."""
        self.truth.owners[lot] = self
        self.truth.epochs[lot] += 1
        self.broker.core.handles.own([lot], fresh=False)
        self.broker.ownership.begin_read()
        contents = self.truth.load()
        jobs = [job for job in contents.jobs if lot_of(job.number) == lot]

        def adopt() -> None:
            self.broker.ownership.adopt(jobs, contents.parts)
            self.broker.ownership.end_read()

        return adopt

    def disown(self, lot: int) -> None:
        self.broker.ownership.disown(lot)

    def hold(self, on: bool = True) -> None:
        self.broker.ownership.hold(on)

    def background(self, client: Peer, function: bytes = b"work", unique: bytes = b"") -> bytes:
        """Submit a background job; the handle."""
        assert client(p.SubmitJobBg(function, unique, b"x")) == []
        self.commit()
        (created,) = client.read()
        assert isinstance(created, p.JobCreated)
        return created.handle
