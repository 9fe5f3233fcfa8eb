"""The run of a chunk: several calls that share a job, one after the other (``gearflow.protocol.chunk``).

Each call is a run for middleware, limits, processes and the log, and has a ``Context`` of its own. It never
ends the others, except if a thread overruns its limit. The thread goes on and keeps the slot of the job, so
the calls behind it are left to another job. A call that is to run again goes back to the caller, because the
job cannot wait for it.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Final, TypeAlias

from anyio.lowlevel import checkpoint

from gearflow.errors import PayloadInvalid
from gearflow.protocol.chunk import ItemOutcome, OutcomeKind, pack_outcomes, unpack_payloads
from gearflow.runtime.fork import end_stray, forget_in_children
from gearflow.runtime.log_bursts import BurstLog
from gearflow.tasks.control_flow import Fail
from gearflow.tasks.hooks import Middleware
from gearflow.tasks.remote_errors import encode_failure
from gearflow.worker.event_loop import Loop
from gearflow.worker.executor import Executor
from gearflow.worker.retry import decide_for
from gearflow.worker.retry_policy import GiveUp
from gearflow.worker.run import Run, run_within

TURN: Final = 0.005
"""Seconds of calls that do not wait, after which other runs have a turn on the event loop."""

OnFailure: TypeAlias = Callable[[Run, BaseException], object]


class ChunkRunner:
    """Runs chunks. ``on_failure`` is called with the error of each call that failed."""

    def __init__(
        self,
        loop: Loop,
        executor: Executor,
        middleware: Sequence[Middleware],
        log: BurstLog,
        on_failure: OnFailure,
    ) -> None:
        self._loop = loop
        self._executor = executor
        self._middleware = middleware
        self._log = log
        self._on_failure = on_failure
        self._process = os.getpid()
        self._is_in_child = False  # a task has forked this process, and comes back from its call
        forget_in_children(self, ChunkRunner._forget)

    def _forget(self) -> None:
        self._is_in_child = True

    async def run(self, run: Run, payload: bytes) -> bytes:
        """The outcomes of all calls, encoded.

        Raises:
            PayloadInvalid: The payload is not that of a chunk.
            BaseException: The run is cancelled.
        """
        payloads = unpack_payloads(payload, run.envelope.chunk)
        if run.task.is_stream:
            raise PayloadInvalid(f"task {run.task.name!r} yields, so its calls cannot share a job")
        in_thread = not (run.task.is_async or run.task.executor == "process")
        if in_thread and run.limit is None and not self._middleware:
            return await self._all_in_one_thread(run, payloads)
        is_plain = run.task.is_async and run.limit is None and not self._middleware
        codec = run.task.payload
        apply = codec.signature.apply
        outcomes: list[ItemOutcome] = []
        turn = perf_counter()
        for each in payloads:
            if run.context is not None:
                run.renew_context()
            try:
                if is_plain:
                    result = codec.encode_result(await apply(codec.decode(each), context=run.context))
                elif self._middleware:
                    call = partial(self._executor.execute, run, each)
                    result = await run_within(self._middleware, run.info(), call)
                else:
                    result = await self._executor.execute(run, each)
            except BaseException as error:
                self._end_stray()
                if run.is_for_nobody or self._loop.is_cancelled():
                    raise
                self._on_failure(run, error)
                outcomes.append(self._outcome(run, error))
            else:
                self._end_stray()
                outcomes.append((OutcomeKind.RESULT, result))
            if run.is_overdue or run.is_for_nobody:
                break
            if perf_counter() - turn > TURN:
                await checkpoint()
                turn = perf_counter()
        return pack_outcomes(outcomes)

    async def _all_in_one_thread(self, run: Run, payloads: Sequence[bytes]) -> bytes:
        """The same for calls without a limit in a thread, without a change of threads for each."""
        outcomes: list[ItemOutcome] = []
        failures: list[BaseException] = []
        codec = run.task.payload

        def call() -> bytes:
            for each in payloads:
                if run.is_for_nobody:
                    break
                if run.context is not None:
                    run.renew_context()
                try:
                    arguments = codec.decode(each)
                    result = codec.encode_result(codec.signature.apply(arguments, context=run.context))
                except BaseException as error:  # noqa: BLE001  (it never ends the other calls)
                    self._end_stray()
                    failures.append(error)
                    outcomes.append(self._outcome(run, error))
                else:
                    self._end_stray()
                    outcomes.append((OutcomeKind.RESULT, result))
            return pack_outcomes(outcomes)

        packed = await self._executor.in_thread(run, call)
        for failure in failures:
            self._on_failure(run, failure)
        return packed

    def _outcome(self, run: Run, error: BaseException) -> ItemOutcome:
        decision = decide_for(run, error, self._log)
        if not isinstance(decision, GiveUp):
            return OutcomeKind.AGAIN if decision.counted else OutcomeKind.NOT_YET, b""
        if isinstance(decision.error, Fail):
            return OutcomeKind.FAILURE, b""
        return OutcomeKind.EXCEPTION, encode_failure(decision.error)

    def _end_stray(self) -> None:
        """End here if the task has forked this process, and comes back from its call in the child."""
        if self._is_in_child:
            end_stray(self._process)
