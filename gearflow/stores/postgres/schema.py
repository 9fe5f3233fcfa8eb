"""The tables, and the steps from each version of them to the next.

A step only adds. So servers of the version before may go on while some are replaced by later ones. ``oldest``
of a version is the oldest code that can use its tables. A step waits, with an error, until no server of older
code is alive. An advisory lock lets one server at a time look and migrate.

``number = lot << 40 | n``, so that a lot is a range of the primary key. ``key`` is the hash of the function
and the unique, and there is no other live job with it. The function ``fence`` locks the lots of a group: an
adopter waits for the end of the group, and a group that comes after the adopter is refused. The lock is KEY
SHARE, so beats, which change the same row, do not wait for groups.
"""

from __future__ import annotations

from typing import Final, NamedTuple

LOCK: Final = 0x6765617266  # of all servers that look at the version


class Step(NamedTuple):
    """What makes a version from the one before."""

    oldest: int  # the oldest version whose code can use the tables after this step
    statements: str  # {s} is the schema, as an identifier


_TABLES: Final = """
CREATE TABLE {s}.meta (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version int NOT NULL,
    oldest int NOT NULL,
    name text NOT NULL,
    changed bigint NOT NULL DEFAULT 0,
    moved text
);
CREATE SEQUENCE {s}.lot_numbers AS int MINVALUE 1 MAXVALUE 8388607;
CREATE TABLE {s}.servers (
    server uuid PRIMARY KEY,
    address text NOT NULL,
    version text NOT NULL,
    code int NOT NULL,
    lease float8 NOT NULL,
    started timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen timestamptz NOT NULL DEFAULT clock_timestamp(),
    beat bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
CREATE TABLE {s}.lots (
    lot int PRIMARY KEY,
    owner uuid,
    epoch bigint NOT NULL DEFAULT 1,
    beat bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
CREATE TABLE {s}.jobs (
    number bigint PRIMARY KEY,
    key uuid,
    submitted float8 NOT NULL,
    due float8 NOT NULL,
    attempt int NOT NULL,
    deaths int NOT NULL,
    priority smallint NOT NULL,
    dead boolean NOT NULL DEFAULT false,
    function bytea NOT NULL,
    uniq bytea NOT NULL,
    reducer bytea,
    options bytea NOT NULL,
    workload bytea,
    pieces uuid,
    size bigint
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE {s}.jobs ALTER COLUMN workload SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX jobs_key ON {s}.jobs (key) WHERE key IS NOT NULL;
CREATE TABLE {s}.records (
    number bigint PRIMARY KEY,
    expires float8 NOT NULL,
    token bigint,
    submitted float8 NOT NULL,
    started float8 NOT NULL,
    ended float8 NOT NULL,
    attempt int NOT NULL,
    deaths int NOT NULL,
    outcome smallint NOT NULL,
    dead boolean NOT NULL DEFAULT false,
    function bytea NOT NULL,
    uniq bytea NOT NULL,
    worker bytea NOT NULL,
    notes bytea NOT NULL,
    body bytea,
    pieces uuid,
    size bigint
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0);
ALTER TABLE {s}.records ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX records_expires ON {s}.records (expires);
CREATE INDEX records_token ON {s}.records (token, ended DESC) WHERE token IS NOT NULL;
CREATE INDEX records_dead ON {s}.records (number) WHERE dead;
CREATE TABLE {s}.stream_parts (
    number bigint,
    run int,
    position bigint,
    body bytea NOT NULL,
    PRIMARY KEY (number, run, position)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0);
ALTER TABLE {s}.stream_parts ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE TABLE {s}.bodies (
    pieces uuid PRIMARY KEY,
    number bigint NOT NULL,
    made timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE {s}.pieces (
    pieces uuid,
    place int,
    bytes bytea NOT NULL,
    PRIMARY KEY (pieces, place)
);
ALTER TABLE {s}.pieces ALTER COLUMN bytes SET STORAGE EXTERNAL;
CREATE TABLE {s}.paused (
    function bytea PRIMARY KEY,
    since timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE {s}.orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    number bigint NOT NULL,
    verb text NOT NULL,
    made timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX orders_number ON {s}.orders (number, verb);
CREATE TABLE {s}.renumbered (
    name bytea,
    first bigint,
    last bigint NOT NULL,
    add bigint NOT NULL,
    PRIMARY KEY (name, first)
);
CREATE TABLE {s}.copies (
    id uuid PRIMARY KEY,
    name bytea NOT NULL,
    lot int NOT NULL,
    lots int NOT NULL,
    progress text NOT NULL,
    done timestamptz
);
CREATE FUNCTION {s}.fence(_lots int[], _epochs bigint[], _owner uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    held int;
BEGIN
    PERFORM 1 FROM {s}.lots AS l JOIN unnest(_lots, _epochs) AS m (lot, epoch) USING (lot, epoch)
        WHERE l.owner = _owner ORDER BY l.lot FOR KEY SHARE OF l;
    GET DIAGNOSTICS held = ROW_COUNT;
    IF held <> cardinality(_lots) THEN
        RAISE EXCEPTION 'fenced' USING ERRCODE = 'GF001';
    END IF;
END $$;
INSERT INTO {s}.meta (version, oldest, name)
    VALUES (0, 0, substr(md5(random()::text || clock_timestamp()::text), 1, 8));
"""

