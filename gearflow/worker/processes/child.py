"""The process itself: takes runs from its worker, one at a time, and answers with the results.

Tasks run in its main thread, since some libraries require that. Another thread reads the worker's messages.
When the worker closes the socket, the process leaves its lifespans and ends.

An event loop in another thread keeps the lifespan hooks. Which hooks there are shows when the modules of
tasks are imported, so some may be entered later than others. They are left in reverse.
"""

import asyncio
import contextvars
import faulthandler
import fcntl
import io
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Protocol, cast

from gearflow.client import configure
from gearflow.protocol.chunk import unpack_payloads
from gearflow.protocol.packets import Packet
from gearflow.runtime import stacks
from gearflow.runtime.fork import end_stray, forget_in_children, handle
from gearflow.runtime.process import resident
from gearflow.runtime.run_records import add_run_fields, current_run
from gearflow.tasks import Context, Progress
from gearflow.tasks.batch_call import BatchCall, Outcome
from gearflow.tasks.context import moment_of
from gearflow.tasks.definition import TaskDefinition
from gearflow.tasks.hooks import Lifespan, hooks, lifetime, name_of
from gearflow.tracing import find_tracing
from gearflow.worker.parts import PROCESS_BYTES, PROCESS_PARTS, PartWindow, send_values
from gearflow.worker.processes import child_output
from gearflow.worker.processes.child_output import Reports
from gearflow.worker.processes.errors import pack
from gearflow.worker.processes.messages import Channel, Frame, Hello, RunRequest, encode
from gearflow.worker.processes.pool import ANSWERED_BY_THE_WORKER, EXIT_TIME
from gearflow.worker.processes.task_import import find


class Lifespans:
    """Hooks that are entered. Owns their event loops.

    Args:
        wanted: The names of those to be entered; None: all that are registered.
    """

    def __init__(self, wanted: Sequence[str] | None) -> None:
        self._wanted = wanted
        self._known: tuple[Lifespan, ...] = ()
        self._open: list[_Open] = []

    def enter(self) -> contextvars.Context:
        """Enter those that are new; context variables for a run, with what the hooks have set.

        Raises:
            StartupFailed: One raised. It is tried again next time.
        """
        registered = hooks.lifespans()
        if registered != self._known:
            new = [hook for hook in registered if hook not in self._known and self._is_wanted(hook)]
            if new:
                self._open.append(_Open(new, self._variables()))
            self._known = registered
        return self._variables().copy()

    def leave(self) -> None:
        """Leave all, the last one first. Blocks."""
        while self._open:
            self._open.pop().leave()

    def _variables(self) -> contextvars.Context:
        return self._open[-1].variables if self._open else contextvars.copy_context()

    def _is_wanted(self, hook: Lifespan) -> bool:
        return self._wanted is None or name_of(hook) in self._wanted


