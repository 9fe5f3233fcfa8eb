"""What can go wrong with a server's store: the n-th write or sync fails, or the process dies in it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

from gearflow.broker.storage import Change, JobRecord, Store, StoredJob
from gearflow.errors import StoreError
from gearflow.server.settings import FILE_NAME, ServerSettings
from gearflow.stores import SqliteStore
from gearflow.stores.sqlite.schema import Metadata
from gearflow.stores.sqlite.tuning import Tuning

OpenStore: TypeAlias = Callable[[ServerSettings], Store]

How: TypeAlias = Literal["refused", "killed before", "killed within", "killed after"]


LARGE: Final = 4500
"""Bytes from which a body is in parts."""

MARK: Final = b"now for the planned fault\n"
"""What the server's log says then."""


class Fault(NamedTuple):
    """The ``number``-th call, and so many after it, of what is ``at`` fault.

    Each part of a large body counts as a write.
    """

    at: Literal["write", "sync"]
    number: int
    how: How
    times: int = 1


class FaultyStore(SqliteStore):
    """A store in a file whose writes or syncs fail, as the fault says."""

    def __init__(self, settings: ServerSettings, fault: Fault) -> None:
        self._fault = fault
        self._calls = 0
        assert settings.data is not None
        settings.data.mkdir(parents=True, exist_ok=True)
        super().__init__(
            settings.data / FILE_NAME,
            keep_bytes=settings.keep_bytes,
            sync=settings.sync,
            tuning=Tuning(part=LARGE - 1),
        )

    def write_ahead(self, change: StoredJob | JobRecord) -> Generator[None, None, None]:
        steps = super().write_ahead(change)
        if self._fault.at != "write":
            yield from steps
            return
        is_over = False

        def step() -> None:
            nonlocal is_over
            is_over = next(steps, "over") == "over"

        try:
            while not is_over:
                self._go_wrong(step)
                yield
        finally:
            steps.close()

    def write(self, changes: Sequence[Change]) -> None:
        if self._fault.at == "write":
            self._go_wrong(lambda: super(FaultyStore, self).write(changes))
        else:
            super().write(changes)

    def sync(self) -> None:
        if self._fault.at == "sync":
            self._go_wrong(super().sync)
        else:
            super().sync()

    def _go_wrong(self, act: Callable[[], None]) -> None:
        fault = self._fault
        self._calls += 1
        if not fault.number <= self._calls < fault.number + fault.times:
            act()
            return
        os.write(2, MARK)
        if fault.how == "refused":
            raise StoreError("this fault was planned")
        if fault.how == "killed before":
            _die()
        elif fault.how == "killed after":
            act()
            _die()
        else:
            # What comes after all rows, and before COMMIT.
            Metadata.update = _die  # type: ignore[method-assign,assignment]  # pyright: ignore[reportAttributeAccessIssue]
            act()


def faulty(fault: Fault) -> OpenStore:
    """Opens stores with that fault."""
    return lambda settings: FaultyStore(settings, fault)


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()
