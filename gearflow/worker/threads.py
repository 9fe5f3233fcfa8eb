"""Threads for tasks that block: one for each call that runs, kept for the next one.

There is no limit and no queue here: whoever starts calls has a slot for each. The threads are daemons, so
a task that never returns cannot keep the process from ending. (anyio's own worker threads would: on
asyncio they are joined at exit. There they also give their place in the limit away when a call is
abandoned, so that a call that overran could not be accounted for.)
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeAlias

from gearflow.forks import end_stray

Call: TypeAlias = Callable[[], object]
Mailbox: TypeAlias = "SimpleQueue[Call | None]"


class Threads:
    """A growing set of daemon threads. ``start`` and ``close`` belong to one thread, the event loop's."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = 0
        self._idle: deque[Mailbox] = deque()  # the mailboxes of threads that wait
        self._closed = False
        self._process = os.getpid()

    def start(self, call: Call) -> None:
        """Run a call, which must not raise, in a thread of its own."""
        try:
            mailbox = self._idle.pop()  # the one that waits shortest: its stack is still in the cache
        except IndexError:
            mailbox = self._start_thread()
        mailbox.put(call)

    def close(self) -> None:
        """Let threads end as soon as they have nothing to do. Waits for none."""
        self._closed = True
        while self._idle:
            self._idle.pop().put(None)

    def _start_thread(self) -> Mailbox:
        mailbox: Mailbox = SimpleQueue()
        self._started += 1
        name = f"{self._name}-{self._started}"
        threading.Thread(target=self._serve, args=(mailbox,), name=name, daemon=True).start()
        return mailbox

    def _serve(self, mailbox: Mailbox) -> None:
        while (call := mailbox.get()) is not None:
            call()
            end_stray(self._process)
            del call  # what it holds must not live until the next one comes
            # First wait, then look: whichever of the two sides comes second sees the other.
            self._idle.append(mailbox)
            if self._closed:
                return
