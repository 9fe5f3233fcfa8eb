"""A broker with peers that speak packets: bytes in, what each peer was sent out, as values."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from gearflow.broker import Broker, Session, SizeLimits
from gearflow.broker.journal import Entry
from gearflow.broker.local_port import LocalPort
from gearflow.broker.storage import (
    PENDING,
    Answer,
    Change,
    Contents,
    JobOf,
    JobRecord,
    Pending,
    Question,
    Store,
    StoredJob,
    StorePort,
    WholeRecordOf,
    size_of,
)
from gearflow.errors import StoreError
from gearflow.protocol import packets as p
from gearflow.protocol.codec import decode, encode
from gearflow.protocol.constants import RES
from gearflow.protocol.framing import TEXT, FrameBuffer
from gearflow.protocol.packets import Packet
from gearflow.protocol.rights import Tokens
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
        self._world.answer()
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
        port: StorePort | None = None,
        token: bytes | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        self.now = 1000.0
        tokens = tokens if token is None else Tokens.of(token)
        self.broker = Broker(PREFIX, self.answer_text, limits, port, tokens)

    def answer_text(self, line: bytes) -> bytes | Iterator[bytes]:
        """What the shell answers to a line of text."""
        return b"you said " + line + b"\n"

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

    def answer(self) -> None:
        """The store answers what it was asked."""

    def finish(self) -> None:
        """Do all work that waits for later turns."""
        while self.broker.turns.waiting:
            self.proceed()


class Disk(MemoryStore):
    """A store that survives its server, and may be full."""

    durable = True
    full = False
    heads_only = False
    """Whether a server that starts gets the lengths of workloads only."""

    def load(self) -> Contents:
        contents = super().load()
        if not self.heads_only:
            return contents
        return contents._replace(jobs=(job._replace(workload=size_of(job.workload)) for job in contents.jobs))

    def write(self, changes: Sequence[Change]) -> None:
        if self.full:
            raise StoreError("the disk is full")
        super().write(changes)


class DelayedPort:
    """A port to a store that answers later: what was asked last is answered first, or what a test says.

    ``early``: the store has looked when it was asked, and much may have happened until the answer arrives.
    """

    shared = False
    """Whether other servers have jobs at the store too."""

    def __init__(self, store: Store) -> None:
        self.early = False
        self.durable = store.durable
        self.large = store.large
        self.asked: list[tuple[Question, Callable[[Answer], None]]] = []
        self.ahead: list[tuple[StoredJob | JobRecord, Callable[[str | None], None]]] = []
        self._store = store
        self._local = LocalPort(store)

    def ask(self, question: Question, done: Callable[[Answer], None]) -> Answer | Pending:
        if self.early:
            answer = self.look_up(question)
            self.asked.append((question, lambda _: done(answer)))
        else:
            self.asked.append((question, done))
        return PENDING

    def write_ahead(self, change: StoredJob | JobRecord, done: Callable[[str | None], None]) -> None:
        self.ahead.append((change, done))

    def reopen(self) -> None:
        self._store.reopen()

    @property
    def is_asked(self) -> bool:
        return bool(self.asked or self.ahead)

    def answer(self, place: int = -1) -> None:
        """Answer one question."""
        question, done = self.asked.pop(place)
        done(self.look_up(question))

    def look_up(self, question: Question) -> Answer:
        """The answer as it is now."""
        if isinstance(question, (JobOf, WholeRecordOf)):
            return _last(self._local.read(question))
        return self._local.ask(question, _unexpected)

    def answer_all(self) -> None:
        """Answer all questions, also those that the answers lead to."""
        while self.is_asked:
            if self.asked:
                self.answer()
            else:
                self._write_ahead(*self.ahead.pop())

    def _write_ahead(self, change: StoredJob | JobRecord, done: Callable[[str | None], None]) -> None:
        try:
            for _ in self._store.write_ahead(change):
                pass
        except StoreError as error:
            done(str(error))
        else:
            done(None)


def _last(steps: Generator[None, None, Answer]) -> Answer:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            answer: Answer = end.value
            return answer


def _unexpected(answer: Answer) -> None:
    raise AssertionError(answer)


class Durable(World):
    """A broker with a store, and what the shell does between them.

    If it is ``delayed``, the store answers later: when a peer looks what it was sent, if the store is
    ``prompt``, else when the test says so.
    """

    delayed = False
    prompt = True

    def __init__(self, disk: Disk | None = None, limits: SizeLimits = SizeLimits()) -> None:  # noqa: B008  (frozen)
        self.disk = disk or Disk()
        self.port = DelayedPort(self.disk)
        super().__init__(limits, self.port if self.delayed else LocalPort(self.disk))
        self.broker.restore(self.disk.load())
        self.commit()

    def commit(self) -> None:
        """Write what has gathered, and go on with who waited for it."""
        self.write()
        while self.port.is_asked and self.prompt:
            self.port.answer_all()
            self.write()

    def answer(self) -> None:
        while self.port.asked and self.prompt:
            self.port.answer()
            self.finish()

    def write(self) -> None:
        """As ``commit``, but no question is answered."""
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
        return type(self)(self.disk)
