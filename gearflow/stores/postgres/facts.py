"""What people want to know about a group and its database: ``gearflow:group``.

All of it is cheap, however many jobs there are. The statistics of PostgreSQL are estimates. Jobs are counted
lot by lot up to a limit. The columns about other sessions and about standbys are empty if the role of the
servers may not see them (``GRANT pg_monitor``).
"""

from __future__ import annotations

from typing import Final

from gearflow.broker.handles import LOT_BITS
from gearflow.protocol.group_info import GroupInfo, GroupServer, Standby
from gearflow.stores.postgres.schema import literal
from gearflow.stores.postgres.session import DatabaseSession, Row

MOST_COUNTED: Final = 10_000
"""Jobs of one lot that are counted. More are estimated for all lots together."""

_SERVERS: Final = f"""
SELECT s.address, s.server, s.version, extract(epoch FROM clock_timestamp() - s.seen), count(l.lot),
    coalesce(sum(j.jobs), 0)
FROM {{s}}.servers AS s LEFT JOIN {{s}}.lots AS l ON l.owner = s.server
LEFT JOIN LATERAL (SELECT count(*) AS jobs FROM (SELECT 1 FROM {{s}}.jobs AS job WHERE NOT job.dead
    AND job.number >= l.lot::bigint << {LOT_BITS} AND job.number < (l.lot::bigint + 1) << {LOT_BITS}
    LIMIT {MOST_COUNTED}) AS found) AS j ON true
GROUP BY s.server ORDER BY s.address, s.server
"""

_TABLES: Final = """
SELECT coalesce(sum(n_dead_tup), 0), coalesce(sum(n_live_tup) FILTER (WHERE relname = 'jobs'), 0),
    extract(epoch FROM max(greatest(last_vacuum, last_autovacuum)) FILTER (WHERE relname = 'jobs'))
FROM pg_stat_user_tables WHERE schemaname = {name}
"""

_SNAPSHOT: Final = """
SELECT extract(epoch FROM max(clock_timestamp() - xact_start)) FROM pg_stat_activity
WHERE datname = current_database() AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
    AND pid <> pg_backend_pid()
"""

_STANDBYS: Final = """
SELECT application_name, state, sync_state, extract(epoch FROM
    CASE WHEN replay_lag IS NULL AND replay_lsn >= sent_lsn THEN interval '0' ELSE replay_lag END)
FROM pg_stat_replication WHERE application_name NOT LIKE 'pg_basebackup%' ORDER BY application_name
"""


class DatabaseFacts:
    """Finds the facts, on a session that nothing waits for."""

    def __init__(self, session: DatabaseSession, schema: str, quoted_schema: str) -> None:
        self._session = session
        statements = (f"SELECT name FROM {quoted_schema}.meta", _SERVERS, _TABLES, _SNAPSHOT, _STANDBYS)
        self._find = "; ".join(statements).replace("{s}", quoted_schema).replace("{name}", literal(schema))

    async def find(self) -> GroupInfo:
        """The facts of now. Raises Away and StoreError."""
        names, servers, tables, snapshots, standbys = await self._session.simple(self._find)
        found = tuple(map(_server, servers))
        dead_rows, live_rows, vacuumed = tables[0]
        counted = sum(server.jobs for server in found)
        is_exact = all(server.jobs < MOST_COUNTED for server in found)
        return GroupInfo(
            group=_text(names[0][0]),
            servers=found,
            jobs=counted if is_exact else max(counted, int(live_rows or 0)),
            dead_rows=int(dead_rows or 0),
            last_vacuum=_number(vacuumed),
            oldest_snapshot=_number(snapshots[0][0]),
            standbys=tuple(map(_standby, standbys)),
        )


def _server(row: Row) -> GroupServer:
    address, server, version, beat, lots, jobs = row
    return GroupServer(
        address=_text(address),
        server=_text(server),
        version=_text(version),
        beat=max(_number(beat) or 0.0, 0.0),
        lots=int(lots or 0),
        jobs=int(jobs or 0),
    )


def _standby(row: Row) -> Standby:
    name, state, sync, lag = row
    return Standby(name=_text(name), state=_text(state), sync=_text(sync), lag=_number(lag))


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


def _number(value: bytes | None) -> float | None:
    return None if value is None else round(float(value), 3)