# ``changed`` is the transaction that has written a setting. A server reads those that may have committed
# since its last look (``pg_snapshot_xmin``). So a tick costs neither a row that all groups wait for, nor a
# look at all settings. A setting that was removed stays for a day, without a value: the others see it go.
_SETTINGS: Final = """
CREATE TABLE {s}.settings (
    kind text,
    name bytea,
    value bytea NOT NULL,
    changed xid8 NOT NULL DEFAULT pg_current_xact_id(),
    removed timestamptz,
    PRIMARY KEY (kind, name)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
CREATE INDEX settings_changed ON {s}.settings (changed);
CREATE INDEX settings_removed ON {s}.settings (removed) WHERE removed IS NOT NULL;
"""

# The slots of a limit that each server holds, and how many more it wants (``shares``). A lock for each limit
# and key makes the requests of servers wait for each other.
_SHARES: Final = """
CREATE TABLE {s}.slots (
    limit_name bytea,
    key text,
    server uuid,
    held int NOT NULL,
    wants int NOT NULL,
    PRIMARY KEY (limit_name, key, server)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX slots_server ON {s}.slots (server);
CREATE TABLE {s}.starts (
    limit_name bytea,
    key text,
    next_start float8 NOT NULL,
    PRIMARY KEY (limit_name, key)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE FUNCTION {s}.share(
    _server uuid, _limits bytea[], _keys text[], _slots int[], _most int[], _totals int[]
) RETURNS TABLE (held int, is_wanted boolean) LANGUAGE plpgsql AS $$
DECLARE
    seed bigint;
    taken bigint;
BEGIN
    SELECT hashtextextended(m.name, 0) INTO seed FROM {s}.meta AS m;
    FOR place IN 1 .. cardinality(_limits) LOOP
        PERFORM pg_advisory_xact_lock(
            hashtextextended(encode(_limits[place], 'hex') || ' ' || _keys[place], seed));
        SELECT coalesce(sum(s.held), 0), coalesce(bool_or(s.wants > 0), false) INTO taken, is_wanted
            FROM {s}.slots AS s
            WHERE s.limit_name = _limits[place] AND s.key = _keys[place] AND s.server <> _server;
        held := greatest(least(_slots[place], _most[place], _totals[place] - taken), 0);
        IF _slots[place] = 0 THEN
            DELETE FROM {s}.slots AS s
                WHERE s.limit_name = _limits[place] AND s.key = _keys[place] AND s.server = _server;
        ELSE
            INSERT INTO {s}.slots AS s
                VALUES (_limits[place], _keys[place], _server, held, _slots[place] - held)
                ON CONFLICT ON CONSTRAINT slots_pkey
                DO UPDATE SET held = excluded.held, wants = excluded.wants
                WHERE s.held <> excluded.held OR s.wants <> excluded.wants;
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;
"""

# For lists of jobs, the last one first. The next entry is behind all others, so it costs little.
_ENDED: Final = """
CREATE INDEX records_ended ON {s}.records (ended, number);
"""

STEPS: Final = (
    Step(1, _TABLES),
    # Code 1 reads none of these settings: its servers do not tick, and give out jobs without limits. They may
    # still go on beside later ones, so that servers can be replaced one by one. Nothing is limited or
    # scheduled before the first later server, and a tick is one job, whichever servers are alive. Until the
    # last server of code 1 is gone, a limit holds for the others alone. With an ``oldest`` of 2, all servers
    # would have to stop for this upgrade.
    Step(1, _SETTINGS + _SHARES),
    Step(1, _ENDED),
)
"""The first one makes version 1."""


def quoted(name: str) -> str:
    """An identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string in SQL."""
    quote = "'"
    return f"{quote}{text.replace(quote, quote * 2)}{quote}"
