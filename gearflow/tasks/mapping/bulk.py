"""Many background calls of one task: ``background_many`` and ``abackground_many``.

Calls go out in groups, each in one write, whose answers are collected before the next one; a server that
keeps its jobs in a file writes a group in one go. So memory is bounded, however many items there are. (A
collection, which has a length, is in memory as it is: all of its items are validated before any is sent.)

What was accepted cannot be taken back. So when something goes wrong, the account of it is raised:
``PartlySubmitted``. If nothing was sent, it is raised as what it is.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, Final

from gearflow.client import Client, JobHandle, JobRequest, SyncClient
from gearflow.errors import PartlySubmitted
from gearflow.tasks.ref import Ref

GROUP: Final = 1000
"""Calls in one write."""

GROUP_BYTES: Final = 8 << 20
"""Bytes of workloads with which a group is full."""


def submit_all(account: "SubmissionTracker", client: SyncClient) -> list[Ref[Any]]:
    """Submit all calls of an account, from code without an event loop. Raises as ``background_many``."""
    with account.kept():
        for group in account.groups():
            account.take_in(client.submit_many(group))
    return account.refs


async def asubmit_all(account: "SubmissionTracker", client: Client) -> list[Ref[Any]]:
    """Submit all calls of an account. Raises as ``background_many``."""
    with account.kept():
        for group in account.groups():
            account.take_in(await client.submit_many(group))
    return account.refs


class SubmissionTracker:
    """Which items were submitted, and what became of them. Owns state."""

    def __init__(
        self,
        items: Iterable[Any],
        prepare: Callable[[Any], JobRequest],
        make_ref: Callable[[JobHandle], Ref[Any]],
    ) -> None:
        orders = map(prepare, items)
        self._orders: Iterator[JobRequest] = iter(list(orders)) if isinstance(items, Sized) else orders
        self._make_ref = make_ref
        self._accepted: dict[int, Ref[Any]] = {}
        self._failures: dict[int, Exception] = {}
        self._tried = 0  # items whose outcome is known
        self._place = 0  # of the item at which it would fail now

    @property
    def refs(self) -> list[Ref[Any]]:
        """Those of all accepted jobs, in the order of the items."""
        return list(self._accepted.values())

    def groups(self) -> Iterator[list[JobRequest]]:
        """The calls, as many at a time as are sent together."""
        while group := self._next_group():
            self._place = self._tried
            yield group

    def take_in(self, outcomes: Sequence[JobHandle | Exception]) -> None:
        """What became of a group. Raises PartlySubmitted if it was not all accepted."""
        for place, outcome in enumerate(outcomes, self._tried):
            if isinstance(outcome, Exception):
                self._failures[place] = outcome
            else:
                self._accepted[place] = self._make_ref(outcome)
        self._tried += len(outcomes)
        if self._failures:
            raise PartlySubmitted(self._accepted, self._failures, self._tried)

    @contextmanager
    def kept(self) -> Generator[None]:
        """What is raised in the block becomes part of the account, if there is one to give."""
        try:
            yield
        except PartlySubmitted:
            raise
        except Exception as error:
            if not self._accepted:
                raise
            raise PartlySubmitted(self._accepted, {self._place: error}, self._tried) from error

    def _next_group(self) -> list[JobRequest]:
        group: list[JobRequest] = []
        size = 0
        self._place = self._tried
        while len(group) < GROUP and size < GROUP_BYTES:
            order = next(self._orders, None)
            if order is None:
                break
            group.append(order)
            size += len(order.workload)
            self._place += 1
        return group
