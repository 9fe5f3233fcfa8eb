"""Every kind of request, with many jobs, functions or connections around it: what each costs.

``KINDS`` has for each kind how to prepare so many objects, and then so many requests about them, as turns of
the shell. ``test_costs`` counts their steps, and ``tests.benchmarks.requests`` takes their time.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import inf

from gearflow.broker import Broker, Session, SizeLimits
from gearflow.broker.local_port import LocalPort
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol import workers
from gearflow.protocol.codec import encode
from gearflow.protocol.packets import Packet
from gearflow.server import admin
from gearflow.stores.memory import MemoryStore

Turn = Callable[[], object]
Turns = Iterator[Turn]

_RECEIVED = 1 << 18
"""Bytes that the event loop receives at most at once."""

PREFIX = b"H:test:"


class Shell:
    """A broker with what the shell does for it. Knows the longest turn since ``measure``."""

    def __init__(self, late_after: float = inf) -> None:
        self.now = 1000.0
        self.store = MemoryStore()
        self.broker = Broker(PREFIX, self._answer, SizeLimits(), LocalPort(self.store))
        self.broker.turns.is_late = lambda: time.thread_time() - self._began > late_after
        self.sent: list[bytes] | None = None  # all packets, if they are wanted
        self.longest = 0.0
        self.handled = 0.0
        self._began = 0.0
        self._jobs = 0

    def turn(self, call: Turn) -> None:
        """One turn of the event loop, and those that it leaves to be done."""
        self.time(call)
        broker = self.broker
        while broker.turns.waiting or broker.journal.entries or broker.submissions.ready_to_resume:
            self.time(self._commit)
            ready, broker.submissions.ready_to_resume = broker.submissions.ready_to_resume, {}
            for session in ready:
                self.time(partial(broker.resume, session, self.now))
            if broker.turns.waiting:
                self.time(self._proceed)
        for session in broker.outgoing.dirty:
            if self.sent is not None:
                self.sent += map(bytes, session.outbox)
            session.outbox.clear()
        broker.outgoing.dirty.clear()

    def pass_time(self, seconds: float) -> None:
        """Time has passed: what is due is done."""
        self.now += seconds
        self.turn(lambda: self.broker.tick(self.now))
        while (due := self.broker.next_due()) is not None and due <= self.now:
            self.turn(lambda: self.broker.tick(self.now))

    def connect(self) -> Session:
        return self.broker.connected(7, "peer")

    def leave(self, session: Session) -> None:
        self.turn(lambda: self.broker.disconnected(session, self.now))

    def send(self, session: Session, *sent: Packet | bytes) -> None:
        """A connection sends packets, or lines of text, as fast as it can."""
        data = b"".join(item if isinstance(item, bytes) else encode(item) for item in sent)
        for start in range(0, len(data), _RECEIVED):
            piece = data[start : start + _RECEIVED]
            self.turn(partial(self.broker.receive, session, piece, self.now))

    def worker(self, *functions: bytes) -> Session:
        session = self.connect()
        self.send(session, *map(p.CanDo, functions))
        return session

    def jobs(self, count: int, functions: list[bytes] | None = None, client: Session | None = None) -> None:
        """So many background jobs, or attached ones of a client."""
        names = functions or [b"work"] * count
        kind = p.SubmitJobBg if client is None else p.SubmitJob
        self.send(client or self.connect(), *(kind(name, b"", b"x") for name in names))
        self._jobs += count

    def running(self, count: int, client: Session | None = None) -> Session:
        """A worker that has so many jobs."""
        worker = self.worker(b"work")
        self.jobs(count, client=client)
        self.send(worker, *[p.GrabJob()] * count)
        return worker

    def _answer(self, line: bytes) -> bytes | Iterator[bytes]:
        return admin.answer(self.broker, line)

    def _commit(self) -> None:
        entries = self.broker.journal.drain()
        self.store.write([change for change, _ in entries if change is not None])
        for _, done in entries:
            if done is not None:
                done(None)

    def _proceed(self) -> None:
        session = self.broker.proceed(self.now)
        if session is not None:
            self.broker.resume(session, self.now)

    def time(self, call: Turn) -> None:
        """Do one turn of the event loop."""
        self._began = time.thread_time()
        call()
        seconds = time.thread_time() - self._began
        self.longest = max(self.longest, seconds)
        self.handled += seconds


@dataclass(frozen=True)
class Kind:
    """A kind of request.

    ``prepare`` makes so many objects, and the requests, which ``send``s them when it is continued. There are
    as many as objects, but of those that are about all objects there are ``few``, or just one.
    """

    prepare: Callable[[Shell, int], Iterator[None]]
    few: int = 0


def names(count: int) -> list[bytes]:
    return [b"f%d" % number for number in range(count)]


def handles(count: int) -> list[bytes]:
    return [b"%b%d" % (PREFIX, number + 1) for number in range(count)]


def call(function: bytes, request: api.Message) -> Packet:
    return p.SubmitJob(function, b"", request.to_wire())


def _submissions(shell: Shell, n: int) -> Iterator[None]:
    shell.jobs(n)
    yield
    shell.jobs(n)


def _own_uniques(shell: Shell, n: int) -> Iterator[None]:
    client = shell.connect()
    yield
    shell.send(client, *(p.SubmitJobBg(b"work", name, b"x") for name in names(n)))


def _one_unique(shell: Shell, n: int) -> Iterator[None]:
    client = shell.connect()
    yield
    shell.send(client, *[p.SubmitJob(b"work", b"one", b"x")] * n)


def _one_unique_of_many_functions(shell: Shell, n: int) -> Iterator[None]:
    client = shell.connect()
    yield
    shell.send(client, *(p.SubmitJob(name, b"one", b"x") for name in names(n)))
    shell.send(client, *[p.GetStatusUnique(b"one")] * n)


def _one_unique_by_many_clients(shell: Shell, n: int) -> Iterator[None]:
    clients = [shell.connect() for _ in range(n)]
    yield
    for client in clients:
        shell.send(client, p.SubmitJob(b"work", b"one", b"x"))
    for client in clients:
        shell.leave(client)


def _functions(shell: Shell, n: int) -> Iterator[None]:
    client = shell.connect()
    yield
    shell.send(client, *(p.SubmitJob(name, b"", b"x") for name in names(n)))


def _status_of_uniques(shell: Shell, n: int) -> Iterator[None]:
    client = shell.connect()
    shell.send(client, *(p.SubmitJobBg(name, name, b"x") for name in names(n)))
    yield
    shell.send(client, *map(p.GetStatusUnique, names(n)))


def _status_of_jobs(shell: Shell, n: int) -> Iterator[None]:
    shell.jobs(n)
    yield
    shell.send(shell.connect(), *map(p.GetStatus, handles(n)))


def _runs(shell: Shell, n: int) -> Iterator[None]:
    shell.jobs(n)
    worker = shell.worker(b"work")
    yield
    for handle in handles(n):
        shell.send(worker, p.GrabJob(), p.WorkStatus(handle, b"1", b"2"), p.WorkComplete(handle, b"r"))


def _runs_of_many_functions(shell: Shell, n: int) -> Iterator[None]:
    shell.jobs(n, names(n))
    workers = [shell.worker(name) for name in names(n)]
    yield
    for worker, handle in zip(workers, handles(n), strict=True):
        shell.send(worker, p.GrabJob(), p.WorkException(handle, b"r"))


def _wakes(shell: Shell, n: int) -> Iterator[None]:
    workers = [shell.worker(b"work", b"other") for _ in range(n)]
    for worker in workers:
        shell.send(worker, p.PreSleep())
    yield
    client = shell.connect()
    for worker in workers:
        shell.send(client, p.SubmitJobBg(b"work", b"", b"x"))
        shell.send(worker, p.GrabJob())


def _wakes_without_reaction(shell: Shell, n: int) -> Iterator[None]:
    for _ in range(n):
        shell.send(shell.worker(b"work"), p.PreSleep())
    yield
    shell.jobs(1)
    for _ in range(4):
        shell.pass_time(1)


def _abilities(shell: Shell, n: int) -> Iterator[None]:
    worker = shell.connect()
    yield
    shell.send(worker, *map(p.CanDo, names(n)))
    shell.send(worker, *map(p.CantDo, names(n)))


def _reset_of_abilities(shell: Shell, n: int) -> Iterator[None]:
    worker = shell.worker(*names(n))
    yield
    shell.send(worker, p.PreSleep(), p.GrabJob(), p.ResetAbilities())


def _grabs_of_many(shell: Shell, n: int) -> Iterator[None]:
    worker, other = shell.worker(*names(n)), shell.worker(*names(n))
    yield
    shell.send(other, p.PreSleep())
    for name in names(n):
        shell.jobs(1, [name])
        shell.send(worker, p.PreSleep(), p.GrabJob())


def _grabs_after_others(shell: Shell, n: int) -> Iterator[None]:
    workers = [shell.worker(*names(n)) for _ in range(3)]
    for _ in range(2):
        shell.jobs(n, names(n))
    shell.send(workers[0], *[p.GrabJob()] * n * 2)
    yield
    shell.send(workers[1], p.PreSleep())
    shell.send(workers[2], p.GrabJob())


def _paused(shell: Shell, n: int) -> Iterator[None]:
    client = shell.connect()
    yield
    for paused in True, False:
        requests = (api.PauseRequest(function=name.decode(), paused=paused) for name in names(n))
        shell.send(client, *(call(api.PAUSE, request) for request in requests))


def _results(shell: Shell, n: int) -> Iterator[None]:
    worker = shell.running(1)
    request = call(api.RESULT, api.ResultRequest(handle=handles(1)[0].decode(), timeout=9))
    client = shell.connect()
    yield
    shell.send(client, *[request] * n)
    shell.send(worker, p.WorkComplete(handles(1)[0], b"r"))


def _results_that_time_out(shell: Shell, n: int) -> Iterator[None]:
    shell.jobs(1)
    request = call(api.RESULT, api.ResultRequest(handle=handles(1)[0].decode(), timeout=9))
    client = shell.connect()
    yield
    shell.send(client, *[request] * n)
    shell.pass_time(10)


def _results_that_are_there(shell: Shell, n: int) -> Iterator[None]:
    worker = shell.running(n)
    shell.send(worker, *(p.WorkComplete(handle, b"r") for handle in handles(n)))
    yield
    requests = (api.ResultRequest(handle=handle.decode()) for handle in handles(n))
    shell.send(worker, *(call(api.RESULT, request) for request in requests))


def _infos(shell: Shell, n: int) -> Iterator[None]:
    shell.jobs(n)
    client = shell.connect()
    yield
    requests = (api.InfoRequest(handle=handle.decode()) for handle in handles(n))
    shell.send(client, *(call(api.INFO, request) for request in requests))


def _reuses(shell: Shell, n: int) -> Iterator[None]:
    worker = shell.connect()
    shell.send(worker, p.CanDo(b"work"), *(p.SubmitJobBg(b"work", name, b"x") for name in names(n)))
    shell.send(worker, *[p.GrabJob()] * n, *(p.WorkComplete(handle, b"r") for handle in handles(n)))
    yield
    requests = (api.SubmitRequest(function="work", unique=name.decode(), reuse=True) for name in names(n))
    for request in requests:
        shell.send(worker, p.SubmitJob(api.SUBMIT, b"", request.to_wire() + b"\nx"))


def _handed_back(shell: Shell, n: int) -> Iterator[None]:
    worker = shell.running(n)
    yield
    retries = (api.RetryRequest(handle=handle.decode()) for handle in handles(n))
    shell.send(worker, *(call(api.RETRY, request) for request in retries))
    shell.send(worker, *[p.GrabJob()] * n)
    releases = (api.ReleaseRequest(handle=handle.decode()) for handle in handles(n))
    shell.send(worker, *(call(api.RELEASE, request) for request in releases))


def _cancels(shell: Shell, n: int) -> Iterator[None]:
    shell.jobs(n)
    client = shell.connect()
    yield
    several = [*handles(n)[::2], *reversed(handles(n)[1::2])]
    requests = (api.CancelRequest(handle=handle.decode()) for handle in several)
    shell.send(client, *(call(api.CANCEL, request) for request in requests))


def _commands(shell: Shell, n: int) -> Iterator[None]:
    client = shell.connect()
    shell.jobs(n)
    yield
    for command in b"create function %b\n", b"maxqueue %b 5\n", b"drop function %b\n":
        shell.send(client, *(command % name for name in names(n)))
    shell.send(client, *(b"cancel job %b\n" % handle for handle in handles(n)))


def _report_of(line: bytes) -> Callable[[Shell, int], Iterator[None]]:
    def report(shell: Shell, n: int) -> Iterator[None]:
        client = shell.connect()
        for name in names(n):
            shell.send(client, p.SubmitJobBg(name, name, b"x"))
            shell.worker(name)
        yield
        shell.send(client, *[line] * 10)

    return report


def _workers(shell: Shell, n: int) -> Iterator[None]:
    for name in names(n):
        shell.worker(name)
    client = shell.connect()
    yield
    shell.send(client, *[call(workers.WORKERS, workers.WorkersRequest())] * 10)


def _worker_of_many(shell: Shell, n: int) -> Iterator[None]:
    shell.worker(*names(n))
    client = shell.connect()
    yield
    shell.send(client, *[call(workers.WORKERS, workers.WorkersRequest())] * 10)


def _server_info(shell: Shell, n: int) -> Iterator[None]:
    client = shell.connect()
    shell.send(client, *(call(api.PAUSE, api.PauseRequest(function=name.decode())) for name in names(n)))
    yield
    shell.send(client, *[call(api.INFO, api.InfoRequest())] * 10)


def _purge(shell: Shell, n: int) -> Iterator[None]:
    shell.jobs(n)
    client = shell.connect()
    yield
    shell.send(client, call(api.PURGE, api.PurgeRequest(function="work")))


def _purges_of_others(shell: Shell, n: int) -> Iterator[None]:
    shell.jobs(n)
    client = shell.connect()
    yield
    shell.send(client, *[call(api.PURGE, api.PurgeRequest(function="other"))] * n)


def _dead(shell: Shell, n: int) -> Session:
    worker = shell.running(n)
    shell.send(worker, *(p.WorkFail(handle) for handle in handles(n)))
    return worker


def _dead_lists(shell: Shell, n: int) -> Iterator[None]:
    client = _dead(shell, n)
    yield
    for after in handles(n):
        request = api.DeadRequest(action="list", function="work", after=after.decode(), limit=1)
        shell.send(client, call(api.DEAD, request))


def _dead_replay(shell: Shell, n: int) -> Iterator[None]:
    client = _dead(shell, n)
    yield
    shell.send(client, call(api.DEAD, api.DeadRequest(action="replay", function="work")))


def _dead_purge(shell: Shell, n: int) -> Iterator[None]:
    client = _dead(shell, n)
    yield
    shell.send(client, call(api.DEAD, api.DeadRequest(action="purge", function="work")))


def _detaches(shell: Shell, n: int) -> Iterator[None]:
    client = shell.connect()
    shell.send(client, *[p.SubmitJob(b"work", b"one", b"x")] * n)
    request = call(api.DETACH, api.DetachRequest(handle=handles(1)[0].decode()))
    yield
    shell.send(client, *[request] * n)


def _end_for_many(shell: Shell, n: int) -> Iterator[None]:
    for _ in range(n):
        shell.send(shell.connect(), p.SubmitJob(b"work", b"one", b"x"))
    worker = shell.worker(b"work")
    shell.send(worker, p.GrabJob())
    yield
    shell.send(worker, p.WorkComplete(handles(1)[0], b"r"))


def _cancel_for_many(shell: Shell, n: int) -> Iterator[None]:
    for _ in range(n):
        shell.send(shell.connect(), p.SubmitJob(b"work", b"one", b"x"))
    yield
    shell.send(shell.connect(), call(api.CANCEL, api.CancelRequest(handle=handles(1)[0].decode())))


def _client_leaves(shell: Shell, n: int) -> Iterator[None]:
    client = shell.connect()
    shell.jobs(n, client=client)
    yield
    shell.leave(client)


def _client_of_functions_leaves(shell: Shell, n: int) -> Iterator[None]:
    client = shell.connect()
    shell.jobs(n, names(n), client)
    yield
    shell.leave(client)


def _worker_leaves(shell: Shell, n: int) -> Iterator[None]:
    worker = shell.running(n)
    yield
    shell.leave(worker)


def _worker_of_many_leaves(shell: Shell, n: int) -> Iterator[None]:
    worker = shell.worker(*names(n))
    shell.send(worker, p.PreSleep())
    yield
    shell.leave(worker)


def _expiry(shell: Shell, n: int) -> Iterator[None]:
    client = shell.connect()
    request = api.SubmitRequest(function="work", delay=5, expires=9, detached=True).to_wire() + b"\nx"
    shell.send(client, *[p.SubmitJob(api.SUBMIT, b"", request)] * n)
    yield
    shell.pass_time(6)
    shell.pass_time(4)


def _background_options(shell: Shell, n: int) -> Iterator[None]:
    client = shell.connect()
    request = api.SubmitRequest(function="work", keep=0, detached=True).to_wire() + b"\nx"
    yield
    shell.send(client, *[p.SubmitJobBg(api.SUBMIT, b"", request)] * n)


def _time_limits(shell: Shell, n: int) -> Iterator[None]:
    worker = shell.connect()
    shell.send(worker, p.CanDoTimeout(b"work", b"1000"))
    shell.jobs(n)
    shell.send(worker, *[p.GrabJob()] * n)
    yield
    shell.pass_time(2)


def _events(shell: Shell, n: int) -> Iterator[None]:
    worker = shell.running(n)
    yield
    shell.send(worker, *[p.SubmitJob(api.EVENTS, b"", b"")] * n)


def _kept_of_one_unique(shell: Shell, n: int) -> Iterator[None]:
    worker = shell.worker(b"work")
    yield
    for handle in handles(n):
        shell.send(worker, p.SubmitJobBg(b"work", b"one", b"x"), p.GrabJob(), p.WorkComplete(handle, b"r"))
    while shell.store.expire(shell.now + 1e9, 500):
        pass


def _small(shell: Shell, n: int) -> Iterator[None]:
    for _ in range(n):
        shell.connect()
    client = shell.connect()
    yield
    each = p.SetClientId(b"me"), p.OptionReq(b"exceptions"), p.EchoReq(b"x"), p.WorkFail(b"H:test:99999999")
    shell.send(client, *each * n)


def _read(handle: bytes) -> Packet:
    return call(api.STREAM, api.StreamRequest(handle=handle.decode()))


def _one_read_job(shell: Shell, readers: int) -> tuple[Session, list[Session], list[bytes]]:
    """A worker with one attached job, connections that read it, and the handles of their calls."""
    worker = shell.running(1, client=shell.connect())
    sessions = [shell.connect() for _ in range(readers)]
    for session in sessions:
        shell.send(session, _read(handles(1)[0]))
    return worker, sessions, [reader for session in sessions for reader in session.readers]


def _parts_of_plain_jobs(shell: Shell, n: int) -> Iterator[None]:
    worker = shell.running(n, client=shell.connect())
    yield
    for handle in handles(n):
        shell.send(worker, p.WorkData(handle, b"x"), p.WorkComplete(handle, b""))


def _parts_for_a_reader(shell: Shell, n: int) -> Iterator[None]:
    worker, (client,), (reader,) = _one_read_job(shell, 1)
    yield
    for position in range(1, n + 1):
        shell.send(worker, p.WorkData(handles(1)[0], b"x"))
        shell.send(client, p.WorkStatus(reader, b"%d" % position, b"0"))


def _parts_far_ahead(shell: Shell, n: int) -> Iterator[None]:
    worker, (client,), (reader,) = _one_read_job(shell, 1)
    yield
    shell.send(worker, *[p.WorkData(handles(1)[0], b"x")] * n)
    for position in range(1, n + 1):
        shell.send(client, p.WorkStatus(reader, b"%d" % position, b"0"))


def _parts_that_are_kept_late(shell: Shell, n: int) -> Iterator[None]:
    client, worker, reader = shell.connect(), shell.worker(b"work"), shell.connect()
    shell.send(client, p.SubmitJob(b"work", b"one", b"x"))
    shell.send(worker, p.GrabJob())
    shell.send(reader, _read(handles(1)[0]))
    shell.send(worker, *[p.WorkData(handles(1)[0], b"x")] * n)
    request = api.SubmitRequest(function="work", unique="one", detached=True, keep=60).to_wire() + b"\nx"
    shell.send(client, p.SubmitJobBg(api.SUBMIT, b"", request))
    shell.send(worker, p.WorkData(handles(1)[0], b"x"))
    (reading,) = reader.readers
    yield
    for position in range(1, n + 1):
        shell.send(reader, p.WorkStatus(reading, b"%d" % position, b"0"))


def _part_for_many_readers(shell: Shell, n: int) -> Iterator[None]:
    worker, clients, readers = _one_read_job(shell, n)
    yield
    shell.send(worker, *[p.WorkData(handles(1)[0], b"x")] * 3)
    for client, reader in zip(clients, readers, strict=True):
        for position in (b"1", b"2", b"3"):
            shell.send(client, p.WorkStatus(reader, position, b"0"))


def _slowest_of_many_readers(shell: Shell, n: int) -> Iterator[None]:
    worker, clients, readers = _one_read_job(shell, n)
    shell.send(worker, *[p.WorkData(handles(1)[0], b"x")] * 64)
    for client, reader in zip(clients[1:], readers[1:], strict=True):
        shell.send(client, p.WorkStatus(reader, b"64", b"0"))
    yield
    for number in range(n):
        shell.send(clients[0], p.WorkStatus(readers[0], b"%d" % (number % 64), b"0"))


def _readers_come_and_go(shell: Shell, n: int) -> Iterator[None]:
    worker, _, _ = _one_read_job(shell, 0)
    shell.send(worker, p.WorkData(handles(1)[0], b"x"))
    yield
    for _ in range(n):
        client = shell.connect()
        shell.send(client, _read(handles(1)[0]))
        (reader,) = client.readers
        shell.send(client, call(api.DETACH, api.DetachRequest(handle=reader.decode())))


def _end_for_many_readers(shell: Shell, n: int) -> Iterator[None]:
    worker, _, _ = _one_read_job(shell, n)
    shell.send(worker, p.WorkData(handles(1)[0], b"x"))
    yield
    shell.send(worker, p.WorkComplete(handles(1)[0], b"r"))


def _run_for_many_readers(shell: Shell, n: int) -> Iterator[None]:
    worker, _, _ = _one_read_job(shell, n)
    shell.send(worker, p.WorkData(handles(1)[0], b"x"))
    yield
    shell.leave(worker)
    shell.send(shell.worker(b"work"), p.GrabJob())


def _client_with_readers_leaves(shell: Shell, n: int) -> Iterator[None]:
    worker = shell.running(1, client=shell.connect())
    client = shell.connect()
    shell.send(client, *[_read(handles(1)[0])] * n)
    shell.send(worker, p.WorkData(handles(1)[0], b"x"))
    yield
    shell.leave(client)


def _client_with_places_leaves(shell: Shell, n: int) -> Iterator[None]:
    client = shell.connect()
    request = api.SubmitRequest(function="work", parts="wait").to_wire() + b"\nx"
    shell.send(client, *[p.SubmitJob(api.SUBMIT, b"", request)] * n)
    worker = shell.worker(b"work")
    shell.send(worker, *[p.GrabJob()] * n)
    for handle in handles(n):
        shell.send(worker, p.WorkData(handle, b"x"), p.WorkComplete(handle, b""))
    yield
    shell.leave(client)


def _kept_parts(shell: Shell, n: int) -> Iterator[None]:
    request = api.SubmitRequest(function="work", detached=True, stream_keep=800).to_wire() + b"\nx"
    shell.send(shell.connect(), p.SubmitJobBg(api.SUBMIT, b"", request))
    worker, client = shell.worker(b"work"), shell.connect()
    shell.send(worker, p.GrabJob())
    yield
    shell.send(worker, *[p.WorkData(handles(1)[0], b"x")] * n, p.WorkComplete(handles(1)[0], b""))
    shell.send(client, *[_read(handles(1)[0])] * n)


def _replay(shell: Shell, n: int) -> Iterator[None]:
    worker, client = shell.running(1), shell.connect()
    for _ in range(n):
        shell.send(worker, p.WorkData(handles(1)[0], b"x"))
    shell.send(worker, p.WorkComplete(handles(1)[0], b""))
    yield
    shell.send(client, _read(handles(1)[0]))
    for position in range(16, n, 16):
        for reader in list(client.readers):
            shell.send(client, p.WorkStatus(reader, b"%d" % position, b"0"))


def _watched(shell: Shell, n: int) -> tuple[Session, list[Session]]:
    worker = shell.running(1, client=shell.connect())
    watchers = [shell.connect() for _ in range(n)]
    for watcher in watchers:
        shell.send(watcher, call(api.WATCH, api.WatchRequest(handle=handles(1)[0].decode(), parts=True)))
    return worker, watchers


def _watchers(shell: Shell, n: int) -> Iterator[None]:
    worker, watchers = _watched(shell, n)
    handle = handles(1)[0]
    yield
    shell.send(worker, p.WorkData(handle, b"x"), p.WorkStatus(handle, b"1", b"2"))
    for watcher in watchers:
        shell.leave(watcher)


def _slow_watchers(shell: Shell, n: int) -> Iterator[None]:
    shell.broker.outgoing.unsent = lambda _: 1 << 30
    worker, _ = _watched(shell, n)
    handle = handles(1)[0]
    yield
    shell.send(worker, p.WorkData(handle, b"x"), p.WorkStatus(handle, b"1", b"2"))
    shell.pass_time(0.15)
    shell.broker.outgoing.unsent = lambda _: 0
    shell.pass_time(0.15)


def _end_for_many_watchers(shell: Shell, n: int) -> Iterator[None]:
    worker, _ = _watched(shell, n)
    yield
    shell.send(worker, p.WorkComplete(handles(1)[0], b"r"))


KINDS: dict[str, Kind] = {
    "submit": Kind(_submissions),
    "submit, each a unique of its own": Kind(_own_uniques),
    "submit, each a function of its own": Kind(_functions),
    "join a job": Kind(_one_unique),
    "join a job and leave": Kind(_one_unique_by_many_clients),
    "one unique of many functions": Kind(_one_unique_of_many_functions),
    "GET_STATUS": Kind(_status_of_jobs),
    "GET_STATUS_UNIQUE": Kind(_status_of_uniques),
    "grab, status, complete": Kind(_runs),
    "grab, exception, of many functions": Kind(_runs_of_many_functions),
    "submit, wake, grab": Kind(_wakes),
    "wake workers that do not react": Kind(_wakes_without_reaction),
    "CAN_DO, CANT_DO": Kind(_abilities),
    "PRE_SLEEP, GRAB_JOB, RESET_ABILITIES": Kind(_reset_of_abilities, few=1),
    "PRE_SLEEP, GRAB_JOB of many functions": Kind(_grabs_of_many),
    "PRE_SLEEP, GRAB_JOB after others": Kind(_grabs_after_others, few=1),
    "SET_CLIENT_ID, OPTION, ECHO, WORK_FAIL": Kind(_small),
    "end of a job with many clients": Kind(_end_for_many, few=1),
    "cancel of a job with many clients": Kind(_cancel_for_many, few=1),
    "client with many jobs leaves": Kind(_client_leaves, few=1),
    "client with many functions leaves": Kind(_client_of_functions_leaves, few=1),
    "worker with many jobs leaves": Kind(_worker_leaves, few=1),
    "worker with many functions leaves": Kind(_worker_of_many_leaves, few=1),
    "jobs become due and expire": Kind(_expiry),
    "runs are over their time": Kind(_time_limits),
    "results of one unique, and their expiry": Kind(_kept_of_one_unique),
    "gearflow:submit in the background": Kind(_background_options),
    "gearflow:submit reuse": Kind(_reuses),
    "gearflow:result": Kind(_results),
    "gearflow:result, timed out": Kind(_results_that_time_out),
    "gearflow:result, ended": Kind(_results_that_are_there),
    "gearflow:info": Kind(_infos),
    "gearflow:info of the server": Kind(_server_info, few=10),
    "gearflow:retry, release": Kind(_handed_back),
    "gearflow:cancel": Kind(_cancels),
    "gearflow:detach": Kind(_detaches),
    "gearflow:pause": Kind(_paused),
    "gearflow:purge": Kind(_purge, few=1),
    "gearflow:purge of another function": Kind(_purges_of_others),
    "gearflow:dead list": Kind(_dead_lists),
    "gearflow:dead replay": Kind(_dead_replay, few=1),
    "gearflow:dead purge": Kind(_dead_purge, few=1),
    "gearflow:events": Kind(_events),
    "gearflow:workers": Kind(_workers, few=10),
    "gearflow:workers, one with many functions": Kind(_worker_of_many, few=10),
    "WORK_DATA of plain jobs": Kind(_parts_of_plain_jobs),
    "gearflow:stream, one reader": Kind(_parts_for_a_reader),
    "gearflow:stream, a worker far ahead": Kind(_parts_far_ahead),
    "gearflow:stream, parts of a job that is kept late": Kind(_parts_that_are_kept_late),
    "gearflow:stream, many readers": Kind(_part_for_many_readers),
    "gearflow:stream, the slowest of many readers": Kind(_slowest_of_many_readers),
    "gearflow:stream, readers come and go": Kind(_readers_come_and_go),
    "gearflow:stream, end of a job with many readers": Kind(_end_for_many_readers, few=1),
    "gearflow:stream, another run of a job with many readers": Kind(_run_for_many_readers),
    "gearflow:stream, client with many readers leaves": Kind(_client_with_readers_leaves, few=1),
    "gearflow:stream, client with many places leaves": Kind(_client_with_places_leaves, few=1),
    "gearflow:stream, kept parts": Kind(_kept_parts),
    "gearflow:stream, replay": Kind(_replay),
    "gearflow:watch": Kind(_watchers),
    "gearflow:watch, slow ones": Kind(_slow_watchers),
    "gearflow:watch, end of a job with many": Kind(_end_for_many_watchers, few=1),
    "create, maxqueue, drop, cancel": Kind(_commands),
    "status": Kind(_report_of(b"status\n"), few=10),
    "prioritystatus": Kind(_report_of(b"prioritystatus\n"), few=10),
    "workers": Kind(_report_of(b"workers\n"), few=10),
    "show jobs": Kind(_report_of(b"show jobs\n"), few=10),
    "show unique jobs": Kind(_report_of(b"show unique jobs\n"), few=10),
}
