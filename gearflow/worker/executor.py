"""One call of a task: payload in, result out, within its time.

An ``async`` task runs on the loop, a ``def`` task in a thread, which also does its validation, so that a
large payload does not hold up the loop. The thread sees the context variables of the worker. A ``def`` task
with ``executor="process"`` runs in a process of its own, for which a thread waits; the context variables
stay here. Its time begins when the process has imported the task. Else a task that imports for longer than
a run may take would be killed over and over.

A run limit cancels an ``async`` task, once, and kills a process. A thread cannot be stopped: the call is
given up at once, and the thread runs on until it ends by itself. Only overrunning the limit is
``TaskTimeout``; a ``TimeoutError`` of the task's own is an exception like any other. If a task answers its
cancellation with a result after all, that is its result.

There is no limit of threads and no queue for them, because each call that starts has a slot. The threads are
daemons, so a task that never returns cannot keep the process from ending. (anyio's own worker threads would:
on asyncio they are joined at exit. They also give their place in the limit away when a call is abandoned, so
that a call that overran could not be counted.)
"""

import contextvars
import math
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context as ContextVars
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar, cast

import anyio
import anyio.to_thread

from gearflow.errors import TaskFailed, TaskTimeout
from gearflow.protocol.chunk import pack_payloads
from gearflow.runtime.fork import end_stray
from gearflow.tasks.batch_call import BatchCall, Outcome
from gearflow.tasks.registry import AnyTask as AnyTask
from gearflow.worker.connection import WorkerConnection
from gearflow.worker.event_loop import Limit, Loop
from gearflow.worker.parts import RunOver, send_values
from gearflow.worker.processes import EXIT_TIME, ProcessCall, ProcessPool
from gearflow.worker.server_link import ServerLink
from gearflow.worker.slots import SlotAllocator

if TYPE_CHECKING:
    from gearflow.worker.batch import CollectedRun
    from gearflow.worker.run import Run

Work: TypeAlias = Callable[[], object]

T = TypeVar("T")


