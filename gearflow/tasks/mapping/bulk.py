"""Many background calls of one task: ``background_many`` and ``abackground_many``.

Calls are sent in groups, each in one write. While the server handles a group, the next one is encoded. It is
sent when the answers to the one before are there. A server that keeps its jobs in a file writes a group at
once. So memory is bounded, however many items there are. (A collection is in memory anyway, so all of its
items are validated before any is sent.)

Accepted jobs cannot be taken back. So if something fails, ``PartlySubmitted`` lists what was accepted and
what was not. If nothing was sent, the error is raised unchanged.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from operator import methodcaller
from typing import Any, Final, NamedTuple

from anyio.lowlevel import checkpoint

from gearflow.client import Client, JobHandle, JobRequest, SyncClient
from gearflow.client.submitter import SentBatch
from gearflow.errors import PartlySubmitted
from gearflow.tasks.ref import Ref

GROUP: Final = 1000
"""Calls in one write."""

GROUP_BYTES: Final = 8 << 20
"""Bytes of workloads with which a group is full."""


def submit_all(tracker: "SubmissionTracker", client: SyncClient) -> list[Ref[Any]]:
    """Submit all calls, from code without an event loop. Raises as ``background_many``."""
    with tracker.failures_reported():
        group = tracker.encode()
        while calls := tracker.calls_of(group):
            batch = client.run(methodcaller("send_many", calls))
            try:
                group = tracker.encode()
            except BaseException:
                client.post(batch.abandon)
                raise
            tracker.handle_answers(client.run(partial(_outcomes, batch)))
    return tracker.refs


async def _outcomes(batch: SentBatch[JobHandle], _: Client) -> list[JobHandle | Exception]:
    return await batch.outcomes()


async def asubmit_all(tracker: "SubmissionTracker", client: Client) -> list[Ref[Any]]:
    """Submit all calls. Raises as ``background_many``."""
    with tracker.failures_reported():
        group = tracker.encode()
        while calls := tracker.calls_of(group):
            batch = await client.send_many(calls)
            try:
                await checkpoint()  # so that it leaves
                group = tracker.encode()
            except BaseException:
                batch.abandon()
                raise
            tracker.handle_answers(await batch.outcomes())
    return tracker.refs


class Group(NamedTuple):
    """Calls that are sent at once, or those before an item that failed, and its error."""

    calls: list[JobRequest]
    failure: Exception | None = None


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

    def encode(self) -> Group:
        """The next group, without any calls after the last."""
        calls: list[JobRequest] = []
        size = 0
        try:
            while len(calls) < GROUP and size < GROUP_BYTES:
                call = next(self._requests, None)
                if call is None:
                    break
                calls.append(call)
                size += len(call.workload)
        except Exception as error:  # noqa: BLE001  (raised when the answers to the group before are there)
            return Group(calls, error)
        return Group(calls)

    def calls_of(self, group: Group) -> list[JobRequest]:
        """The calls to send now. Raises the error of an item."""
        self._place = self._tried
        if group.failure is not None:
            self._place += len(group.calls)
            raise group.failure
        return group.calls

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
