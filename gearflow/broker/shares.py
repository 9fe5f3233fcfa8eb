"""What a server has of limits that hold for all servers of a group.

A bucket of such a limit has no slot, and may start no job, until the shell has got some from the store. The
broker notes each bucket that may need others (``note``), and the shell looks at it. It gives them with
``set_slots`` and ``set_starts``, and may take slots back at any time: the running jobs go on.

Of a rate, this server has the starts from one time to another (``Bucket.until``), and no other server does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from gearflow.broker.buckets import Bucket

if TYPE_CHECKING:
    from gearflow.broker.limiter import Limiter

BucketName: TypeAlias = tuple[bytes, str]
"""The name of the limit, and the key."""


class LimitShares:
    """Owns the names of the buckets that the shell is to look at."""

    __slots__ = ("_limiter", "noted", "on_note")

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self.noted: dict[BucketName, None] = {}
        self.on_note: Callable[[], None] | None = None

    def note(self, bucket: Bucket) -> None:
        """A bucket may need other slots or starts than it has."""
        if bucket.is_own:
            return
        if not self.noted and self.on_note is not None:
            self.on_note()
        self.noted[bucket.limit.name, bucket.key] = None

    def take_noted(self) -> list[BucketName]:
        """What was noted since the last call."""
        noted, self.noted = self.noted, {}
        return list(noted)

    def bucket(self, name: BucketName) -> Bucket | None:
        """A bucket, if it is in use."""
        limit = self._limiter.limits.get(name[0])
        return limit.buckets.get(name[1]) if limit is not None else None

    def set_slots(self, name: BucketName, slots: int) -> None:
        """Let only so many jobs run here."""
        bucket = self.bucket(name)
        if bucket is not None:
            bucket.grant = slots
            self._limiter.changed(bucket)

    def set_starts(self, name: BucketName, first: float, until: float) -> None:
        """Let jobs start here in a time, by the clock of the broker, as the rate says."""
        bucket = self.bucket(name)
        if bucket is not None:
            bucket.next_start, bucket.until = first, until
            self._limiter.changed(bucket)