class Threads:
    """A growing set of daemon threads, which take calls from one queue.

    A call never waits for the end of another one. A thread that takes a call while others wait first wakes
    the next thread, unless one is on its way already. So calls that block all run at once, and of many short
    ones a thread makes one after the other, without a change of threads for each.

    ``start`` and ``close`` belong to one thread, the event loop's.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._process = os.getpid()
        self._lock = threading.Lock()  # of all that follows
        self._started = 0
        self._calls = deque[Work]()
        self._idle: list[threading.Lock] = []  # that threads wait for
        self._is_waking = False  # a thread is on its way to the calls
        self._closed = False

    def start(self, call: Work) -> None:
        """Run a call, which must not raise, in a thread.

        Raises:
            RuntimeError: The system has no thread left.
        """
        with self._lock:
            self._calls.append(call)
            if self._is_waking:
                return
            idle = self._next()
        try:
            self._wake(idle)
        except RuntimeError:
            with suppress(ValueError):  # a thread has taken it meanwhile
                self._calls.remove(call)
                raise

    def close(self) -> None:
        """Let threads end as soon as they have nothing to do. Waits for none."""
        with self._lock:
            self._closed = True
            idle = self._idle
            self._idle = []
        for lock in idle:
            lock.release()

    def _next(self) -> "threading.Lock | None":
        """A thread is to be woken, or started if this returns None. The caller has the lock."""
        self._is_waking = True
        return self._idle.pop() if self._idle else None  # the one that waits shortest is still in the cache

    def _wake(self, idle: "threading.Lock | None") -> None:
        if idle is not None:
            idle.release()
            return
        self._started += 1
        name = f"{self._name}-{self._started}"
        try:
            threading.Thread(target=self._serve, name=name, daemon=True).start()
        except RuntimeError:
            self._is_waking = False
            raise

    def _serve(self) -> None:
        own = threading.Lock()
        own.acquire()
        while True:
            with self._lock:
                self._is_waking = False
            while self._calls:
                self._take_one()
                if os.getpid() != self._process:
                    end_stray(self._process)
            with self._lock:
                if self._calls:
                    continue
                if self._closed:
                    return
                self._idle.append(own)
            own.acquire()

    def _take_one(self) -> None:
        """Make a call. What it holds must not live until the next one comes."""
        with self._lock:
            if not self._calls:
                return
            call = self._calls.popleft()
            is_last = not self._calls or self._is_waking
            idle = None if is_last else self._next()
        if not is_last:
            with suppress(RuntimeError):  # no thread is left: this one makes the calls that wait
                self._wake(idle)
        call()


class OverdueRuns:
    """Runs whose job has ended, and whose thread runs on: counted by function. Owns state.

    Each keeps its slot until its thread ends. Servers cannot see that, so gearflow's own get a report: it
    shows an operator why a worker takes no jobs. Part of each report are ``texts``, the names of the sole
    parameters of functions that take a text, ``resumable``, the functions that go on after a run,
    ``limits``, what the code declares, and ``redact``, the fields of payloads that are not shown.
    """

    __slots__ = ("_counts", "_limits", "_links", "_redact", "_resumable", "_slots", "_texts")

    def __init__(
        self,
        slots: SlotAllocator,
        links: Iterable[ServerLink],
        texts: Mapping[str, str],
        resumable: Sequence[str],
        limits: Mapping[str, str],
        redact: Mapping[str, list[str]],
    ) -> None:
        self._redact = redact
        self._slots = slots
        self._limits = limits
        self._links = links
        self._texts = texts
        self._resumable = resumable
        self._counts: Counter[str] = Counter()

    def began(self, function: str) -> None:
        """The job of a run was reported as timed out, and its thread runs on."""
        self._counts[function] += 1
        self._slots.overran()
        self._report()

    def ended(self, function: str) -> None:
        """Its thread has ended."""
        self._counts[function] -= 1
        self._slots.overdue_finished()
        self._report()

    def report_to(self, connection: WorkerConnection) -> None:
        """Report to a server that has no report yet, if there is something to report."""
        if +self._counts or self._texts or self._resumable or self._limits or self._redact:
            self._report_to(connection)

    def _report(self) -> None:
        for link in self._links:
            if link.connection is not None:
                self._report_to(link.connection)

    def _report_to(self, connection: WorkerConnection) -> None:
        counts = +self._counts
        own = {function: counts[function] for function in counts if connection.offers(function)}
        connection.report(own, self._texts, self._resumable, self._limits, self._redact)


_NOT_YET: Final = object()


class Executor:
    """Runs calls on a loop, in its threads, and in the processes of a pool.

    ``cancel_grace`` is the time in seconds between ``Context.cancelled`` and the kill of a process.
    """

    def __init__(self, loop: Loop, threads: Threads, processes: ProcessPool, cancel_grace: float) -> None:
        self._loop = loop
        self._threads = threads
        self._processes = processes
        self._cancel_grace = cancel_grace
        self._ended = _Ended(loop)

    def start(self, run: "Run", payload: bytes) -> Awaitable[Any]:
        """Begin a call. Await what this returns for its result, encoded unless the task is ``async``.

        Cancelling it cancels an ``async`` task, kills a process, and leaves a thread alone.

        A task that yields has sent its values by then, and its result is empty.

        Raises (also what it returns):
            PayloadInvalid: The payload does not fit the task's parameters, or its result the return type.
            TaskTimeout: The call overran its limit.
            TaskCrashed: The task ended its process.
            BaseException: What the task raised.
        """
        task = run.task
        if task.is_async:
            codec = task.payload
            made = codec.signature.apply(codec.decode(payload), context=run.context)
            limit = None if run.limit is None else self._loop.limit(run.limit, run)
            if task.is_stream:
                made = self._send_values(run, made, limit)
            return cast(Awaitable[Any], made if limit is None else self._limited(run, made, limit))
        return (
            self._in_process(run, payload)
            if task.executor == "process"
            else self.in_thread(run, _thread_call(run, payload))
        )

    async def execute(self, run: "Run", payload: bytes) -> bytes:
        """The encoded result of a call, as ``start`` begins it."""
        result = await self.start(run, payload)
        if run.parts is not None:
            return b""
        return run.task.payload.encode_result(result) if run.task.is_async else cast(bytes, result)

    async def call_batch(self, run: "CollectedRun") -> list[Outcome]:
        """The outcomes of the items of a batch, in one call. Raises as ``start``."""
        task, payloads = run.task, [item.payload for item in run.items]
        if task.executor == "process":
            return await self._await_process(run, ProcessCall.perform_batch, pack_payloads(payloads))
        if not task.is_async:
            return await self.in_thread(run, partial(_call_batch, run, payloads))
        call = BatchCall(task, payloads, run.context)
        if call.is_empty:
            return call.outcomes()
        made = call.apply()
        if run.limit is not None:
            made = self._limited(run, made, self._loop.limit(run.limit, run))
        return call.outcomes(await made)

    def show_processes(self) -> None:
        """Have the processes write the stacks of their threads to stderr."""
        self._processes.show()

    async def close(self, *, cold: bool) -> None:
        """End the processes, once no call is under way; if it is ``cold``, without their lifespans' ends."""
        if not self._processes.is_unused:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._processes.close, 0.0 if cold else EXIT_TIME)

    async def _limited(self, run: "Run", coroutine: Any, limit: Limit) -> Any:
        with limit:
            try:
                return await coroutine
            except Exception as error:
                if limit.cancel_called:  # the task has made something else of its cancellation
                    raise _overrun(run, "it was cancelled") from error
                raise
        raise _overrun(run, "it was cancelled")

    async def _send_values(self, run: "Run", values: Any, limit: Limit | None) -> None:
        """Send the values of an async iterator, which is closed at the end."""
        parts, encode = run.parts, run.task.payload.encode_result
        assert parts is not None
        try:
            async for value in values:
                part = encode(value)
                if limit is not None and limit.cancel_called:
                    raise RunOver  # it has ignored its cancellation
                while not parts.send(part):
                    room = self._loop.waiter()
                    parts.when_room(room.set)
                    await room.wait()
        except RunOver:
            if limit is not None and limit.cancel_called:
                raise
        finally:
            close = getattr(values, "aclose", None)  # as async generators have it
            if close is not None:
                await close()

    async def in_thread(self, run: "Run", function: Callable[[], T]) -> T:
        """Call a function of a run in a thread. Raises as ``start``."""
        call = _InThread(partial(_thread_variables().run, function), self._loop, self._ended)
        self._threads.start(call)
        if run.limit is None:
            await call.ended.wait()
        else:
            with anyio.move_on_after(run.limit):
                await call.ended.wait()
        if call.outcome is _NOT_YET:
            call.when_ended = run.overdue_finished
            run.overran()
            raise _overrun(run, "its thread goes on until it ends by itself")
        return call.result()

    async def _in_process(self, run: "Run", payload: bytes) -> bytes:
        return await self._await_process(run, ProcessCall.perform, payload)

    async def _await_process(self, run: "Run", perform: Callable[[ProcessCall], T], payload: bytes) -> T:
        time = _ProcessTime(run.limit, self._loop, self._cancel_grace)
        process_call = ProcessCall(self._processes, run, payload, time.is_loading)
        call = _InThread(partial(perform, process_call), self._loop, self._ended)
        self._threads.start(call)
        run.interrupt = partial(time.cancel, process_call)
        run.interrupt_item = process_call.cancel_item
        with time.scope:
            try:
                await call.ended.wait()
            finally:
                run.interrupt = run.interrupt_item = None
                if call.outcome is _NOT_YET:
                    process_call.kill()
        if call.outcome is not _NOT_YET:
            return call.result()
        if time.is_cancelled:
            raise TaskFailed(f"task {run.task.name!r} was cancelled; its process was killed")
        raise _overrun(run, "its process was killed")


