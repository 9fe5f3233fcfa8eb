"""The lifespan hooks of a process that runs tasks in its main thread: an event loop in another keeps them.

Which hooks there are shows when the modules of tasks are imported, so some may be entered later than others.
They are left in reverse.
"""

import asyncio
import contextvars
import os
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress

from gearflow.tasks.hooks import Lifespan, hooks, name_of
from gearflow.tasks.lifetime import lifetime


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
        """What was set before, and by them."""
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
