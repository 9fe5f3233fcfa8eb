"""Whose client a call uses when none is named.

In order: that of the innermost ``connect()`` around it; else one that this module starts on first use:

* in async code one for each event loop and list of servers, which ends with the loop. A plain task of the
  loop holds it open until the loop's shutdown cancels it (asyncio), or a system task (trio);
* in sync code one for each process and list of servers, closed when the interpreter exits. A forked child
  forgets it, since neither its thread nor its connections are the child's, and gets its own.

The list of servers is that of ``connect()``, else that of ``configure()``, else the environment's. A
context may be carried where its client cannot be used (into a thread, from a thread into another event
loop, into a forked child): there the list of servers still holds, with the client of that place.
"""

import asyncio
import atexit
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Final, TypeAlias
from weakref import WeakKeyDictionary

import anyio

from gearflow.client.address import ServerAddress, default_servers, parse_servers
from gearflow.client.client import Client
from gearflow.client.sync import SyncClient

Servers: TypeAlias = tuple[ServerAddress, ...]


@dataclass(frozen=True, slots=True)
class _Scope:
    """A ``connect()`` that is open: its servers, and its client with where that can be used."""

    servers: Servers
    client: Client | None = None
    loop: object = None
    sync_client: SyncClient | None = None
    process: int = 0


_scope: Final[ContextVar[_Scope | None]] = ContextVar("gearflow_scope", default=None)
_configured: Servers | None = None


def configure(servers: str | Iterable[str | ServerAddress] | None) -> None:
    """Set the servers that this process uses where no ``connect()`` says otherwise.

    Calls from now on use them; jobs under way stay where they are.

    Args:
        servers: As ``host:port``, in the order of preference; None: GEARMAN_SERVERS again.

    Raises:
        ValueError: An entry is no address.
    """
    global _configured
    _configured = None if servers is None else parse_servers(servers)


def connect(
    *servers: str | ServerAddress, connect_timeout: float = 5.0, answer_timeout: float = 30.0
) -> "Connect":
    """A client for a block of code, to which all calls in it go that name none.

    ``async with connect("10.0.0.7:4730") as client`` gives a ``Client``, ``with connect(...) as client`` a
    ``SyncClient``. Leaving the block closes it. Without servers: those of ``configure()`` or GEARMAN_SERVERS.
    The limits, in seconds, are those of ``Client``.

    Raises:
        ValueError: An entry is no address.
    """
    return Connect(parse_servers(servers) if servers else _default(), connect_timeout, answer_timeout)


class Connect:
    """What ``connect()`` returns; to be entered once."""

    def __init__(self, servers: Servers, connect_timeout: float, answer_timeout: float) -> None:
        self._servers = servers
        self._connect_timeout = connect_timeout
        self._answer_timeout = answer_timeout
        self._client: Client | None = None
        self._sync_client: SyncClient | None = None
        self._outer: _Scope | None = None

    async def __aenter__(self) -> Client:
        self._client = client = Client(
            self._servers, connect_timeout=self._connect_timeout, answer_timeout=self._answer_timeout
        )
        await client.__aenter__()
        self._enter(_Scope(self._servers, client=client, loop=_running_loop()))
        return client

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._client is not None  # entered
        _scope.set(self._outer)
        return await self._client.__aexit__(kind, error, traceback)

    def __enter__(self) -> SyncClient:
        if _running_loop() is not None:
            raise RuntimeError(
                "'with connect(...)' inside a running event loop would block it; "
                "use 'async with connect(...)'"
            )
        self._sync_client = client = SyncClient(
            self._servers, connect_timeout=self._connect_timeout, answer_timeout=self._answer_timeout
        )
        client.__enter__()
        self._enter(_Scope(self._servers, sync_client=client, process=os.getpid()))
        return client

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._sync_client is not None  # entered
        _scope.set(self._outer)
        self._sync_client.__exit__(kind, error, traceback)

    def _enter(self, scope: _Scope) -> None:
        self._outer = _scope.get()
        _scope.set(scope)


async def current() -> Client:
    """The client that async code uses: that of the innermost ``async with connect()``, else the loop's."""
    scope = _scope.get()
    if scope is not None and scope.client is not None and scope.loop is _running_loop():
        return scope.client
    return await _client_of_this_loop(_default() if scope is None else scope.servers)


def current_sync() -> SyncClient:
    """The client that sync code uses: that of the innermost ``with connect()``, else the process's."""
    scope = _scope.get()
    if scope is not None and scope.sync_client is not None and scope.process == os.getpid():
        return scope.sync_client
    return _client_of_this_process(_default() if scope is None else scope.servers)


@contextmanager
def servers_by_default(servers: Servers) -> Generator[None]:
    """Within the block, and the tasks that it starts, use these servers where no ``connect()`` is open.

    So the calls that a worker's tasks make go to the worker's own servers.
    """
    if _scope.get() is not None:
        yield
        return
    token = _scope.set(_Scope(servers))
    try:
        yield
    finally:
        _scope.reset(token)


def servers() -> Servers:
    """The servers that code here uses: those of the innermost ``connect()``, else the default ones."""
    scope = _scope.get()
    return _default() if scope is None else scope.servers


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


def _default() -> Servers:
    return default_servers() if _configured is None else _configured


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

    def __init__(self, servers: Servers, forget: Callable[[], object]) -> None:
        self.client = Client(servers)
        self.is_open = anyio.Event()
        self._forget = forget
        self._task: asyncio.Task[None] | None = None  # asyncio itself keeps no task alive

    async def hold(self) -> None:
        try:
            async with self.client:
                self.is_open.set()
                await anyio.sleep_forever()
        finally:
            self._forget()
            self.is_open.set()  # using the client now says that it is closed

    def start(self) -> None:
        if _in_trio():
            import trio.lowlevel

            trio.lowlevel.spawn_system_task(self.hold)
        else:
            # An empty context: the client is nobody's in particular.
            self._task = asyncio.get_running_loop().create_task(self.hold(), context=Context())


_held: Final[WeakKeyDictionary[object, dict[Servers, _Held]]] = WeakKeyDictionary()


async def _client_of_this_loop(servers: Servers) -> Client:
    loop = _running_loop()
    held = _held.setdefault(loop, {})
    mine = held.get(servers)
    if mine is None:
        mine = held[servers] = _Held(servers, forget=lambda: held.pop(servers, None))
        mine.start()
    if not mine.is_open.is_set():
        await mine.is_open.wait()
    return mine.client


# ---------------------------------------------------------------------------------- one for a process

_lock = threading.Lock()
_sync_clients: Final[dict[Servers, SyncClient]] = {}


def _client_of_this_process(servers: Servers) -> SyncClient:
    client = _sync_clients.get(servers)
    if client is None:
        with _lock:
            client = _sync_clients.get(servers)
            if client is None:
                client = SyncClient(servers)
                client.__enter__()
                _sync_clients[servers] = client
    return client


def _close_sync_clients() -> None:
    with _lock:
        while _sync_clients:
            _, client = _sync_clients.popitem()
            client.__exit__(None, None, None)


def _forget_sync_clients() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    _sync_clients.clear()


atexit.register(_close_sync_clients)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_sync_clients)
