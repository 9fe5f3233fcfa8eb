"""The port to a store that several servers share.

**Ownership.** A server owns *lots*, which are ranges of job numbers. Each lot has an epoch, which grows with
each change of its owner. Every group of changes names the lots that it is about, with their epochs. The store
refuses a group of a server that has lost one of them (``Fenced``). A server shows with each *beat* that it is
alive. Others adopt its lots when they have not seen a beat for the time of a lease.

All methods are coroutines on one event loop. Times are Unix time of the store's clock.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol

from gearflow.broker.storage import (
    Answer,
    Change,
    JobRecord,
    Joined,
    Question,
    Renumbered,
    Setting,
    StoredJob,
    StoredParts,
)
from gearflow.errors import StoreError
from gearflow.protocol.group_info import GroupInfo


class Away(StoreError):
    """The store cannot be reached, or did not answer in time.

    (Not public, because the server treats it itself.)
    """

    def __init__(self, text: str, *, sent: bool) -> None:
        """``sent`` says that the changes may be kept. Else they are not."""
        super().__init__(text)
        self.sent = sent


class Fenced(StoreError):
    """Nothing of a group is kept, because this server does not own one of its lots any more."""


class Lot(NamedTuple):
    """A lot of this server's."""

    number: int
    epoch: int


class OtherLot(NamedTuple):
    """A lot of another server's, or of nobody's (owner None)."""

    number: int
    owner: str | None
    epoch: int
    beat: int


class ServerRow(NamedTuple):
    """A server that has started and not stopped. It may be dead."""

    server: str  # a UUID, new with each start
    address: str  # as clients reach it
    version: str
    beat: int


class Order(NamedTuple):
    """Another server wants something done about a job of this server's, as ``Ordered``."""

    id: int
    number: int
    verb: str


class Beat(NamedTuple):
    """The answer to a sign of life."""

    lots: Sequence[Lot]  # all that this server owns
    others: Sequence[OtherLot]
    servers: Sequence[ServerRow]
    changed: int  # grows when a function is paused or resumed, and when jobs were copied from elsewhere
    clock: float
    orders: Sequence[Order]  # also those given before, until ``done`` names them
    settings: Sequence[Setting] = ()  # that have changed since the last beat, and maybe a few more
    all_settings: bool = False  # these are all


class SharedContents(NamedTuple):
    """What a server has to know when it starts."""

    name: bytes  # part of every handle, the same at all servers
    paused: frozenset[bytes]
    changed: int  # as in ``Beat``
    clock: float
    renumbered: Sequence[Renumbered] = ()
    settings: Sequence[Setting] = ()  # without those of the history
    history: Sequence[Setting] = ()  # of the server that had this address before
    history_prefix: bytes = b""  # of the names of these settings


class Slice(NamedTuple):
    """Some of the jobs of a lot, in the order of their numbers. A long workload is its length."""

    jobs: Sequence[StoredJob]
    parts: Mapping[int, StoredParts]  # by number, of the jobs that have any


class SlotWish(NamedTuple):
    """How many slots of a limit a server wants, and how many it would hold now."""

    limit: bytes
    key: str  # empty: the limit counts all jobs together
    slots: int  # that it wants to hold in all
    most: int  # that it would hold now. Less than ``slots`` if it leaves some to others for a while
    total: int  # the most that all servers may hold


class SlotShare(NamedTuple):
    """What a server holds of the slots of a limit."""

    held: int
    is_wanted: bool  # by another server


class StartWish(NamedTuple):
    """How many of the next starts of a rate a server takes."""

    limit: bytes
    key: str
    seconds: float  # that these starts take


class SharedStore(Protocol):
    """Where the jobs and results of several servers live."""

    server: str
    """The UUID of this server, new with each start."""

    on_notify: Callable[[], None] | None
    """Called when another server says that a beat is worth while. Nothing depends on it."""

    @property
    def large(self) -> int:
        """Bytes from which a body is written ahead of its change."""
        ...

    async def open(self) -> SharedContents:
        """Connect, make or check the schema, and register this server. Raises StoreError."""
        ...

    async def migrate(self) -> str:
        """Make or update the schema, without a start of this server. What was done, in words. Raises
        StoreError."""
        ...

    async def ready(self) -> Hashable:
        """Connect, if need be. The result changes when commits that were confirmed may be missing. Raises
        Away and StoreError."""
        ...

    def caught_up(self, era: Hashable) -> None:
        """Everything that was confirmed is there again, in the state that ``ready`` has told of. Until then
        questions are ``Away``: their answers might lack it."""
        ...

    async def take_lots(self, count: int) -> Sequence[Lot]:
        """Own so many new lots. Raises Away."""
        ...

    async def commit(
        self, lots: Mapping[int, int], changes: Sequence[Change]
    ) -> Sequence[str | Joined | None]:
        """Keep all changes, or none; they hold in the order given. The same group may be committed again.

        Args:
            lots: The epochs by lot of the lots that the changes are about.
            changes: Changes of jobs of these lots. Of other jobs only ``Ordered``, and ``Forgotten`` of dead
                letters. And those that are about no job.

        Returns:
            For each change how it went, as ``Done`` takes it.

        Raises:
            Away: What has become of it is not known, unless it was not ``sent``.
            Fenced: A lot is lost.
            StoreError: Nothing is kept. Single changes may fit.
        """
        ...

    async def write_ahead(self, change: StoredJob | JobRecord) -> None:
        """Write the large body of a change. It may be written again. Raises Away and StoreError."""
        ...

    async def answer(self, questions: Sequence[Question]) -> Sequence[Answer]:
        """Answer questions. Raises Away."""
        ...

    async def beat(self, done: Sequence[int]) -> Beat:
        """Show that this server is alive. ``done`` are the orders that it has carried out. Raises Away."""
        ...

    async def paused(self) -> frozenset[bytes]:
        """The paused functions. Raises Away."""
        ...

    async def settings(self) -> Sequence[Setting]:
        """All settings. Raises Away."""
        ...

    async def renumbered(self) -> Sequence[Renumbered]:
        """The stores from which jobs were copied. Raises Away."""
        ...

    async def adopt(self, lot: OtherLot) -> int | None:
        """Own a lot that has had no beat since. The new epoch, or None if it had. Raises Away."""
        ...

    def jobs_of(self, lot: int, after: int) -> AsyncIterator[Slice]:
        """The jobs of a lot that are to run, with a number above ``after``. Raises Away."""
        ...

    async def expire(self, limit: int) -> bool:
        """Remove up to so many results whose time is over. Whether there are more. Raises Away."""
        ...

    async def group(self) -> GroupInfo:
        """What people want to know about the servers and the store. Raises Away and StoreError."""
        ...

    async def forget(self, servers: Sequence[str]) -> None:
        """Forget servers that are dead and own no lots. Raises Away."""
        ...

    async def share(self, wishes: Sequence[SlotWish]) -> Sequence[SlotShare]:
        """Hold so many slots, or as many as the other servers leave. The same wishes may come again.

        Raises:
            Away: It may hold them, or not.
        """
        ...

    async def contested(self) -> Sequence[tuple[bytes, str]]:
        """The limits and keys of slots that this server holds, and another one wants. Raises Away."""
        ...

    async def starts(self, wishes: Sequence[StartWish]) -> Sequence[float]:
        """Take the next starts of rates.

        Returns:
            For each wish when its first start may be. No other server has a start in the seconds from there.

        Raises:
            Away: They may be taken, and are lost then.
        """
        ...

    async def release(self) -> None:
        """Give all lots and slots back, and tell the others. Raises Away."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...
