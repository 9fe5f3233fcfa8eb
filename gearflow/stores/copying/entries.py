"""The ports between which entries are copied."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

from gearflow.broker.storage import JobPart, JobRecord, Renumbered, Setting, StoredJob

GROUP: Final = 500
"""Entries that are written in one transaction at most, but for those that lie together."""

GROUP_BYTES: Final = 4 << 20
"""Bytes of their bodies, but for a longer one alone."""


class CopyPhase(IntEnum):
    """What is copied, in this order."""

    JOBS = 0
    PARTS = 1  # of streams
    RESULTS = 2
    END = 3  # everything is there


class CopyProgress(NamedTuple):
    """How far a copy has come. The target has it, and it changes together with the entries."""

    phase: CopyPhase = CopyPhase.JOBS
    after: int = 0
    """The last entry that was copied. The source knows what the number means."""
    position: int = -1
    """The last part of the stream of that job."""
    jobs: int = 0
    dead: int = 0
    """Dead letters."""
    parts: int = 0
    results: int = 0
    """Of all jobs that have ended, also of dead letters."""
    damaged: int = 0
    """Entries that could not be read."""
    settings: int = 0
    """Schedules, limits and policies."""

    def text(self) -> str:
        """As the target keeps it."""
        return json.dumps(self)

    @classmethod
    def of(cls, text: str) -> CopyProgress:
        """What ``text`` was made of."""
        phase, *rest = json.loads(text)
        return cls(CopyPhase(phase), *rest)


class CopyGroup(NamedTuple):
    """Entries with the numbers of the source, and the progress once they are written."""

    progress: CopyProgress
    jobs: Sequence[tuple[StoredJob, bool]] = ()  # with whole workloads, and whether it is a dead letter
    parts: Sequence[JobPart] = ()
    results: Sequence[JobRecord] = ()  # with whole bodies. The workload of a letter is its length
    damaged: Sequence[str] = ()  # what is wrong with those that cannot be read
    left: Sequence[str] = ()  # why others are not copied


class CopySource(Protocol):
    """A store whose server is stopped. Nothing of it changes but a mark, which keeps servers from it."""

    name: bytes
    """Part of its handles."""

    renumbered: Sequence[Renumbered]

    async def open(self) -> None:
        """Open it. Raises StoreError if a server uses it, or it cannot be read."""
        ...

    async def begin(self, target: str, key: str) -> tuple[str, bool]:
        """Mark it as being copied. Returns the UUID of the copy, and whether this was the first attempt.

        Args:
            target: The target, for people.
            key: What tells one target from another.

        Raises:
            StoreError: It was or is being copied elsewhere.
        """
        ...

    async def give_up(self) -> None:
        """Remove the mark."""
        ...

    async def end(self) -> None:
        """Mark it as copied."""
        ...

    async def ranges(self) -> Sequence[tuple[int, int]]:
        """The first and the last number of each range in which there may be entries, ascending."""
        ...

    async def paused(self) -> Sequence[bytes]:
        """The functions that are paused."""
        ...

    async def settings(self) -> tuple[Sequence[Setting], Sequence[str]]:
        """The settings, and what is wrong with those that cannot be read."""
        ...

    async def total(self) -> int | None:
        """Jobs and results, if that is known."""
        ...

    def groups(self, progress: CopyProgress) -> AsyncIterator[CopyGroup]:
        """All that is left to copy. Raises StoreError."""
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...


class CopyTarget(Protocol):
    """A store that gets entries. No server sees the jobs before all are there."""

    description: str
    """For people."""

    key: str
    """Tells it from other targets."""

    async def open(self) -> None:
        """Open it. Raises StoreError."""
        ...

    async def begin(self, copy: str, source: CopySource) -> CopyProgress:
        """Begin a copy, or find out how far it has come. Raises StoreError if it cannot be here."""
        ...

    async def write(self, group: CopyGroup) -> None:
        """Write a group and its progress, or nothing. Raises StoreError."""
        ...

    async def settings(self) -> Sequence[Setting]:
        """Those that are there already. They stay as they are."""
        ...

    async def finish(
        self, paused: Sequence[bytes], settings: Sequence[Setting], progress: CopyProgress
    ) -> None:
        """Everything is there: servers may see it. Raises StoreError."""
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...


def composed(older: Sequence[Renumbered], newer: Sequence[Renumbered]) -> list[Renumbered]:
    """What becomes of handles of stores from which jobs were copied before, when they are copied again.

    Args:
        older: Of the source.
        newer: Of the source's own numbers. The result has them, too.
    """
    found = list(newer)
    for name, first, last, add in older:
        for _, new_first, new_last, new_add in newer:
            start, end = max(first, new_first - add), min(last, new_last - add)
            if start <= end:
                found.append(Renumbered(name, start, end, add + new_add))
    return found
