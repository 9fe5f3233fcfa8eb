"""What each server has of the limits that hold for all servers of a group.

Slots (jobs at once) are rows: how many a server holds of a limit and key, and how many more it wants. All
servers together never hold more than the limit. A server asks for the number that it wants in all, which may
be less than it holds. So a request can be repeated. Requests for the same wait for each other, and all take
their locks in one order.

Of a rate, a server takes some of the next starts. Those that it does not use in time are lost, so there are
never too many.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from gearflow.stores.postgres import arrays
from gearflow.stores.postgres.arrays import byteas, floats, ints, read_int, read_real, texts
from gearflow.stores.postgres.schema import literal
from gearflow.stores.postgres.session import DatabaseSession, Query
from gearflow.stores.shared import SlotShare, SlotWish, StartWish


class Shares:
    """The shares of one server."""

    def __init__(self, session: DatabaseSession, schema: str, server: str) -> None:
        """``schema`` is quoted."""
        self._session = session
        self._server = UUID(server).bytes
        me = literal(server)
        self._share = f"SELECT held, is_wanted::int FROM {schema}.share($1, $2, $3, $4, $5, $6)"
        self._contested = (
            f"SELECT encode(limit_name, 'hex'), key FROM {schema}.slots AS m "
            f"WHERE server = {me} AND held > 0 AND EXISTS (SELECT 1 FROM {schema}.slots AS o "
            f"WHERE o.limit_name = m.limit_name AND o.key = m.key AND o.wants > 0 AND o.server <> {me})"
        )
        now = "extract(epoch FROM statement_timestamp())::float8"
        self._start = (
            f"INSERT INTO {schema}.starts AS s SELECT u.limit_name, u.key, {now} + u.seconds "
            "FROM unnest($1, $2, $3) AS u (limit_name, key, seconds) ORDER BY u.limit_name, u.key "
            "ON CONFLICT (limit_name, key) DO UPDATE "
            f"SET next_start = greatest(s.next_start, {now}) + excluded.next_start - {now} "
            "RETURNING limit_name, key, next_start"
        )

    async def share(self, wishes: Sequence[SlotWish]) -> list[SlotShare]:
        """See ``SharedStore.share``."""
        order = sorted(range(len(wishes)), key=lambda place: wishes[place][:2])
        limits, keys, slots, most, totals = zip(*(wishes[place] for place in order), strict=True)
        types = (arrays.UUID, arrays.BYTEAS, arrays.TEXTS, arrays.INTS, arrays.INTS, arrays.INTS)
        params = (self._server, byteas(limits), texts(keys), ints(slots), ints(most), ints(totals))
        (rows,) = await self._session.run(Query(self._share, types, params))
        shares = [SlotShare(read_int(row[0]), read_int(row[1]) > 0) for row in rows]
        by_place = dict(zip(order, shares, strict=True))
        return [by_place[place] for place in range(len(wishes))]

    async def contested(self) -> list[tuple[bytes, str]]:
        """See ``SharedStore.contested``."""
        (rows,) = await self._session.simple(self._contested)
        return [(bytes.fromhex((row[0] or b"").decode()), (row[1] or b"").decode()) for row in rows]

    async def starts(self, wishes: Sequence[StartWish]) -> list[float]:
        """See ``SharedStore.starts``."""
        limits, keys, seconds = zip(*wishes, strict=True)
        types = (arrays.BYTEAS, arrays.TEXTS, arrays.FLOATS)
        params = (byteas(limits), texts(keys), floats(seconds))
        (rows,) = await self._session.run(Query(self._start, types, params))
        ends = {(bytes(row[0] or b""), (row[1] or b"").decode()): read_real(row[2]) for row in rows}
        return [ends[wish.limit, wish.key] - wish.seconds for wish in wishes]
