"""Whose client a call uses when none is named.

In order: that of the innermost ``connect()`` around it; else one that this module starts on first use:

* in async code one for each event loop and target (servers, and how they are used), which ends with the
  loop. A plain task of the loop holds it open until the loop's shutdown cancels it (asyncio), or a system
  task (trio);
* in sync code one for each process and target, closed when the interpreter exits. A forked child
  forgets it, since neither its thread nor its connections are the child's, and gets its own.

The target is that of ``connect()``, else that of ``configure()``, else the environment's. A context may be
carried where its client cannot be used (into a thread, from a thread into another event loop, into a forked
child): there the target still holds, with the client of that place.
"""

import asyncio
import atexit
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import TracebackType
from typing import Final, TypeAlias, TypedDict, Unpack
from weakref import WeakKeyDictionary

import anyio

from gearflow.client.client import Client
from gearflow.client.config import ServerAddress, default_servers, parse_servers
from gearflow.client.pool import default_spread
from gearflow.client.sync_client import SyncClient
from gearflow.protocol.constants import MAX_PAYLOAD
from gearflow.runtime.fork import call_in_children
from gearflow.security.tls import TLS, check_tls

Servers: TypeAlias = tuple[ServerAddress, ...]


class Limits(TypedDict, total=False):
    """How long a client waits, in seconds, and for how much, in bytes. See ``Client``."""

    connect_timeout: float
    answer_timeout: float
    heartbeat: float
    max_result: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where calls go: the arguments of a client which say that."""

    servers: Servers
    spread: bool = False
    discover: bool | None = None
    tls: TLS | bool | None = None
    token: str | None = field(default=None, repr=False)

    def client(self, **limits: Unpack[Limits]) -> Client:
        """A client of these servers."""
        return Client(
            self.servers, spread=self.spread, discover=self.discover, tls=self.tls, token=self.token, **limits
        )

    def sync_client(self, **limits: Unpack[Limits]) -> SyncClient:
        """A blocking client of these servers."""
        return SyncClient(
            self.servers, spread=self.spread, discover=self.discover, tls=self.tls, token=self.token, **limits
        )

    def but(
        self,
        *,
        servers: Servers | None = None,
        spread: bool | None = None,
        discover: bool | None = None,
        tls: TLS | bool | None = None,
        token: str | None = None,
    ) -> "Target":
        """The same with what is given in its place.

        Raises:
            TypeError: ``tls`` is none of these.
        """
        check_tls(tls)
        return Target(
            self.servers if servers is None else servers,
            self.spread if spread is None else spread,
            self.discover if discover is None else discover,
            self.tls if tls is None else tls,
            self.token if token is None else token,
        )


@dataclass(frozen=True, slots=True)
class _Scope:
    """A ``connect()`` that is open: its target, and its client with where that can be used."""

    target: Target
    client: Client | None = None
    loop: object = None
    sync_client: SyncClient | None = None
    process: int = 0


_scope: Final[ContextVar[_Scope | None]] = ContextVar("gearflow_scope", default=None)
_configured: Target | None = None
_open: Final[set["Connect"]] = set()
"""The blocks that are open in this process, in whatever task or thread."""


def configure(
    servers: str | Iterable[str | ServerAddress] | None = None,
    *,
    spread: bool | None = None,
    discover: bool | None = None,
    tls: TLS | bool | None = None,
    token: str | None = None,
) -> None:
    """Set the servers that this process uses outside of ``connect()`` blocks.

    New calls use them. Jobs that are under way stay where they are.

    Args:
        servers: The servers as ``host:port``, in the order of preference. None means GEARMAN_SERVERS again.
        spread: Whether the servers share the submissions. See ``Client``. None means GEARFLOW_SPREAD.
        discover: Whether the other servers of a group are used, too. See ``Client``. None means
            GEARFLOW_DISCOVER.
        tls: How to use TLS. See ``Client``. None means as the environment says.
        token: The token for servers that require one. See ``Client``. None means as the environment says.

    Raises:
        ValueError: An entry is not an address, or a variable of the environment is not valid.
        TypeError: An argument has another type.
    """
    global _configured
    if (servers, spread, discover, tls, token) == (None,) * 5:
        _configured = None
    else:
        addresses = None if servers is None else parse_servers(servers)
        _configured = _of_environment().but(
            servers=addresses, spread=spread, discover=discover, tls=tls, token=token
        )


def connect(
    *servers: str | ServerAddress,
    spread: bool | None = None,
    discover: bool | None = None,
    tls: TLS | bool | None = None,
    token: str | None = None,
    connect_timeout: float = 5.0,
    answer_timeout: float = 25.0,
    heartbeat: float = 10.0,
    max_result: int = MAX_PAYLOAD,
) -> "Connect":
    """Return a client for a block of code. All calls in the block use it.

    ``async with connect("10.0.0.7:4730") as client`` returns a ``Client``, and ``with connect(...) as
    client`` a ``SyncClient``. The client closes at the end of the block.

    The client holds for the task or thread that enters the block, and for the tasks that it starts there.
    Other threads and other tasks, such as those of a web framework's requests, go where ``configure()`` says.

    Args:
        servers: The servers as ``host:port``, in the order of preference. Without any, as ``configure()`` or
            the environment says.
        spread: Whether the servers share the submissions. See ``Client``. None means as ``configure()`` or
            the environment says.
        discover: Whether the other servers of a group are used, too. See ``Client``. None means as
            ``configure()`` or the environment says.
        tls: How to use TLS. See ``Client``. None means as ``configure()`` or the environment says.
        token: The token for servers that require one. See ``Client``. None means as ``configure()`` or the
            environment says.
        connect_timeout: Seconds to connect to a server. See ``Client``.
        answer_timeout: Seconds after which a server that does not answer a request counts as lost. See
            ``Client``.
        heartbeat: Seconds of silence after which a server is asked whether it is there. See ``Client``.
        max_result: Bytes in the largest result that the client takes. See ``Client``.

    Raises:
        ValueError: An entry is not an address.
        TypeError: An argument has another type.
    """
    addresses = parse_servers(servers) if servers else None
    target = _default().but(servers=addresses, spread=spread, discover=discover, tls=tls, token=token)
    limits = Limits(
        connect_timeout=connect_timeout,
        answer_timeout=answer_timeout,
        heartbeat=heartbeat,
        max_result=max_result,
    )
    return Connect(target, limits)


class Connect:
    """What ``connect()`` returns; to be entered once."""

    def __init__(self, target: Target, limits: Limits) -> None:
        self.target: Final = target
        self._limits = limits
        self._client: Client | None = None
        self._sync_client: SyncClient | None = None
        self._outer: _Scope | None = None

    async def __aenter__(self) -> Client:
        self._client = client = self.target.client(**self._limits)
        await client.__aenter__()
        self._enter(_Scope(self.target, client=client, loop=_running_loop()))
        return client

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._client is not None  # entered
        self._leave()
        return await self._client.__aexit__(kind, error, traceback)

    def __enter__(self) -> SyncClient:
        if _running_loop() is not None:
            raise RuntimeError(
                "'with connect(...)' inside a running event loop would block it; "
                "use 'async with connect(...)'"
            )
        self._sync_client = client = self.target.sync_client(**self._limits)
        client.__enter__()
        self._enter(_Scope(self.target, sync_client=client, process=os.getpid()))
        return client

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._sync_client is not None  # entered
        self._leave()
        self._sync_client.__exit__(kind, error, traceback)

    def _enter(self, scope: _Scope) -> None:
        self._outer = _scope.get()
        _scope.set(scope)
        _open.add(self)

    def _leave(self) -> None:
        _scope.set(self._outer)
        _open.discard(self)


def at_hand() -> Client | None:
    """The client that ``current`` returns, if it does not have to be started first."""
    scope = _scope.get()
    if scope is not None and scope.client is not None and scope.loop is _running_loop():
        return scope.client
    last = _last  # one look: other threads have event loops of their own
    if last is None or last.loop is not _running_loop():
        return None
    return last.client if last.target is (_default() if scope is None else scope.target) else None


async def current() -> Client:
    """The client that async code uses: that of the innermost ``async with connect()``, else the loop's."""
    scope = _scope.get()
    if scope is not None and scope.client is not None and scope.loop is _running_loop():
        return scope.client
    return await _client_of_this_loop(_default() if scope is None else scope.target)