class _ProcessTime:
    """The time that a call in a process has, as the scope that ends with it. Owns state."""

    def __init__(self, limit: float | None, loop: Loop, cancel_grace: float) -> None:
        self.scope = anyio.CancelScope()
        self.is_cancelled = False
        self._limit = limit
        self._loop = loop
        self._cancel_grace = cancel_grace
        self._begin()

    def is_loading(self, it_is: bool, /) -> None:
        """Do not count the time of loading. Called in the thread of the call."""
        if self._limit is not None:
            self._loop.post(self._wait if it_is else self._begin)

    def cancel(self, process_call: ProcessCall) -> None:
        """Nobody wants the result: notify the task, if it takes a ``Context``, and end soon."""
        grace = self._cancel_grace if process_call.cancel() else 0.0
        self.scope.deadline = min(self.scope.deadline, self._loop.now() + grace)
        self.is_cancelled = True

    def _wait(self) -> None:
        if not self.is_cancelled:
            self.scope.deadline = math.inf

    def _begin(self) -> None:
        if self._limit is not None and not self.is_cancelled:
            self.scope.deadline = self._loop.now() + self._limit


class _Ended:
    """Calls that have ended in threads, on their way to the loop. Many that end together wake it once."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._calls = deque[tuple[_InThread[Any], object]]()
        self._is_posted = False

    def add(self, call: "_InThread[Any]", outcome: object) -> None:
        """A call has ended so. Called in its thread."""
        self._calls.append((call, outcome))
        # First note it, then check: whichever of the two threads comes second sees the other.
        if not self._is_posted:
            self._is_posted = True
            self._loop.post(self._deliver)

    def _deliver(self) -> None:
        self._is_posted = False
        while self._calls:
            call, outcome = self._calls.popleft()
            call.outcome = outcome
            call.when_ended()


class _InThread(Generic[T]):
    """A call in a thread, and its outcome. Called in the thread; all else belongs to the loop."""

    def __init__(self, call: Callable[[], T], loop: Loop, ended: _Ended) -> None:
        self._call = call
        self._all_ended = ended
        self.ended = loop.waiter()
        self.when_ended: Callable[[], None] = self.ended.set
        self.outcome: object = _NOT_YET  # what it returned, or the exception

    def __call__(self) -> None:
        try:
            outcome: object = self._call()
        except BaseException as error:  # noqa: BLE001  (SystemExit too is this call's own affair)
            outcome = error
        self._all_ended.add(self, outcome)

    def result(self) -> T:
        """What it returned, if it has ended. Raises what it raised."""
        if isinstance(self.outcome, StopIteration):  # which cannot leave a coroutine
            raise TaskFailed(str(self.outcome), type="StopIteration") from self.outcome
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return cast(T, self.outcome)


def _thread_call(run: "Run", payload: bytes) -> Callable[[], bytes]:
    """A call of the task, to be made in a thread."""
    codec, context, parts = run.task.payload, run.context, run.parts

    def call() -> bytes:
        returned = codec.signature.apply(codec.decode(payload), context=context)
        if parts is None:
            return codec.encode_result(returned)
        send_values(returned, codec.encode_result, parts)
        return b""

    return call


def _call_batch(run: "CollectedRun", payloads: Sequence[bytes]) -> list[Outcome]:
    """A call of a batch task, in a thread."""
    call = BatchCall(run.task, payloads, run.context)
    return call.outcomes() if call.is_empty else call.outcomes(call.apply())


def _overrun(run: "Run", consequence: str) -> TaskTimeout:
    return TaskTimeout(f"task {run.task.name!r} overran its timeout of {run.limit:g} s; {consequence}")


def _thread_variables() -> ContextVars:
    """The current context variables, without the one that says that an event loop runs here."""
    variables = contextvars.copy_context()
    sniffio = cast(Any, sys.modules.get("sniffio"))
    if sniffio is not None:  # else nobody has set it, and nobody reads it
        variables.run(sniffio.current_async_library_cvar.set, None)
    return variables
