"""How much of its file a server has read, for those that ask while it reads."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Final

from gearflow.broker.local_port import LocalPort
from gearflow.broker.storage import Contents, Store, StoredJob

_CHECKS: Final = 0.1
"""The share of the time that the checks of the file take, before the first job is read."""


class Loading:
    """Follows a server that reads its file, which blocks its event loop. Owns state.

    One thread changes it. All threads may read ``share``.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        """How much is read, from 0 to 1. None if the server does not read."""

    @contextmanager
    def going_on(self) -> Generator[None]:
        """The server reads for the time of the block."""
        self.share = 0.0
        try:
            yield
        finally:
            self.share = None

    def followed(self, contents: Contents) -> Contents:
        """Contents whose jobs are counted when they are read."""
        return contents._replace(jobs=self._counted(contents.jobs, contents.expected))

    def _counted(self, jobs: Iterator[StoredJob], total: int) -> Generator[StoredJob]:
        self.share = _CHECKS
        for number, job in enumerate(jobs, 1):
            yield job
            if number <= total:
                self.share = _CHECKS + (1 - _CHECKS) * number / total


class FollowedPort(LocalPort):
    """The port to a local store. Others see when the store is read again."""

    def __init__(self, store: Store, loading: Loading) -> None:
        super().__init__(store)
        self._loading = loading

    def reopen(self) -> None:
        """See ``StorePort``."""
        with self._loading.going_on():
            super().reopen()