def current_sync() -> SyncClient:
    """The client that sync code uses: that of the innermost ``with connect()``, else the process's."""
    scope = _scope.get()
    if scope is not None and scope.sync_client is not None and scope.process == os.getpid():
        return scope.sync_client
    return _client_of_this_process(_default() if scope is None else scope.target)


@contextmanager
def by_default(target: Target) -> Generator[None]:
    """Within the block, and the tasks that it starts, calls go there where no ``connect()`` is open.

    So the calls that a worker's tasks make go to the worker's own servers.
    """
    if _scope.get() is not None:
        yield
        return
    token = _scope.set(_Scope(target))
    try:
        yield
    finally:
        _scope.reset(token)


def target() -> Target:
    """Where calls go here: as the innermost ``connect()`` says, else by default."""
    scope = _scope.get()
    return _default() if scope is None else scope.target


def forbid_running_loop(twin: str) -> None:
    """Refuse a blocking call in a thread whose event loop it would stop.

    Args:
        twin: What to await instead, such as ``resize.acall``.

    Raises:
        RuntimeError: An event loop (asyncio's or trio's) runs in this thread.
    """
    if _running_loop() is not None:
        raise RuntimeError(
            f"a blocking call inside a running event loop would block it; use 'await {twin}(...)'"
        )


