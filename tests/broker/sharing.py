"""Servers that share a store: brokers in one process, over one memory."""

from itertools import count

from gearflow.broker import SizeLimits
from gearflow.broker.handles import lot_of
from gearflow.broker.local_port import LocalPort
from gearflow.broker.storage import Change, Joined, StoredJob, Uncertain
from gearflow.protocol import packets as p
from tests.broker.harness import Disk, Peer, World


def number_of(handle: bytes) -> int:
    return int(handle.rpartition(b":")[2])


class Truth(Disk):
    """What the database has: jobs, records, and the owner of each lot."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: dict[int, Server] = {}
        self._lots = count(1)

    def new_lots(self, owner: "Server", number: int) -> list[int]:
        lots = [next(self._lots) for _ in range(number)]
        self.owners.update(dict.fromkeys(lots, owner))
        return lots

    def jobs(self) -> list[StoredJob]:
        return list(self.load().jobs)

    def commit_one(self, owner: "Server", change: Change) -> str | Joined | None:
        """What comes of a change of this server's."""
        number = getattr(change, "number", None)
        if number is not None and self.owners.get(lot_of(number)) is not owner:
            return "another server has the lot"
        if isinstance(change, StoredJob) and change.unique:
            for job in self.jobs():
                same = (job.function, job.unique) == (change.function, change.unique)
                if same and job.number != number:
                    return Joined(job.number)
        self.write([change])
        return None


class Server(World):
    """One of the servers, and what its shell does."""

    def __init__(self, truth: Truth, lots: int = 1, limits: SizeLimits = SizeLimits()) -> None:  # noqa: B008  (frozen)
        super().__init__(limits, LocalPort(truth))
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
        self.broker.core.handles.own([lot], fresh=False)
        contents = self.truth.load()
        jobs = [job for job in contents.jobs if lot_of(job.number) == lot]
        self.broker.ownership.adopt(jobs, contents.parts)

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
