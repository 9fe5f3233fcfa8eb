"""Where the items of an async batch come from: an iterable, or an async one.

An async iterable may take its time for an item, and may want to hear results before it has the next one (a
crawler's does). So it is iterated over beside the run of the batch, in a task of the client's, and a
bounded number of items ahead.
"""

from collections import deque
from collections.abc import AsyncIterable, Iterable
from itertools import islice
from typing import Any, Protocol

import anyio

from gearflow.client import Client
from gearflow.errors import ConnectionLost


class Bell:
    """Wakes the one who waits; a ring that nobody waited for is kept, once."""

    __slots__ = ("_rung", "_waiter")

    def __init__(self) -> None:
        self._rung = False
        self._waiter: anyio.Event | None = None

    def ring(self) -> None:
        """Wake who waits, or the next who will."""
        self._rung = True
        if self._waiter is not None:
            self._waiter.set()

    async def wait(self) -> None:
        """Return after the next ring, at once if there was one since the last wait."""
        if not self._rung:
            self._waiter = anyio.Event()
            await self._waiter.wait()
            self._waiter = None
        self._rung = False


class Source(Protocol):
    """Gives items as there is room for them."""

    @property
    def ended(self) -> bool:
        """Whether all items were taken."""
        ...

    def take(self, room: int) -> list[Any]:
        """At most ``room`` items, those that are there; raises what the iterable raised."""
        ...

    def close(self) -> None:
        """Nothing more is wanted."""
        ...


class Items:
    """The items of an iterable, which has them at once."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = iter(items)
        self.ended = False

    def take(self, room: int) -> list[Any]:
        """At most ``room`` items."""
        items = list(islice(self._items, room))
        self.ended = len(items) < room
        return items

    def close(self) -> None:
        """Nothing more is wanted."""
        self.ended = True


class AsyncItems:
    """The items of an async iterable, which has them when it has; then it rings the bell."""

    def __init__(self, items: AsyncIterable[Any], bell: Bell, client: Client) -> None:
        self._source = items
        self._bell = bell
        self._client = client
        self._items: deque[Any] = deque()
        self._wanted = 0
        self._more = Bell()
        self._scope: anyio.CancelScope | None = None  # of the iteration, once it has begun
        self._exhausted = False
        self._failure: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether all items were taken."""
        return self._exhausted and not self._items and self._failure is None

    def take(self, room: int) -> list[Any]:
        """Those of at most ``room`` items that are there; the others are asked for."""
        items = [self._items.popleft() for _ in range(min(room, len(self._items)))]
        if self._failure is not None and not items:
            raise self._failure
        self._wanted = room - len(items)
        if self._scope is None and self._wanted:
            self._scope = anyio.CancelScope()
            self._client.start_soon(self._iterate)
        self._more.ring()
        return items

    async def _iterate(self) -> None:
        assert self._scope is not None  # made before this was started
        try:
            with self._scope:
                async for item in self._source:
                    self._items.append(item)
                    self._bell.ring()
                    while len(self._items) >= self._wanted:
                        await self._more.wait()
                self._exhausted = True
        except Exception as error:  # noqa: BLE001  (it belongs to who wants the items)
            self._failure = error
        finally:
            if not self._exhausted and self._failure is None:
                self._failure = ConnectionLost("the client was closed before all items were taken")
            self._bell.ring()

    def close(self) -> None:
        """Nothing more is wanted: an iteration under way is cancelled."""
        if self._scope is not None:
            self._scope.cancel()