def _remedy(target: Target) -> str:
    """What who finds no server there has to know: ``connect()`` leads elsewhere, but not from everywhere."""
    if _configured is not None or target != _default():
        return ""
    for block in list(_open):  # a copy, as threads may enter and leave
        if block.target != target:
            servers = ",".join(map(str, block.target.servers))
            return (
                f"a connect() block to {servers} is open in this process, but it holds only for the task or "
                f"thread that entered it, and not here; gearflow.configure({servers!r}) holds everywhere"
            )
    return ""


def _default() -> Target:
    return _of_environment() if _configured is None else _configured


def _of_environment() -> Target:
    return _target(default_servers(), default_spread())  # a client looks for TLS and the token itself


@lru_cache(maxsize=8)
def _target(servers: Servers, spread: bool) -> Target:
    return Target(servers, spread)


def _running_loop() -> object | None:
    """What stands for the event loop that runs in this thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        if not _in_trio():
            return None
        import trio.lowlevel

        return trio.lowlevel.current_trio_token()


def _in_trio() -> bool:
    if "trio" not in sys.modules:  # trio is optional, and costs 0.1 s to import
        return False
    import trio.lowlevel

    return trio.lowlevel.in_trio_run()


# ------------------------------------------------------------------------------ one for an event loop


class _Held:
    """A client that a task of its own holds open."""

    def __init__(self, loop: object, target: Target, forget: Callable[[], object]) -> None:
        self.loop = loop
        self.target = target
        self.client = target.client()
        self.client.advise(partial(_remedy, target))
        self.is_open = anyio.Event()
        self._forget = forget
        self._task: asyncio.Task[None] | None = None  # asyncio itself keeps no task alive

    async def hold(self) -> None:
        global _last
        try:
            async with self.client:
                self.is_open.set()
                _last = self
                await anyio.sleep_forever()
        finally:
            if _last is self:
                _last = None
            self._forget()
            self.is_open.set()  # using the client now says that it is closed

    def start(self) -> None:
        if _in_trio():
            import trio.lowlevel

            trio.lowlevel.spawn_system_task(self.hold)
        else:
            # An empty context: the client is nobody's in particular.
            self._task = asyncio.get_running_loop().create_task(self.hold(), context=Context())


_last: _Held | None = None
"""The client that was started last, which most programs use alone."""

_held: Final[WeakKeyDictionary[object, dict[Target, _Held]]] = WeakKeyDictionary()


async def _client_of_this_loop(target: Target) -> Client:
    loop = _running_loop()
    held = _held.setdefault(loop, {})
    mine = held.get(target)
    if mine is None:
        mine = held[target] = _Held(loop, target, forget=lambda: held.pop(target, None))
        mine.start()
    if not mine.is_open.is_set():
        await mine.is_open.wait()
    return mine.client


# ---------------------------------------------------------------------------------- one for a process

_lock = threading.RLock()  # a signal handler may call, too
_sync_clients: Final[dict[Target, SyncClient]] = {}


def _client_of_this_process(target: Target) -> SyncClient:
    client = _sync_clients.get(target)
    if client is None:
        with _lock:
            client = _sync_clients.get(target)
            if client is None:
                mine = target.sync_client()
                mine.advise(partial(_remedy, target))
                mine.__enter__()
                client = _sync_clients.setdefault(target, mine)
                if client is not mine:  # a signal handler's, which came in between
                    mine.__exit__(None, None, None)
    return client


def _close_sync_clients() -> None:
    with _lock:
        while _sync_clients:
            _, client = _sync_clients.popitem()
            client.__exit__(None, None, None)


def _forget_sync_clients() -> None:
    global _lock
    _lock = threading.RLock()  # another thread of the parent may have held it
    _sync_clients.clear()


atexit.register(_close_sync_clients)
call_in_children(_forget_sync_clients)
