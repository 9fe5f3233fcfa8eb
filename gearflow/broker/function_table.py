"""All functions that the server knows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container
from typing import Final

from gearflow.broker.counts import FunctionCounts, JobCounts
from gearflow.broker.functions import FunctionQueue
from gearflow.broker.limits import Rejected, SizeLimits
from gearflow.errors import RemoteProtocolError
from gearflow.protocol.constants import RESERVED_PREFIX

IDLE: Final = 10_000
"""Names of functions that are remembered although nobody uses them: those that were used last."""


class CountedFunction:
    """The counts of a function, with the queues that they are about: several, if functions share them."""

    __slots__ = ("counts", "queues")

    def __init__(self, counts: FunctionCounts, queues: list[FunctionQueue]) -> None:
        self.counts = counts
        self.queues = queues

    def waiting(self) -> list[int]:
        """The jobs that wait, by priority."""
        return [sum([queue.waiting_of(priority) for queue in self.queues]) for priority in range(3)]

    def delayed(self) -> int:
        """The jobs that are not due yet."""
        return sum([len(queue.delayed) for queue in self.queues])

    def running(self) -> int:
        """The jobs that run, without those that are cancelled."""
        return sum([queue.running for queue in self.queues]) - self.counts.lingering

    def oldest(self) -> float | None:
        """Since when the job that has waited longest could have run. None if no job waits."""
        ready = [queue.oldest() for queue in self.queues]
        return min([since for since in ready if since is not None], default=None)


class Functions:
    """All functions, by name. Owns the table."""

    def __init__(self, limits: SizeLimits) -> None:
        self.by_name: dict[bytes, FunctionQueue] = {}
        self.counts = JobCounts()
        self.most_idle = IDLE
        self.paused: dict[bytes, FunctionQueue] = {}
        self.pauses = 0  # changes of ``paused``
        self.holding = False  # functions that become known hold their kept jobs
        self.made: Callable[[FunctionQueue], None] | None = None  # is called for each that becomes known
        self._limits = limits
        self._idle: OrderedDict[FunctionQueue, None] = OrderedDict()  # the last used last; some are in use

    def ensure(self, name: bytes) -> FunctionQueue:
        """The function of that name, made known if it is not.

        Raises:
            Rejected: The name is reserved.
            RemoteProtocolError: The name is too long.
        """
        function = self.by_name.get(name)
        if function is not None:
            return function
        if name.startswith(RESERVED_PREFIX):
            raise Rejected(b"INVALID_FUNCTION_NAME", b"a reserved function is for foreground submissions")
        if len(name) > self._limits.function:
            limit = self._limits.function
            raise RemoteProtocolError(f"a function name of {len(name)} bytes is over the limit of {limit}")
        function = self.by_name[name] = FunctionQueue(name, self.counts.take(name, len(self.by_name)))
        if self.holding:
            function.hold()
        if self.made is not None:
            self.made(function)
        self.rest(function)
        return function

    def rest(self, function: FunctionQueue) -> None:
        """A function may be in use no more. Beyond ``IDLE`` of them, the one used longest ago is dropped."""
        if function.in_use:
            return
        function.tidy()
        self._idle[function] = None
        self._idle.move_to_end(function)
        if len(self._idle) > self.most_idle:
            oldest, _ = self._idle.popitem(last=False)
            if not oldest.in_use and self.by_name.get(oldest.name) is oldest:
                del self.by_name[oldest.name]
                self.counts.keep(oldest.counts)

    def count_fetch(self, name: bytes) -> None:
        """The end of a job of a function was brought to a caller."""
        queue = self.by_name.get(name)
        counts = queue.counts if queue is not None else self.counts.kept.get(name)
        if counts is not None:
            counts.fetched += 1
        else:
            counts = FunctionCounts(name)
            counts.fetched = 1
            self.counts.keep(counts)

    def counted(self, names: Container[bytes] | None = None) -> list[CountedFunction]:
        """The functions that have these names, or all, those without a queue too."""
        other = self.counts.other
        found: list[CountedFunction] = []
        sharing: list[FunctionQueue] = []
        for queue in self.by_name.values():
            if queue.counts is other:
                sharing.append(queue)
            elif names is None or queue.name in names:
                found.append(CountedFunction(queue.counts, [queue]))
        for name, counts in self.counts.kept.items():
            if names is None or name in names:
                found.append(CountedFunction(counts, []))
        if other is not None and (names is None or other.name in names):
            found.append(CountedFunction(other, sharing))
        return found

    def limit(self, name: bytes, high: int | None, normal: int | None, low: int | None) -> None:
        """Cap a function's jobs, by the priority of a submission; an unknown function is ignored.

        A submission is refused while the function has so many jobs, or more, of any priority.
        """
        function = self.by_name.get(name)
        if function is not None:
            limits = (high, normal, low)
            function.limits = None if limits == (None, None, None) else limits
            function.set_admission(function.has_keys)
            self.rest(function)

    def drop(self, name: bytes) -> bool:
        """Forget a function. False if it has workers or jobs. Raises KeyError if it is not known."""
        function = self.by_name[name]
        if function.workers or function.total:
            return False
        del self.by_name[name]
        if function.limited is not None:
            function.limited.set_rules(None)
        if function.paused:
            del self.paused[name]
            self.pauses += 1
        self._idle.pop(function, None)
        self.counts.keep(function.counts)
        return True

    def pause(self, function: FunctionQueue) -> None:
        """Give out no more jobs of a function."""
        if not function.paused:
            function.pause()
            self.paused[function.name] = function
            self.pauses += 1

    def resume(self, function: FunctionQueue) -> None:
        """Give out jobs of a function again."""
        if function.paused:
            function.resume()
            del self.paused[function.name]
            self.pauses += 1
            self.rest(function)
