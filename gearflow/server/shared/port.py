"""The broker's port to a store that several servers share: answers come later.

The questions of one turn of the event loop are asked together, and so are those that come while the store
answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from gearflow.broker.storage import PENDING, Answer, JobOf, JobRecord, Pending, Question, StoredJob
from gearflow.errors import StoreError
from gearflow.stores.shared import Away, SharedStore

logger = logging.getLogger(__name__)

_RETRY: Final = 0.2
"""Seconds between two attempts to reach the store."""

_Asked = tuple[Question, Callable[[Answer], None]]
_Ahead = tuple[StoredJob | JobRecord, Callable[[str | None], None]]


class SharedPort:
    """Passes questions and large bodies to the store. Owns the tasks that do it.

    Args:
        store: The store.
        timeout: Seconds to wait for a store that is away.
        wake: Called to have the answers sent.
    """

    def __init__(self, store: SharedStore, timeout: float, wake: Callable[[], None]) -> None:
        self.durable = self.shared = True
        self._store = store
        self._timeout = timeout
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._asked: list[_Asked] = []
        self._aheads: deque[_Ahead] = deque()
        self._has_asked, self._has_ahead = asyncio.Event(), asyncio.Event()
        self._tasks = [self._loop.create_task(self._answer_all()), self._loop.create_task(self._write_all())]

    @property
    def large(self) -> int:
        """Bytes from which a body is written ahead of its change."""
        return self._store.large

    def ask(self, question: Question, done: Callable[[Answer], None]) -> Pending:
        """Have a question answered later."""
        self._asked.append((question, done))
        self._has_asked.set()
        return PENDING

    def write_ahead(self, change: StoredJob | JobRecord, done: Callable[[str | None], None]) -> None:
        """Have the large body of a change written later."""
        self._aheads.append((change, done))
        self._has_ahead.set()

    def reopen(self) -> None:
        """Nothing to do: a group that was not synced was not kept."""

    async def close(self) -> None:
        """Leave the questions that are not answered yet."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    # ---------------------------------------------------------------------------------------- the tasks

    async def _answer_all(self) -> None:
        while True:
            await self._has_asked.wait()
            self._has_asked.clear()
            asked, self._asked = self._asked, []
            await self._answer_these(asked)

    async def _answer_these(self, asked: Sequence[_Asked]) -> None:
        """Answer questions. A fault is an answer, but for the workload of a job that waits for its worker:
        that is asked for again, because the job would become a dead letter."""
        until = self._loop.time() + self._timeout
        while asked:
            try:
                self._tell(asked, await self._store.answer([question for question, _ in asked]))
                return
            except Away as error:
                if self._loop.time() >= until:
                    fault = StoreError(f"the database cannot be reached: {error}")
                    others = [one for one in asked if not isinstance(one[0], JobOf)]
                    self._tell(others, [fault] * len(others))
                    asked = [*(one for one in asked if isinstance(one[0], JobOf)), *self._asked]
                    self._asked = []
            except StoreError as error:
                self._tell(asked, [error] * len(asked))
                return
            except Exception as error:  # a bug: those that wait must get an answer
                logger.exception("questions could not be asked")
                self._tell(asked, [StoreError(f"a fault of the server: {error!r}")] * len(asked))
                return
            await asyncio.sleep(_RETRY)

    def _tell(self, asked: Sequence[_Asked], answers: Sequence[Answer]) -> None:
        for (_, done), answer in zip(asked, answers, strict=True):
            try:
                done(answer)
            except Exception:  # a bug: the others must still get their answers
                logger.exception("a question to the store could not be completed")
        self._wake()

    async def _write_all(self) -> None:
        while True:
            await self._has_ahead.wait()
            self._has_ahead.clear()
            while self._aheads:
                change, done = self._aheads.popleft()
                fault = await self._write(change)
                try:
                    done(fault)
                except Exception:  # a bug: the others must still be written
                    logger.exception("a large body could not be completed")
                self._wake()

    async def _write(self, change: StoredJob | JobRecord) -> str | None:
        until = self._loop.time() + self._timeout
        while True:
            try:
                await self._store.write_ahead(change)
            except Away as error:
                if self._loop.time() >= until:
                    return f"the database cannot be reached: {error}"
            except StoreError as error:
                return str(error)
            except Exception as error:  # a bug: the job must get an answer
                logger.exception("a large body could not be written")
                return f"a fault of the server: {error!r}"
            else:
                return None
            await asyncio.sleep(_RETRY)
