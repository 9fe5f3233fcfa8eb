"""Jobs that have ended here, and that the answer of a shared store may still have.

A shared store answers later. Meanwhile a job may end that was found in another way, such as by a submission
of its unique. So the answer may have a job that is not to run any more: the store does not know its end yet,
or the answer is older than that.
"""

from __future__ import annotations


class RecentEnds:
    """Owns the numbers of these jobs."""

    __slots__ = ("_kept", "_reads", "_unkept")

    def __init__(self) -> None:
        self._unkept: set[int] = set()  # whose end the store has not confirmed
        self._kept: set[int] = set()  # whose end it has confirmed while it was being asked
        self._reads = 0

    def __contains__(self, number: int) -> bool:
        return number in self._unkept or number in self._kept

    def add(self, number: int) -> None:
        """A kept job has ended."""
        self._unkept.add(number)

    def kept(self, number: int) -> None:
        """The store has the end of a job."""
        self._unkept.discard(number)
        if self._reads:
            self._kept.add(number)

    def lost(self, number: int) -> None:
        """The end of a job will not be kept: another server has the job, and it runs again."""
        self._unkept.discard(number)
        self._kept.discard(number)

    def begin_read(self) -> None:
        """The store is asked for jobs."""
        self._reads += 1

    def end_read(self) -> None:
        """It has answered, and the answer was taken."""
        self._reads -= 1
        if not self._reads:
            self._kept.clear()
