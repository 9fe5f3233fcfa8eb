"""One run of a task in a process of the pool."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Final, cast

from gearflow.protocol.codec import decode
from gearflow.protocol.constants import PacketType
from gearflow.tasks.batch_call import Outcome
from gearflow.worker.parts import PROCESS_BYTES, PROCESS_PARTS, RunOver
from gearflow.worker.processes.errors import Ending, unpack
from gearflow.worker.processes.messages import Frame, ItemRequest, RunRequest, encode
from gearflow.worker.processes.pool import Process, ProcessPool
from gearflow.worker.processes.task_import import origin_of

if TYPE_CHECKING:
    from gearflow.worker.run import Run

_numbers: Final = count(1)


class ProcessCall:
    """A run in a process. ``perform`` is called once, in a thread that waits for the process.

    Args:
        pool: Where processes come from.
        run: Of the task, which may report in the thread.
        payload: The arguments.
        is_loading: Called in the thread with true before the process imports the task, with false after.
    """

    def __init__(
        self, pool: ProcessPool, run: "Run", payload: bytes, is_loading: Callable[[bool], None]
    ) -> None:
        self._pool = pool
        self._run = run
        self._payload = payload
        self._is_loading = is_loading
        self._number = next(_numbers)
        self._items = cast("Sequence[Run]", getattr(run, "items", ()))  # of a batch
        self._lock = threading.Lock()
        self._process: Process | None = None  # while a kill of this run has to kill it
        self._is_killed = False
        self._sent = 0  # parts
        self._sent_bytes = 0  # since the process was notified

    def perform(self) -> bytes:
        """The encoded result.

        Raises:
            TaskCrashed: The process has ended, also if it was killed.
            BaseException: The task raised it, or its process could not start.
        """
        return self._answer().body

    def perform_batch(self) -> list[Outcome]:
        """The outcomes of the items of a batch. Raises as ``perform``."""
        answer = self._answer()
        outcomes: list[Outcome] = []
        position = 0
        for each, item in zip(answer.fields["outcomes"], self._items, strict=True):
            if isinstance(each, int):
                outcomes.append(answer.body[position : position + each])
                position += each
            else:
                outcomes.append(unpack(each, item.handle_text))
        return outcomes

    def _answer(self) -> Frame:
        process = self._pool.acquire()
        with self._lock:
            self._process = process
            if self._is_killed:
                process.kill()
        try:
            answer = self._run_in(process)
        except BaseException:
            self._pool.discard(process)
            raise
        finally:
            with self._lock:
                self._process = None
        if isinstance(answer, Ending):
            self._pool.discard(process)
            raise answer.crash(self._run.task.name)
        if self._is_killed:
            self._pool.discard(process)
        else:
            self._pool.release(process, answer.fields["rss"])
        if answer.kind == "raised":
            raise unpack(answer.fields["error"], self._run.handle_text)
        return answer

    def cancel(self) -> bool:
        """Set ``Context.cancelled`` and stop at the next ``yield``; whether the task has one of these, and
        could be reached.
        """
        with self._lock:
            return (
                (self._run.context is not None or self._run.parts is not None)
                and self._process is not None
                and self._process.notify(encode("cancel", number=self._number))
            )

    def cancel_item(self, place: int) -> None:
        """Set ``Context.cancelled`` of an item of a batch, if the task has one."""
        with self._lock:
            if self._run.context is not None and self._process is not None:
                self._process.notify(encode("cancel", number=self._number, item=place))

    def kill(self) -> None:
        """End the run at once, by ending its process."""
        with self._lock:
            self._is_killed = True
            if self._process is not None:
                self._process.kill()

    def _run_in(self, process: Process) -> Frame | Ending:
        run = self._run
        name = run.task.name
        previous = run.previous
        request = RunRequest(
            self._number,
            name,
            origin_of(run.task),
            run.handle_text,
            run.envelope.attempt,
            run.limit,
            run.envelope.parts,
            None if previous is None else (previous.done, previous.total, previous.message),
            run.envelope.scheduled_at,
            None if run.span is None else run.span.headers(),
            run.trace_id,
            tuple(ItemRequest(item.handle_text, item.envelope.attempt, item.limit) for item in self._items),
        ).fields()
        if name not in process.tasks:
            self._is_loading(True)
            answer = process.request(encode("load", **request), self._report)
            self._is_loading(False)
            if isinstance(answer, Ending) or answer.kind == "raised":
                return answer
            process.tasks.add(name)
        process.runs += 1
        return process.request(encode("run", self._payload, **request), self._report)

    def _report(self, frame: Frame) -> None:
        if frame.kind == "part":
            self._send_on(frame.body)
        else:
            item: int | None = frame.fields.get("item")
            (self._run if item is None else self._items[item]).send(
                decode(PacketType(frame.fields["type"]), frame.body)
            )

    def _send_on(self, part: bytes) -> None:
        """Send a part when there is room, and from time to time let the process know how many were sent."""
        parts, process = self._run.parts, self._process
        if parts is None or process is None:
            return
        with suppress(RunOver):  # nobody wants it, and the process ends soon
            parts.put(part)
        self._sent += 1
        self._sent_bytes += len(part)
        if self._sent % (PROCESS_PARTS // 2) == 0 or self._sent_bytes >= PROCESS_BYTES // 2:
            self._sent_bytes = 0
            process.send(encode("taken", position=self._sent))
