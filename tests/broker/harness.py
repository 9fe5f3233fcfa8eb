"""A broker with peers that speak packets: bytes in, what each peer was sent out, as values."""

from collections.abc import Iterable, Sequence

from gearflow.broker import Broker, Session, SizeLimits
from gearflow.broker.journal import Entry
from gearflow.broker.local_port import LocalPort
from gearflow.broker.storage import Change, Store
from gearflow.errors import StoreError
from gearflow.protocol import packets as p
from gearflow.protocol.codec import decode, encode
from gearflow.protocol.constants import RES
from gearflow.protocol.framing import TEXT, FrameBuffer
from gearflow.protocol.packets import Packet
from gearflow.stores.memory import MemoryStore

PREFIX = b"H:test:"


class Peer:
    """One connection to the broker under test."""

    def __init__(self, world: "World", name: str) -> None:
        self._world = world
        self._frames = FrameBuffer(RES)
        self.session: Session = world.broker.connected(7, name)

    def __call__(self, *sent: Packet | bytes) -> list[Packet | bytes]:
        """Send packets (or bytes as they are); what this peer has been sent since it last looked."""
        data = b"".join(item if isinstance(item, bytes) else encode(item) for item in sent)
        if data:
            self._world.broker.receive(self.session, data, self._world.now)
        return self.read()

    def read(self) -> list[Packet | bytes]:
        """What it has been sent since it last looked: packets, and lines of text."""
        data = b"".join(self.session.outbox)
        self.session.outbox.clear()
        return [body if kind == TEXT else decode(kind, body) for kind, body in self._frames.feed(data)]

    def leave(self) -> None:
        self._world.broker.disconnected(self.session, self._world.now)

    # What tests send most.

    def submit(self, function: bytes = b"work", unique: bytes = b"", workload: bytes = b"x") -> bytes:
        """A foreground submission; the handle."""
        return self._created(self(p.SubmitJob(function, unique, workload)))

    def submit_background(
        self, function: bytes = b"work", unique: bytes = b"", workload: bytes = b"x"
    ) -> bytes:
        """A background submission; the handle."""
        return self._created(self(p.SubmitJobBg(function, unique, workload)))

    def can_do(self, *functions: bytes) -> "Peer":
        assert self(*(p.CanDo(function) for function in functions)) == []
        return self

    def sleep(self) -> "Peer":
        assert self(p.PreSleep()) == []
        return self

    def grab(self) -> bytes | None:
        """The handle of the job it gets, if it gets one."""
        (answer,) = self(p.GrabJob())
        return answer.handle if isinstance(answer, p.JobAssign) else None

    @staticmethod
    def _created(answer: Iterable[Packet | bytes]) -> bytes:
        (created,) = answer
        assert isinstance(created, p.JobCreated)
        return created.handle


class World:
    """A broker, its clock, and its peers."""

    def __init__(
        self,
        limits: SizeLimits = SizeLimits(deaths=None),  # noqa: B008  (frozen)
        store: Store | None = None,
        token: bytes | None = None,
    ) -> None:
        self.now = 1000.0
        port = LocalPort(store) if store is not None else None
        self.broker = Broker(PREFIX, lambda line: b"you said " + line + b"\n", limits, port, token)

    def peer(self, name: str = "peer") -> Peer:
        return Peer(self, name)

    def worker(self, *functions: bytes) -> Peer:
        return self.peer("worker").can_do(*functions or (b"work",))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.broker.tick(self.now)
        while self.broker.turns.is_late() and (self.broker.next_due() or self.now + 1) <= self.now:
            self.broker.tick(self.now)  # as the shell does when a turn was late

    def be_late(self) -> None:
        """Every turn is late from now on."""
        self.broker.turns.is_late = lambda: True

    def proceed(self) -> None:
        """A later turn: work that waits goes on."""
        session = self.broker.proceed(self.now)
        if session is not None:
            self.broker.resume(session, self.now)

    def finish(self) -> None:
        """Do all work that waits for later turns."""
        while self.broker.turns.waiting:
            self.proceed()


class Disk(MemoryStore):
    """A store that survives its server, and may be full."""

    durable = True
    full = False

    def write(self, changes: Sequence[Change]) -> None:
        if self.full:
            raise StoreError("the disk is full")
        super().write(changes)


class Durable(World):
    """A broker with a store, and what the shell does between them."""

    def __init__(self, disk: Disk | None = None, limits: SizeLimits = SizeLimits()) -> None:  # noqa: B008  (frozen)
        self.disk = disk or Disk()
        super().__init__(limits, self.disk)
        self.broker.restore(self.disk.load())
        self.commit()

    def commit(self) -> None:
        """Write what has gathered, and go on with who waited for it."""
        journal, submissions = self.broker.journal, self.broker.submissions
        while journal.entries or submissions.ready_to_resume:
            entries = journal.drain()
            changes = [change for change, _ in entries if change is not None]
            try:
                self.disk.write(changes)
            except StoreError as error:
                journal.failed_group = entries
                self._tell(entries, str(error))
                journal.failed_group = ()
            else:
                self._tell(entries, None)
            ready, submissions.ready_to_resume = submissions.ready_to_resume, {}
            for session in ready:
                self.broker.resume(session, self.now)

    def step(self) -> None:
        """Do one step of the long work at the store, and what follows from it."""
        work = self.broker.journal.work
        steps = work.popleft()
        if next(steps, "end") is None:
            work.append(steps)
        self.commit()

    def turn(self) -> None:
        """Do a turn's share of other long work, and what follows from it."""
        session = self.broker.proceed(self.now)
        if session is not None:
            self.broker.resume(session, self.now)
        self.commit()

    def work(self) -> None:
        """Do all long work."""
        self.commit()
        while self.broker.journal.work or self.broker.turns.waiting:
            if self.broker.journal.work:
                self.step()
            if self.broker.turns.waiting:
                self.turn()

    def catch_up(self) -> None:
        """Write what could not be written before."""
        entries = self.broker.journal.drain_failed()
        self.disk.write([change for change, _ in entries if change is not None])
        self._tell(entries, None)

    def _tell(self, entries: list[Entry], error: str | None) -> None:
        for change, done in entries:
            if done is not None:
                done(error if change is not None else None)

    def restarted(self) -> "Durable":
        """The next server with the same disk: nothing of this one is left but what it wrote."""
        return Durable(self.disk)
