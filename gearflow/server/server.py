"""``JobServer``, the server that an application runs: on its own event loop, or in a thread.

``async with`` runs an ``Engine`` on the caller's own asyncio loop. Under trio, and with plain ``with``, it
runs on a loop in a thread of its own (uvloop if it is installed).
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Self, Unpack

import anyio.to_thread

from gearflow.protocol.metrics import Metrics, MetricsRequest
from gearflow.runtime.eventloop import can_use_uvloop
from gearflow.runtime.loop_thread import LoopThread
from gearflow.server.engine import Engine, Timings
from gearflow.server.loading import Loading
from gearflow.server.settings import ServerOptions, ServerSettings

_YOUNG: Final = 25_000
"""Objects between two garbage collections of a server's process: a pause of a few milliseconds."""


_METRICS_TIMEOUT: Final = 10.0
"""Seconds that the server has to say what it has counted."""


class JobServer:
    """A Gearman job server that runs for the duration of a block.

        async with JobServer(port=0) as server:  # on asyncio's loop; under trio in a thread of its own
            ...server.address...

        with JobServer(port=0) as server:  # in a thread of its own
            ...

    Without ``data=``, jobs live in memory and are gone when the block ends. With it they live in a file in
    that folder, and a server that you start with it later has them. Pass settings as a ``ServerSettings``, as
    keywords, or both. Keywords take precedence.

    Args:
        settings: The settings. You can also pass each of its fields as a keyword.

    Attributes:
        settings: The settings that apply.

    Raises:
        OSError: On entering, if the port is taken or the address is not this machine's.
        StoreError: On entering, if the job file cannot be used.
        ValueError: On entering, if a TLS file or the file of tokens cannot be used.
        pydantic.ValidationError: On construction, if a setting is unknown or out of range.
    """

    def __init__(self, settings: ServerSettings | None = None, /, **overrides: Unpack[ServerOptions]) -> None:
        base = settings.model_dump(exclude_unset=True) if settings else {}
        self.settings: ServerSettings = ServerSettings.model_validate({**base, **overrides})
        self._engine: Engine | None = None
        self._thread: LoopThread[Engine] | None = None
        self._loading = Loading()

    @property
    def host(self) -> str:
        """The address on which the server listens."""
        return self.settings.host

    @property
    def port(self) -> int:
        """The port on which the server listens. Before it runs, the port of its settings."""
        return self._engine.port if self._engine else self.settings.port

    @property
    def restored(self) -> int:
        """The number of jobs that were in the file when the server started."""
        return self._engine.restored if self._engine else 0

    @property
    def loading(self) -> float | None:
        """How much of its file the server has read, from 0 to 1, while it reads. Else None. You can ask from
        any thread.
        """
        return self._loading.share

    @property
    def is_serving(self) -> bool:
        """Whether the server listens. You can ask from any thread."""
        return self._engine is not None and self._engine.is_serving

    @property
    def closed(self) -> str | None:
        """Why the server accepts no background jobs, for example after its disk failed. None if it does."""
        return self._engine.closed if self._engine is not None and self._engine.is_serving else None

    @property
    def address(self) -> str:
        """``host:port``, for clients and workers."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def metrics(self, functions: Sequence[str] | None = None, *, since: float | None = None) -> Metrics:
        """Return what the server has counted.

        You can call it from any thread, except that of the event loop on which the server runs. There, use
        ``await asyncio.to_thread(server.metrics)``.

        Args:
            functions: Selects functions. None means all.
            since: Includes the minutes of the history from this Unix time on. None means no history.

        Raises:
            RuntimeError: The server does not run, or this is the thread of its event loop.
            TimeoutError: The server is stopping, or has not answered for 10 seconds.
        """
        if self._engine is None:
            raise RuntimeError("the server does not run; enter its block first")
        if self._engine.is_here:
            raise RuntimeError("this thread serves; use await asyncio.to_thread(server.metrics)")
        names = None if functions is None else tuple(functions)
        return self._engine.metrics(MetricsRequest(functions=names, since=since)).result(_METRICS_TIMEOUT)

    def reload_tls(self) -> None:
        """Read the TLS files again, for new connections. You can call it from any thread.

        If a file cannot be used, the server logs that, and all settings stay as they are. Open connections
        stay.
        """
        if self._engine is not None and self.settings.tls_cert is not None:
            self._engine.post(self._engine.reload_tls)

    def reload_tokens(self) -> None:
        """Read ``token_file`` again. You can call it from any thread.

        If the file cannot be used, the server logs that, and all tokens stay as they are. Otherwise it closes
        the connections whose token is gone or has lost a right. New rights apply to open connections at once.
        """
        if self._engine is not None and self.settings.token_file is not None:
            self._engine.post(self._engine.reload_tokens)

    async def __aenter__(self) -> Self:
        if _in_asyncio():
            self._engine = Engine(self.settings, loading=self._loading)
            await self._engine.start()
        else:
            await anyio.to_thread.run_sync(self.__enter__)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._thread is not None:
            with anyio.CancelScope(shield=True):  # bounded: see Timings.last_write
                await anyio.to_thread.run_sync(self.__exit__)
        elif self._engine is not None:
            engine, self._engine = self._engine, None
            with anyio.CancelScope(shield=True):
                await engine.stop()

    def __enter__(self) -> Self:
        thread = engine_thread(self.settings, loading=self._loading)
        self._engine = thread.start()
        self._thread = thread
        return self

    def __exit__(self, *_: object) -> None:
        thread, self._thread, self._engine = self._thread, None, None
        if thread is not None:
            thread.stop()


def engine_thread(
    settings: ServerSettings, timings: Timings | None = None, loading: Loading | None = None
) -> LoopThread[Engine]:
    """An engine on an event loop in a thread of its own. ``start`` raises as ``JobServer`` does."""
    return LoopThread(partial(_running, settings, timings, loading), "server", "JobServer", grace=0.0)


@asynccontextmanager
async def _running(
    settings: ServerSettings, timings: Timings | None, loading: Loading | None
) -> AsyncGenerator[Engine]:
    """An engine that listens, on the loop that runs here."""
    engine = Engine(settings, timings, loading=loading)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def _in_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def tune_garbage_collection() -> None:
    """Tune Python's garbage collector for a process that only runs a job server.

    Reference counting frees jobs and sessions. Objects that survive a collection of young objects are hidden
    from the collector, so that each collection looks at ``_YOUNG`` objects at most, however many jobs wait.
    (This does not apply to asyncio's own loop, whose transports are cycles and would never be freed.) Call it
    only in a process of its own, because an application has its own settings.
    """

    def after(phase: str, info: Mapping[str, int]) -> None:
        if phase == "stop":
            gc.freeze()

    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 1000, 1000)
    if can_use_uvloop():
        gc.callbacks.append(after)
