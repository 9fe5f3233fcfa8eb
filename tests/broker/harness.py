"""A broker with peers that speak packets: bytes in, what each peer was sent out, as values."""

from collections.abc import Iterable

from gearflow.broker import Broker, Limits, Session
from gearflow.broker.store import Store
from gearflow.protocol import packets as p
from gearflow.protocol.codec import decode, encode
from gearflow.protocol.constants import RES
from gearflow.protocol.framing import TEXT, FrameBuffer
from gearflow.protocol.packets import Packet

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

    def __init__(self, limits: Limits = Limits(deaths=None), store: Store | None = None) -> None:  # noqa: B008  (frozen)
        self.now = 1000.0
        self.broker = Broker(PREFIX, lambda line: b"you said " + line + b"\n", limits, store)

    def peer(self, name: str = "peer") -> Peer:
        return Peer(self, name)

    def worker(self, *functions: bytes) -> Peer:
        return self.peer("worker").can_do(*functions or (b"work",))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.broker.tick(self.now)
