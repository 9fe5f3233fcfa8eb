"""One run of a task in a process of the pool."""

import threading
from collections.abc import Callable
from typing import Any

from gearflow.protocol.codec import decode
from gearflow.protocol.constants import PacketType
from gearflow.protocol.packets import Packet
from gearflow.tasks import Context, Task
from gearflow.worker.processes.errors import Ending, unpack
from gearflow.worker.processes.messages import Frame, Order, encode
from gearflow.worker.processes.pool import Process, ProcessPool
from gearflow.worker.processes.task_import import origin_of


class ProcessCall:
    """A run on its way. ``perform`` is called in a thread, which waits for the process; once.

    Args:
        pool: Where processes come from.
        task: What is run.
        handle: Of the job.
        context: What the task is to see of it, if it takes that.
        limit: Seconds that it may take.
        payload: The arguments.
        send: Takes what the task reports; called in the thread.
        loading: Told, in the thread, when the process begins to import the task, and when that is over.
    """

    def __init__(
        self,
        pool: ProcessPool,
        task: Task[..., Any],
        handle: str,
        context: Context | None,
        limit: float | None,
        payload: bytes,
        send: Callable[[Packet], None],
        loading: Callable[[bool], None],
    ) -> None:
        self._pool = pool
        self._task = task
        self._handle = handle
        self._context = context
        self._limit = limit
        self._payload = payload
        self._send = send
        self._loading = loading
        self._lock = threading.Lock()
        self._process: Process | None = None  # while it may be killed on account of this run
        self._is_killed = False

    def perform(self) -> bytes:
        """The encoded result.

        Raises:
            TaskCrashed: The process has ended, also if it was killed.
            BaseException: What the task raised, or kept its process from starting.
        """
        process = self._pool.take()
        with self._lock:
            self._process = process
            if self._is_killed:
                process.kill()
        try:
            answer = self._ask(process)
        except BaseException:
            self._pool.discard(process)
            raise
        finally:
            with self._lock:
                self._process = None
        if isinstance(answer, Ending):
            self._pool.discard(process)
            raise answer.crash(self._task.name)
        if self._is_killed:
            self._pool.discard(process)
        else:
            self._pool.give_back(process, answer.fields["rss"])
        if answer.kind == "raised":
            raise unpack(answer.fields["error"], self._handle)
        return answer.body

    def cancel(self) -> bool:
        """Tell the task that nobody wants its result; whether it can hear that, from its ``Context``."""
        with self._lock:
            return (
                self._context is not None
                and self._process is not None
                and self._process.tell(encode("cancel"))
            )

    def kill(self) -> None:
        """End the run at once, by ending its process."""
        with self._lock:
            self._is_killed = True
            if self._process is not None:
                self._process.kill()

    def _ask(self, process: Process) -> Frame | Ending:
        name = self._task.name
        attempt = 1 if self._context is None else self._context.attempt
        order = Order(name, origin_of(self._task), self._handle, attempt, self._limit).fields()
        if name not in process.tasks:
            self._loading(True)
            answer = process.ask(encode("load", **order), self._report)
            self._loading(False)
            if isinstance(answer, Ending) or answer.kind == "raised":
                return answer
            process.tasks.add(name)
        process.runs += 1
        return process.ask(encode("run", self._payload, **order), self._report)

    def _report(self, frame: Frame) -> None:
        self._send(decode(PacketType(frame.fields["type"]), frame.body))
