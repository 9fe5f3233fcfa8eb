"""Searches that take longer than a page may: each look at one takes it a step further.

A search goes on as long as somebody looks at its page, and all visitors share it. When it is over, its answer
is used for as long as keeps such searches to a small share of the time. Then it begins again, and its last
answer is shown meanwhile.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, Generic, Protocol, TypeVar, cast

import anyio

STEP: Final = 0.1
"""Seconds after which a page shows what was found so far."""

_MOST: Final = 64
"""Searches that are remembered."""

_STALE: Final = 30.0
"""Seconds for which an answer is shown while the search is made again, and the longer the search took."""

_FAULTY: Final = 2.0
"""Seconds after which a search is made again in which a server gave a fault."""


T = TypeVar("T")


class Search(Protocol):
    """A search that goes on in steps."""

    @property
    def is_over(self) -> bool:
        """Whether everything is found."""
        ...

    @property
    def has_faults(self) -> bool:
        """Whether something is missing because a server gave a fault."""
        ...

    async def go_on(self, seconds: float) -> None:
        """Search for about so long. It asks each server at least once."""
        ...


class Asking(Generic[T]):
    """A question with one answer, which may take long. Asking goes on while nobody waits for it.

    Args:
        ask: Asks it.
        has_faults: Whether something is missing in the answer.
        clock: Seconds of a monotonic clock.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[T]],
        has_faults: Callable[[T], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._has_faults = has_faults
        self._clock = clock
        self._task: asyncio.Task[T] | None = None
        self.ended: float | None = None
        """When the answer came, by the clock."""

    @property
    def is_over(self) -> bool:
        """Whether there is an answer."""
        return self.ended is not None

    @property
    def has_faults(self) -> bool:
        """Whether something is missing because a server gave a fault."""
        return self.answer is None or self._has_faults(self.answer)

    @property
    def answer(self) -> T | None:
        """The answer, if there is one. Raises what asking raised."""
        return None if self._task is None or not self._task.done() else self._task.result()

    async def go_on(self, seconds: float) -> None:
        """Wait for the answer for so long."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="gearflow web: a long question")
        await asyncio.wait((self._task,), timeout=seconds)

    async def _run(self) -> T:
        try:
            return await self._ask()
        finally:
            self.ended = self._clock()


S = TypeVar("S", bound=Search)


class _Shared:
    """A search of all visitors, and the last one like it that is over."""

    def __init__(self) -> None:
        self.last: Search | None = None
        self.used_until = 0.0
        self.shown_until = 0.0
        self.running: Search | None = None
        self.begun = 0.0
        self.cost = 0.0
        self.lock = anyio.Lock()

    async def go_on(self, clock: Callable[[], float], share: float) -> None:
        """Take a step."""
        assert self.running is not None
        begin = clock()
        await self.running.go_on(STEP)
        end = clock()
        self.cost += end - begin
        if self.running.is_over:
            self.last, self.running = self.running, None
            age = min(self.cost, 1.0) / share
            self.used_until = end + (min(age, _FAULTY) if self.last.has_faults else age)
            self.shown_until = self.used_until + _STALE + 4 * (end - self.begun)

    def shown(self, now: float) -> Search:
        """The last answer if it is still good, else what was found so far."""
        if self.running is None or (self.last is not None and now < self.shown_until):
            assert self.last is not None
            return self.last
        return self.running


class Searches:
    """Searches by what is sought.

    Args:
        clock: Seconds of a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._searches: OrderedDict[Hashable, _Shared] = OrderedDict()
        self._askings: OrderedDict[Hashable, Asking[Any]] = OrderedDict()

    async def of(self, key: Hashable, begin: Callable[[], S], share: float) -> S:
        """Take a search a step further, unless it is over or another visitor does so.

        Args:
            key: What is sought, and the class of the search.
            begin: Makes the search.
            share: The share of the time that such searches may take.
        """
        shared = self._searches.setdefault(key, _Shared())
        self._searches.move_to_end(key)
        while len(self._searches) > _MOST:
            self._searches.popitem(last=False)
        is_first = not shared.lock.locked()
        async with shared.lock:
            now = self._clock()
            if shared.running is None and (shared.last is None or now >= shared.used_until):
                shared.running, shared.begun, shared.cost = begin(), now, 0.0
                is_first = True
            if shared.running is not None and is_first:
                await shared.go_on(self._clock, share)
        return cast(S, shared.shown(self._clock()))  # the key says the class

    async def answer(self, key: Hashable, ask: Callable[[], Awaitable[T]], age: float) -> T | None:
        """The answer to a question if it comes soon, else None. Then a later call has it.

        Args:
            key: What is asked.
            ask: Asks it.
            age: Seconds after which it is asked again.
        """
        asking: Asking[T] | None = self._askings.get(key)
        if asking is None or (asking.ended is not None and self._clock() - asking.ended >= age):
            asking = self._askings[key] = Asking(ask, lambda _: False, self._clock)
            while len(self._askings) > _MOST:
                self._askings.popitem(last=False)
        await asking.go_on(STEP)
        return asking.answer

    def clear(self) -> None:
        """Forget all answers, because something was done."""
        self._searches.clear()
        self._askings.clear()