class _Open:
    """Some hooks, entered together in a thread that runs their event loop until they are left."""

    def __init__(self, new: Sequence[Lifespan], variables: contextvars.Context) -> None:
        self.variables = variables
        """Those that were set before, and by them."""
        self._hooks = new
        self._failure: BaseException | None = None
        self._are_entered = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._leaving: asyncio.Event
        self._thread = threading.Thread(target=self._keep, name="gearflow-lifespan", daemon=True)
        self._thread.start()
        self._are_entered.wait()
        if self._failure is not None:
            raise self._failure

    def leave(self) -> None:
        with suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._leaving.set)
        self._thread.join()

    def _keep(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as failure:  # noqa: BLE001  (it is raised where the hooks are waited for)
            if self._are_entered.is_set():  # a task of a hook has failed, and what it has opened is of no use
                traceback.print_exc()
                os._exit(1)
            self._failure = failure
            self._are_entered.set()

    async def _live(self) -> None:
        self._loop, self._leaving = asyncio.get_running_loop(), asyncio.Event()
        async with lifetime(self._hooks):
            self.variables = contextvars.copy_context()
            self._are_entered.set()
            await self._leaving.wait()


def main(connection: int, lifeline: int) -> None:
    """Serve the worker at the other end of a socket, until that closes it.

    Args:
        connection: The descriptor of the socket.
        lifeline: That of a pipe which is open at the other end as long as the worker lives.
    """
    _end_with(lifeline)
    _ignore_signals_for_the_worker()
    for descriptor in (connection, lifeline):
        os.set_inheritable(descriptor, False)  # by processes that tasks start
    sys.argv = sys.argv[:1]
    for stream in (sys.stdout, sys.stderr):
        # By lines, since what is in a buffer is lost in a crash.
        cast(io.TextIOWrapper, stream).reconfigure(line_buffering=True, errors="backslashreplace")
    channel = Channel(socket.socket(fileno=connection))
    hello = channel.receive()
    if hello is not None:
        runner = _TaskServer(channel, Hello.of(hello.fields))
        runner.serve()
        _limit_exit_time()
        runner.lifespans.leave()


def _end_with(lifeline: int) -> None:
    """Have the kernel send SIGIO when the other end of the pipe is closed.

    It ends this process, and what tasks have started.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # it has been closed already
        os._exit(1)


def _ignore_signals_for_the_worker() -> None:
    """Survive signals that are for the worker; write stacks in a crash, and at SIGUSR2."""
    for number in ANSWERED_BY_THE_WORKER:
        if number != signal.SIGUSR2:
            handle(number, _survive)  # SIG_IGN would be inherited by the programs that tasks start
    faulthandler.enable(all_threads=False)  # the last lines of a crash are few
    stacks.show_at(signal.SIGUSR2, lambda _frame: stacks.write("\n".join(stacks.other_threads())))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _survive(_signal: int, _frame: object) -> None:
    pass


def _flush() -> None:
    """Write out an unfinished line of a run, which is not part of the output of the next one."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # the task may have closed or replaced it
            stream.flush()


def _limit_exit_time() -> None:
    """Do not let hooks, or threads that a task has left behind, keep the process alive."""
    last = threading.Timer(EXIT_TIME, os._exit, (0,))
    last.daemon = True
    last.start()


class _TaskServer:
    """Does what the worker requests. Owns the state of the process."""

    def __init__(self, channel: Channel, hello: Hello) -> None:
        target = hello.target
        configure(
            target.servers, spread=target.spread, discover=target.discover, tls=target.tls, token=target.token
        )
        child_output.send_logs(channel, hello.level)
        add_run_fields()
        self.lifespans = Lifespans(hello.lifespans)
        self._channel = channel
        forget_in_children(channel, Channel.forget)  # else two would answer
        self._pid = os.getpid()
        self._measures = hello.measures
        self._reports = Reports(channel)
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self._request: _Request | None = None  # that is not answered yet

    def serve(self) -> None:
        """Answer requests until the worker closes the socket."""
        threading.Thread(target=self._listen, name="gearflow-listener", daemon=True).start()
        with suppress(OSError):  # the worker is gone, or reads no answer
            while (request := self._requests.get()) is not None:
                answer = self._answer(request)
                end_stray(self._pid)
                _flush()
                request.flush()
                self._request = None
                self._reports.flush()
                self._channel.send(answer)

    def _listen(self) -> None:
        cancelled = 0  # the number of a run, which may not have been requested yet
        while (frame := self._channel.receive()) is not None:
            request = self._request
            if frame.kind == "taken":
                if request is not None:
                    request.parts.taken(frame.fields["position"])
                continue
            if frame.kind == "cancel" and "item" in frame.fields:
                if request is not None and request.call.number == frame.fields["number"]:
                    request.contexts[frame.fields["item"]].cancelled = True
                continue
            if frame.kind == "cancel":
                cancelled = frame.fields["number"]
            else:
                request = self._request = _Request(frame, self._report, self._reports.send_part)
                self._requests.put(request)
            if request is not None and request.call.number == cancelled:
                request.cancel()
        if self._request is not None:  # the worker is gone, where the lifeline does not show it
            os._exit(1)
        self._requests.put(None)

    def _answer(self, request: "_Request") -> bytes:
        origin = request.call.origin
        try:
            task = find(request.call.task, origin)
            variables = self.lifespans.enter()
            if request.kind == "load":
                return encode("loaded")
            if task.batch is not None:
                outcomes = variables.run(request.run_batch, task)
                results = b"".join([each for each in outcomes if isinstance(each, bytes)])
                ends = [len(each) if isinstance(each, bytes) else pack(each) for each in outcomes]
                return encode("result", results, rss=self._rss(), outcomes=ends)
            return encode("result", variables.run(request.run, task), rss=self._rss())
        except BaseException as error:  # noqa: BLE001  (SystemExit too is this run's own affair)
            return encode("raised", error=pack(error), rss=self._rss())

    def _report(self, packet: Packet, item: int | None = None) -> None:
        if self._request is not None:  # else it comes from a thread that the task has left behind
            self._reports.add(packet, item)

    def _rss(self) -> int:
        return resident() if self._measures else 0


class _Send(Protocol):
    """Sends a report, perhaps about an item of a batch."""

    def __call__(self, packet: Packet, item: int | None = None) -> None: ...


class _Request:
    """A request of the worker: load a task, or run it."""

    def __init__(self, frame: Frame, send: _Send, send_part: Callable[[bytes], None]) -> None:
        self.kind = frame.kind
        self.call = call = RunRequest.of(frame.fields)
        self._payload = frame.body
        self.context = Context(
            handle=call.handle,
            function=call.task,
            send=send,
            attempt=call.attempt,
            deadline=None if call.limit is None else time.time() + call.limit,
            parts=call.parts,
            previous=None if call.previous is None else Progress(*call.previous),
            scheduled_at=moment_of(call.scheduled_at),
            later=_later,
        )
        """The task's, if it takes one."""
        self.contexts = self.context.items = tuple(
            Context(
                handle=item.handle,
                function=call.task,
                send=partial(send, item=place),
                attempt=item.attempt,
                deadline=None if item.limit is None else time.time() + item.limit,
                later=_later,
            )
            for place, item in enumerate(call.items)
        )
        """Those of the items of a batch."""
        self.parts = PartWindow(send_part, parts=PROCESS_PARTS, size=PROCESS_BYTES)
        """Those of this run, if the task yields. The worker has the rest of the window."""

    def cancel(self) -> None:
        """Nobody wants the run any more."""
        for context in (self.context, *self.contexts):
            context.cancelled = True
        self.parts.close()

    def flush(self) -> None:
        """Send progress that waits for its time."""
        for context in (self.context, *self.contexts):
            context.flush()

    def _begin(self) -> None:
        """This context is that of the run, for the log and for spans."""
        current_run.set(self.call)
        if self.call.trace is not None and (tracing := find_tracing()) is not None:
            tracing.go_on(self.call.trace)

    def run(self, task: TaskDefinition) -> bytes:
        """The encoded result, empty if the task yields. Raises what the task raises, and PayloadInvalid."""
        self._begin()
        codec = task.payload
        arguments = codec.decode(self._payload)
        returned = codec.signature.apply(arguments, context=self.context)
        if not task.is_stream:
            return codec.encode_result(returned)
        send_values(returned, codec.encode_result, self.parts)
        return b""

    def run_batch(self, task: TaskDefinition) -> list[Outcome]:
        """The outcomes of the items of a batch. Raises what the task raises."""
        self._begin()
        payloads = unpack_payloads(self._payload, len(self.contexts))
        call = BatchCall(task, payloads, self.context if task.takes_context else None)
        return call.outcomes() if call.is_empty else call.outcomes(call.apply())


def _later(seconds: float, callback: Callable[[], object]) -> None:
    """Call something after that time. The task's thread may hold the GIL longer."""
    timer = threading.Timer(seconds, callback)
    timer.daemon = True
    timer.start()
