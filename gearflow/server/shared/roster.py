"""Which servers of a group are alive, as seen by one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gearflow.stores.shared import ServerRow

_LEASES: Final = 2.0
"""Leases without a beat after which a server counts as gone."""


class Roster:
    """Owns when the beat of each server moved last, on this server's clock."""

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._seen: dict[str, tuple[int, float]] = {}  # by server: its beat, and since when

    def alive(self, rows: Sequence[ServerRow], me: str, now: float) -> list[ServerRow]:
        """The servers whose beats move, and this one."""
        seen: dict[str, tuple[int, float]] = {}
        for row in rows:
            beat, since = self._seen.get(row.server, (row.beat, now))
            seen[row.server] = row.beat, since if beat == row.beat else now
        self._seen = seen
        gone = self.gone(rows, now)
        return [row for row in rows if row.server == me or row.server not in gone]

    def gone(self, rows: Sequence[ServerRow], now: float) -> set[str]:
        """The servers whose beats do not move."""
        return {row.server for row in rows if now - self._seen[row.server][1] >= _LEASES * self._lease}
