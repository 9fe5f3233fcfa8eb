"""Many background calls of one task: ``background_many`` and ``abackground_many``.

Calls are sent in groups, each in one write, and the answers to a group are collected before the next one. A
server that keeps its jobs in a file writes a group at once. So memory is bounded, however many items there
are. (A collection is in memory anyway, so all of its items are validated before any is sent.)

Accepted jobs cannot be taken back. So if something fails, ``PartlySubmitted`` lists what was accepted and
what was not. If nothing was sent, the error is raised unchanged.
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


def submit_all(tracker: "SubmissionTracker", client: SyncClient) -> list[Ref[Any]]:
    """Submit all calls, from code without an event loop. Raises as ``background_many``."""
    with tracker.failures_reported():
        for group in tracker.groups():
            tracker.handle_answers(client.submit_many(group))
    return tracker.refs


async def asubmit_all(tracker: "SubmissionTracker", client: Client) -> list[Ref[Any]]:
    """Submit all calls. Raises as ``background_many``."""
    with tracker.failures_reported():
        for group in tracker.groups():
            tracker.handle_answers(await client.submit_many(group))
    return tracker.refs


class SubmissionTracker:
    """The items that were submitted, and their outcomes."""

    def __init__(
        self,
        items: Iterable[Any],
        prepare: Callable[[Any], JobRequest],
        make_ref: Callable[[JobHandle], Ref[Any]],
    ) -> None:
        requests = map(prepare, items)
        self._requests: Iterator[JobRequest] = iter(list(requests)) if isinstance(items, Sized) else requests
        self._make_ref = make_ref
        self._accepted: dict[int, Ref[Any]] = {}
        self._failures: dict[int, Exception] = {}
        self._tried = 0  # items with a known outcome
        self._place = 0  # of the item that an error now belongs to

    @property
    def refs(self) -> list[Ref[Any]]:
        """The references of all accepted jobs, in the order of the items."""
        return list(self._accepted.values())

    def groups(self) -> Iterator[list[JobRequest]]:
        """The calls in groups, each of which is sent at once."""
        while group := self._next_group():
            self._place = self._tried
            yield group

    def handle_answers(self, outcomes: Sequence[JobHandle | Exception]) -> None:
        """Note the outcomes of a group. Raises PartlySubmitted if not all calls were accepted."""
        for place, outcome in enumerate(outcomes, self._tried):
            if isinstance(outcome, Exception):
                self._failures[place] = outcome
            else:
                self._accepted[place] = self._make_ref(outcome)
        self._tried += len(outcomes)
        if self._failures:
            raise PartlySubmitted(self._accepted, self._failures, self._tried)

    @contextmanager
    def failures_reported(self) -> Generator[None]:
        """Turn an error in the block into PartlySubmitted, if jobs were accepted before it."""
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
            request = next(self._requests, None)
            if request is None:
                break
            group.append(request)
            size += len(request.workload)
            self._place += 1
        return group
