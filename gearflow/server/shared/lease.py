"""Which lots this server owns, until when that is certain, and which lots of others it may adopt.

Pure: the caller passes in the answers to beats, with the times on its own clock, which counts the time for
which the process was stopped or the machine was suspended. No clock of another machine counts.

**The owner's side.** Nobody else adopts a lot before a lease has passed since the last beat that went through
was *sent*. A margin before that, the server must hold its jobs (``deadline``).

**The adopter's side.** A lot may be adopted when its beat has not moved for a lease, while the beats of this
server went through all the time. If these stood still too, the store was away, and the other server may be as
alive as this one. A lot without an owner may be adopted at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final, NamedTuple

from gearflow.stores.shared import Beat, Lot, OtherLot, ServerRow

_MARGIN: Final = 0.1
"""The part of a lease by which the owner holds its jobs earlier than others may adopt them."""

_GAP: Final = 0.7
"""The part of a lease after which the beats of this server count as interrupted."""

_LEASES: Final = 2.0
"""Leases without a beat after which a server counts as gone."""

BEATS: Final = 3
"""Beats in a lease."""


class News(NamedTuple):
    """The changes that a beat has shown."""

    lost: Sequence[int]
    gained: Sequence[Lot]
    """Lots that this server owns without knowing: the answer to their adoption was lost."""

    adoptable: Sequence[OtherLot]


class Lease:
    """Owns which lots are this server's.

    Attributes:
        lots: The epochs of this server's lots.
        leaving: Lost lots of which jobs or changes may still be here. They are not to be owned again before
            ``left``.
        deadline: The time from which on the server must hold its kept jobs.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.lots: dict[int, int] = {}
        self.leaving: set[int] = set()
        self.deadline = -inf
        self._owned_since: dict[int, float] = {}
        self._seen: dict[int, tuple[OtherLot, float]] = {}
        self._beat_at = -inf  # when the last beat was answered

    def own(self, lots: Sequence[Lot], now: float) -> None:
        """These lots are this server's from now on."""
        for number, epoch in lots:
            self.lots[number] = epoch
            self._owned_since[number] = now
            self._seen.pop(number, None)

    def left(self, lot: int) -> None:
        """Nothing of a lost lot is here any more."""
        self.leaving.discard(lot)

    def confirm(self, sent: float, now: float, beat: Beat) -> News:
        """A beat that was sent at a time has been answered."""
        theirs = dict(beat.lots)
        lost = [
            lot
            for lot, epoch in self.lots.items()
            if theirs.get(lot) != epoch and self._owned_since[lot] <= sent
        ]
        for lot in lost:
            del self.lots[lot], self._owned_since[lot]
            self.leaving.add(lot)
        gained = [lot for lot in beat.lots if lot.number not in self.lots and lot.number not in self.leaving]
        self.deadline = max(self.deadline, sent + self.seconds * (1 - _MARGIN))
        return News(lost, gained, self._adoptable(now, beat.others))

    def _adoptable(self, now: float, others: Sequence[OtherLot]) -> list[OtherLot]:
        is_steady = now - self._beat_at <= self.seconds * _GAP
        self._beat_at = now
        seen: dict[int, tuple[OtherLot, float]] = {}
        for lot in others:
            before = self._seen.get(lot.number)
            since = before[1] if before is not None and before[0] == lot and is_steady else now
            seen[lot.number] = lot, since
        self._seen = seen
        return [
            lot
            for lot, since in seen.values()
            if lot.number not in self.leaving
            and lot.number not in self.lots
            and (lot.owner is None or now - since >= self.seconds)
        ]


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
