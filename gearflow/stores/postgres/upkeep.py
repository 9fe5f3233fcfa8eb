"""Removes results whose time is over, and what nobody needs any more. Any number of servers do so at once."""

from __future__ import annotations

from typing import Final

from gearflow.stores.postgres import arrays
from gearflow.stores.postgres.arrays import integer, read_int, real
from gearflow.stores.postgres.errors import Collided, Locked
from gearflow.stores.postgres.session import DatabaseSession, Query

_RARE: Final = 100
"""After so many calls that removed all there was, what is left over is looked for."""


class Upkeep:
    """Removes what is not needed, on a session that nothing waits for."""

    def __init__(self, session: DatabaseSession, schema: str) -> None:
        """``schema`` is quoted."""
        self._session = session
        self._calls = 0
        gone = (
            "gone AS (DELETE FROM {s}.records AS r WHERE r.number IN (SELECT number FROM {s}.records "
            "WHERE expires <= coalesce($2, extract(epoch FROM clock_timestamp())) ORDER BY expires LIMIT $1 "
            "FOR UPDATE SKIP LOCKED) RETURNING r.number, r.dead, r.pieces)"
        )
        jobs = (
            "jobs AS (DELETE FROM {s}.jobs AS j USING gone WHERE j.number = gone.number AND gone.dead "
            "AND j.dead RETURNING j.pieces)"
        )
        parts = "parts AS (DELETE FROM {s}.stream_parts AS s USING gone WHERE s.number = gone.number)"
        both = "(SELECT pieces FROM gone UNION ALL SELECT pieces FROM jobs)"
        pieces = ", ".join(
            f"{table}_gone AS (DELETE FROM {{s}}.{table} AS t USING {both} AS o "
            "WHERE o.pieces IS NOT NULL AND t.pieces = o.pieces)"
            for table in ("bodies", "pieces")
        )
        self._expire = f"WITH {gone}, {jobs}, {parts}, {pieces} SELECT count(*) FROM gone".replace(
            "{s}", schema
        )
        self._tidy = "; ".join(
            statement.replace("{s}", schema)
            for statement in (
                (
                    "WITH lost AS (DELETE FROM {s}.bodies AS b "
                    "WHERE made < clock_timestamp() - interval '1 h' AND "
                    "NOT EXISTS (SELECT 1 FROM {s}.jobs AS j WHERE j.number = b.number AND "
                    "j.pieces = b.pieces) AND NOT EXISTS (SELECT 1 FROM {s}.records AS r "
                    "WHERE r.number = b.number AND r.pieces = b.pieces) RETURNING b.pieces) "
                    "DELETE FROM {s}.pieces AS p USING lost WHERE p.pieces = lost.pieces"
                ),
                "DELETE FROM {s}.orders WHERE made < clock_timestamp() - interval '1 day'",
                # A copy by pg_dump may be of a cluster that has had more transactions than this one.
                "UPDATE {s}.settings SET changed = DEFAULT WHERE changed > pg_current_xact_id()",
                "DELETE FROM {s}.settings WHERE removed < clock_timestamp() - interval '1 day'",
                (
                    "DELETE FROM {s}.slots AS s "
                    "WHERE NOT EXISTS (SELECT 1 FROM {s}.servers AS v WHERE v.server = s.server)"
                ),
                "DELETE FROM {s}.starts WHERE next_start < extract(epoch FROM clock_timestamp()) - 60",
                "DELETE FROM {s}.servers WHERE seen < clock_timestamp() - interval '1 h'",
            )
        )

    async def expire(self, limit: int, now: float | None) -> bool:
        """Remove up to so many results, as ``SharedStore.expire``."""
        param = real(now) if now is not None else None
        types = (arrays.INT, arrays.FLOAT)
        try:
            (rows,) = await self._session.run(Query(self._expire, types, (integer(limit), param)))
        except (Collided, Locked):  # with a server that revives or forgets one of them; the next call does it
            return False
        if read_int(rows[0][0]) >= limit:
            return True
        self._calls += 1
        if self._calls % _RARE == 1:
            await self._session.simple(self._tidy)
        return False
