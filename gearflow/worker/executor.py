"""One call of a task: payload in, result out, within its time.

An ``async`` task runs on the loop, a ``def`` task in a thread, which also does its validation, so that a
large payload does not hold up the loop. The thread sees the context variables of the worker.

A run limit stops an ``async`` task by cancelling it. A thread cannot be stopped: the call is given up at
once, and the thread goes on, counted, until it ends by itself. Only overrunning the limit is
``TaskTimeout``; a ``TimeoutError`` of the task's own is an exception like any other. A task that answers
its cancellation with a result after all has that result.
"""

import contextvars
import sys
from collections.abc import Callable
from contextvars import Context as ContextVars
from typing import Any, Final, Protocol, TypeAlias, cast

import anyio

from gearflow.errors import TaskFailed, TaskTimeout
from gearflow.tasks import Context, Task
from gearflow.worker.loops import Loop
from gearflow.worker.threads import Threads

AnyTask: TypeAlias = Task[..., Any]

_NOT_YET: Final = object()


class Call(Protocol):
    """What is to be run, and who is told when a thread cannot be stopped in time; all on the loop."""

    @property
    def task(self) -> AnyTask:
        """The task whose function is called."""
        ...

    @property
    def context(self) -> Context | None:
        """What is injected, if the task takes it."""
        ...

    @property
    def limit(self) -> float | None:
        """Seconds it may take; ``None`` for any time."""
        ...

    def overran(self) -> None:
        """The call was given up; its thread goes on."""
        ...

    def overdue_finished(self) -> None:
        """The thread of a call that overran has ended."""
        ...


class Executor:
    """Runs calls on a loop and in its threads."""

    def __init__(self, loop: Loop, threads: Threads) -> None:
        self._loop = loop
        self._threads = threads

    async def execute(self, call: Call, payload: bytes) -> bytes:
        """The encoded result of a call.

        Cancelling it cancels an ``async`` task, and leaves a thread alone.

        Raises:
            PayloadInvalid: The payload does not fit the task's parameters, or its result the return type.
            TaskTimeout: The call overran its limit.
            BaseException: What the task raised.
        """
        task = call.task
        if not task.is_async:
            return await self._in_thread(call, payload)
        limit = call.limit
        codec = task.payload
        coroutine = codec.signature.apply(codec.decode(payload), context=call.context)
        return codec.encode_result(await (coroutine if limit is None else _limited(task, coroutine, limit)))

    async def _in_thread(self, call: Call, payload: bytes) -> bytes:
        limit = call.limit
        run = _ThreadCall(call.task, call.context, payload, self._loop)
        self._threads.start(run)
        if limit is None:
            await run.ended.wait()
        else:
            with anyio.move_on_after(limit):
                await run.ended.wait()
        if run.outcome is _NOT_YET:
            run.when_ended = call.overdue_finished
            call.overran()
            raise _overrun(call.task, limit, "its thread goes on until it ends by itself")
        if isinstance(run.outcome, StopIteration):  # which cannot leave a coroutine
            raise TaskFailed(str(run.outcome), type="StopIteration") from run.outcome
        if isinstance(run.outcome, BaseException):
            raise run.outcome
        return cast(bytes, run.outcome)


class _ThreadCall:
    """A call in a thread, and what came of it. Called in the thread; all else belongs to the loop."""

    def __init__(self, task: AnyTask, context: Context | None, payload: bytes, loop: Loop) -> None:
        self._task = task
        self._context = context
        self._payload = payload
        self._loop = loop
        self._variables = _thread_variables()
        self.ended = anyio.Event()
        self.when_ended: Callable[[], None] = self.ended.set
        self.outcome: object = _NOT_YET  # the result's bytes, or the exception

    def __call__(self) -> None:
        try:
            outcome: object = self._variables.run(self._run)
        except BaseException as error:  # noqa: BLE001  (SystemExit too is this call's own affair)
            outcome = error
        self._loop.post(lambda: self._end(outcome))

    def _run(self) -> bytes:
        codec = self._task.payload
        return codec.encode_result(codec.signature.apply(codec.decode(self._payload), context=self._context))

    def _end(self, outcome: object) -> None:
        self.outcome = outcome
        self.when_ended()


async def _limited(task: AnyTask, call: Any, limit: float) -> Any:
    with anyio.move_on_after(limit) as scope:
        try:
            return await call
        except Exception as error:
            if scope.cancel_called:  # the task has made something else of its cancellation
                raise _overrun(task, limit, "it was cancelled") from error
            raise
    raise _overrun(task, limit, "it was cancelled")


def _overrun(task: AnyTask, limit: float | None, consequence: str) -> TaskTimeout:
    return TaskTimeout(f"task {task.name!r} overran its timeout of {limit:g} s; {consequence}")


def _thread_variables() -> ContextVars:
    """The current context variables, without the one that says that an event loop runs here."""
    variables = contextvars.copy_context()
    sniffio = cast(Any, sys.modules.get("sniffio"))
    if sniffio is not None:  # else nobody has set it, and nobody looks at it
        variables.run(sniffio.current_async_library_cvar.set, None)
    return variables
