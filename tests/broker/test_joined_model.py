"""Submissions at two servers over one store, which answers late, or not for too long, while lots move.

Whatever happens: each submission is answered once and in order, each job that was acknowledged is run, and no
job stays at the store that no server knows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gearflow.broker import SizeLimits
from gearflow.broker.handles import lot_of
from gearflow.broker.storage import Change, Done, Joined, Uncertain
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol.packets import Packet
from tests.broker.harness import Peer
from tests.broker.sharing import Server, Truth, number_of

SERVERS = st.integers(0, 1)
CLIENTS = st.integers(0, 1)
KINDS = st.lists(
    st.tuples(
        st.sampled_from(["background", "foreground", "detached"]), st.sampled_from(["u", "", "~", "u"])
    ),
    min_size=1,
    max_size=3,
)
FAULT = "the database cannot be reached"


@dataclass(eq=False)
class Submitted:
    """A submission, and its answer."""

    kind: str
    function: bytes
    handle: bytes = b""  # of the job; empty: it was refused
    ended: bool = False  # the client has been sent an end


@dataclass(eq=False)
class Client:
    peer: Peer
    submitted: list[Submitted] = field(default_factory=list[Submitted])
    answered: int = 0
    calls: dict[bytes, Submitted] = field(default_factory=dict[bytes, Submitted])


class Group:
    """Entries that are on their way to the store, in a turn of the loop that is over."""

    def __init__(self, server: Server) -> None:
        self.server = server
        journal = server.broker.journal
        self.entries: list[tuple[Change | None, Done | None]] = journal.drain()
        self.outcomes: list[str | Joined | None] = []
        self.epochs = server.truth.epochs.copy()

    def write(self) -> None:
        """The store has it."""
        if not self.outcomes:
            for change, _ in self.entries:
                self.outcomes.append(self.outcome(change) if change is not None else None)

    def outcome(self, change: Change) -> str | Joined | None:
        """Nothing is written of a lot that was adopted meanwhile, by whichever server."""
        number = getattr(change, "number", None)
        truth = self.server.truth
        if number is not None and self.epochs[lot_of(number)] != truth.epochs[lot_of(number)]:
            return "the lot was adopted meanwhile"
        return truth.commit_one(self.server, change)

    def tell(self, outcome: Callable[[int], str | Joined | None]) -> None:
        """The broker gets to know what came of it."""
        for place, (change, done) in enumerate(self.entries):
            if done is not None:
                done(outcome(place) if change is not None else None)


class SubmissionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        limits = SizeLimits(deaths=None)
        self.truth = Truth()
        self.servers = [Server(self.truth, 1, limits) for _ in range(2)]
        for server in self.servers:
            server.prompt = False
        self.clients = [[Client(server.peer()) for _ in range(2)] for server in self.servers]
        self.groups: dict[Server, Group] = {}
        self.unsettled: dict[Server, Group] = {}  # nobody waits any more, and they may yet be written
        self.count = 0

    # ---------------------------------------------------------------------------------- submissions

    @rule(server=SERVERS, client=CLIENTS, kinds=KINDS)
    def submit(self, server: int, client: int, kinds: list[tuple[str, str]]) -> None:
        """Several submissions in one piece. Each has a function of its own, or one that all have."""
        sender = self.clients[server][client]
        packets: list[Packet] = []
        for kind, unique in kinds:
            self.count += 1
            function = "shared" if unique == "u" else f"f{self.count}"
            if unique == "~":
                unique = f"~{self.count:032x}"
            sender.submitted.append(Submitted(kind, function.encode()))
            match kind:
                case "background":
                    packets.append(p.SubmitJobBg(function.encode(), unique.encode(), b"x"))
                case "foreground":
                    packets.append(p.SubmitJob(function.encode(), unique.encode(), b"x"))
                case _:
                    request = api.SubmitRequest(function=function, unique=unique, detached=True)
                    packets.append(p.SubmitJob(api.SUBMIT, b"", request.to_wire() + b"\nx"))
        self.heard(sender, sender.peer(*packets))

    def heard(self, client: Client, answers: list[Packet | bytes]) -> None:
        for answer in answers:
            match answer:
                case p.JobCreated(handle):
                    submitted = client.submitted[client.answered]
                    client.answered += 1
                    if submitted.kind == "detached":
                        client.calls[handle] = submitted
                    else:
                        self.acknowledged(submitted, handle)
                case p.Error(code):
                    assert code in (b"QUEUE_ERROR", b"gearflow:uncertain")
                    submitted = client.submitted[client.answered]
                    assert submitted.kind != "detached"
                    client.answered += 1
                    submitted.ended = True
                case p.WorkComplete(handle, body) if handle in client.calls:
                    submitted = client.calls.pop(handle)
                    self.acknowledged(submitted, api.Submitted.model_validate_json(body).handle.encode())
                case p.WorkFail(handle) if handle in client.calls:
                    client.calls.pop(handle).ended = True
                case p.WorkComplete(handle) | p.WorkFail(handle):
                    waiting = [
                        submitted
                        for submitted in client.submitted[: client.answered]
                        if submitted.kind == "foreground"
                        and submitted.handle == handle
                        and not submitted.ended
                    ]
                    assert waiting, "an end for nobody, or before its handle"
                    waiting[0].ended = True
                case p.WorkWarning():
                    pass
                case _:
                    raise AssertionError(answer)

    def acknowledged(self, submitted: Submitted, handle: bytes) -> None:
        """The handle is that of a job of its function. No other answer was due."""
        submitted.handle = handle
        function = self.function_of(handle)
        assert function in (None, submitted.function)

    def function_of(self, handle: bytes) -> bytes | None:
        for server in self.servers:
            if (job := server.broker.core.find(handle)) is not None:
                return job.function.name
        stored = self.truth.job(number_of(handle))
        return stored.function if stored is not None else None

    # ------------------------------------------------------------------------------------ the store

    @rule(server=SERVERS)
    def commit(self, server: int) -> None:
        """The store has everything, and says so."""
        self.end_group(server)
        self.begin_group(server)
        self.end_group(server)

    @rule(server=SERVERS)
    def begin_group(self, server: int) -> None:
        """Entries are sent to the store."""
        where = self.servers[server]
        if where not in self.groups and where not in self.unsettled and where.broker.journal.entries:
            self.groups[where] = Group(where)

    @rule(server=SERVERS)
    def write_group(self, server: int) -> None:
        if (group := self.groups.get(self.servers[server])) is not None:
            group.write()

    @rule(server=SERVERS)
    def end_group(self, server: int) -> None:
        """The store has answered."""
        where = self.servers[server]
        group = self.groups.pop(where, None)
        if group is not None:
            group.write()
            group.tell(lambda place: group.outcomes[place])
        self.go_on(where)

    @rule(server=SERVERS, is_written=st.booleans())
    def lose_patience(self, server: int, is_written: bool) -> None:
        """The store does not answer. It may have the group, or may yet get it."""
        self.begin_group(server)
        where = self.servers[server]
        group = self.groups.pop(where, None)
        if group is not None:
            if is_written:
                group.write()
            self.unsettled[where] = group
            group.tell(lambda _: Uncertain(FAULT))
        self.go_on(where)

    @rule(server=SERVERS, is_written=st.booleans())
    def reconnect(self, server: int, is_written: bool) -> None:
        """The store has, or gets, what it was sent, or nothing of it."""
        where = self.servers[server]
        group = self.unsettled.pop(where, None)
        if group is not None:
            if is_written:
                group.write()
            where.broker.ownership.resolve()
            where.port.answer_all()
        self.go_on(where)

    @rule(server=SERVERS)
    def answer(self, server: int) -> None:
        if self.servers[server].port.asked and self.servers[server] not in self.unsettled:
            self.servers[server].port.answer(0)

    def go_on(self, server: Server) -> None:
        submissions = server.broker.submissions
        ready, submissions.ready_to_resume = submissions.ready_to_resume, {}
        for session in ready:
            server.broker.resume(session, server.now)

    # ----------------------------------------------------------------------------------------- lots

    @rule(data=st.data(), server=SERVERS)
    def adopt(self, data: st.DataObject, server: int) -> None:
        """A server adopts a lot. The one before does not know that yet."""
        where = self.servers[server]
        lots = sorted(lot for lot, owner in self.truth.owners.items() if owner is not where)
        able = [lot for lot in lots if lot not in where.lots]
        if able:
            where.adopt(data.draw(st.sampled_from(able)))

    @rule(server=SERVERS)
    def know(self, server: int) -> None:
        """A server asks which lots it has."""
        where = self.servers[server]
        for lot in sorted(where.lots):
            if self.truth.owners[lot] is not where:
                where.disown(lot)

    @rule(server=SERVERS)
    def take_lot(self, server: int) -> None:
        where = self.servers[server]
        where.broker.core.handles.own(self.truth.new_lots(where, 1))
        where.broker.core.handles.turn()

    @rule(server=SERVERS, on=st.booleans())
    def hold(self, server: int, on: bool) -> None:
        self.servers[server].hold(on)

    # -------------------------------------------------------------------------------------- workers

    @rule(server=SERVERS, completes=st.booleans())
    def run(self, server: int, completes: bool) -> None:
        """A worker takes a job, and completes it or goes away."""
        where = self.servers[server]
        names = [name for name, function in where.broker.functions.by_name.items() if function.waiting]
        if names:
            worker = where.worker(names[0])
            handle = worker.grab()
            if handle is not None and completes:
                assert worker(p.WorkComplete(handle, b"r")) == []
            worker.leave()

    # ------------------------------------------------------------------------------------ invariants

    @invariant()
    def all_answers_are_in_order(self) -> None:
        for clients in self.clients:
            for client in clients:
                self.heard(client, client.peer.read())

    @invariant()
    def the_counts_are_right(self) -> None:
        for server in self.servers:
            jobs = server.broker.jobs.by_number.values()
            for function in server.broker.functions.by_name.values():
                assert function.total == sum(job.function is function for job in jobs)
                waiting = function.waiting_jobs()
                assert len(waiting) == len(set(waiting)) == function.all_waiting + len(function.delayed)

    def teardown(self) -> None:
        """The store answers, and workers run everything."""
        for _ in range(6):
            for place, server in enumerate(self.servers):
                self.reconnect(place, True)
                self.end_group(place)
                self.know(place)
                self.hold(place, False)
                failed = server.broker.journal.drain_failed()
                server.broker.journal.entries[:0] = failed
                server.prompt = True
                server.commit()
                server.broker.ownership.resolve()
                server.commit()
                for name in list(server.broker.functions.by_name):
                    worker = server.worker(name)
                    while (handle := worker.grab()) is not None:
                        assert worker(p.WorkComplete(handle, b"r")) == []
                        server.commit()
                    worker.leave()
                self.all_answers_are_in_order()
        assert self.truth.jobs() == []
        for server, clients in zip(self.servers, self.clients, strict=True):
            assert not server.broker.jobs.by_number
            assert not server.broker.jobs.by_unique
            assert not server.broker.journal.has_failed
            assert not any(client.peer.session.attached for client in clients)
            for client in clients:
                assert client.answered == len(client.submitted)
                for submitted in client.submitted:
                    self.check_end(submitted)

    def check_end(self, submitted: Submitted) -> None:
        """A job was run if its submission was acknowledged."""
        if submitted.kind == "foreground" or not submitted.handle:
            assert submitted.ended
        else:
            number = number_of(submitted.handle)
            assert self.truth.ended(number) is not None, submitted
            assert lot_of(number) in self.truth.owners


SubmissionMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestSubmissions = SubmissionMachine.TestCase
