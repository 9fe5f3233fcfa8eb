"""What each kind of change does in SQL, and the statement of a group that has some of these kinds.

A group is one statement: the fence, then one part for each kind that occurs. So it is one round trip, and its
locks are taken when all of it has arrived. All parts see the tables as they were before, so no number may
occur twice in a statement.

In the SQL of a kind ``{s}`` is the schema, each ``?`` a parameter, and ``{f}`` the fence in a FROM. Rows are
sorted by key, so that two servers with the same keys do not wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from gearflow.broker.storage import HISTORY
from gearflow.stores.postgres import arrays
from gearflow.stores.postgres.arrays import (
    bigint,
    bigints,
    byteas,
    floats,
    integer,
    ints,
    real,
    smallint,
    smallints,
    texts,
    uuids,
)

_Encoder: TypeAlias = Callable[[Any], bytes | None]  # of a column


def _alone(encode: Callable[[Any], bytes]) -> _Encoder:
    """Of a column with one value, which is a parameter by itself."""
    return lambda column: None if column[0] is None else encode(column[0])


_bigint: Final = _alone(bigint)
_integer: Final = _alone(integer)
_smallint: Final = _alone(smallint)
_real: Final = _alone(real)
_bytea: Final = _alone(bytes)
_uuid: Final = _alone(bytes)

_TYPES: Final[dict[_Encoder, int]] = {
    _bigint: arrays.BIGINT,
    _integer: arrays.INT,
    _smallint: arrays.SMALLINT,
    _real: arrays.FLOAT,
    _bytea: arrays.BYTEA,
    _uuid: arrays.UUID,
    bigints: arrays.BIGINTS,
    ints: arrays.INTS,
    smallints: arrays.SMALLINTS,
    floats: arrays.FLOATS,
    byteas: arrays.BYTEAS,
    uuids: arrays.UUIDS,
    texts: arrays.TEXTS,
}


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """A kind of change."""

    place: int  # in the statement
    sql: str  # CTEs
    encoders: tuple[_Encoder, ...]  # of the columns
    counted: str = ""  # the CTE with a row for each change that found what it needs
    alone: Kind | None = None  # does the same for a single change, with less work

    def params(self, rows: Sequence[tuple[Any, ...]]) -> list[bytes | None]:
        """The columns of some changes."""
        return [encode(column) for encode, column in zip(self.encoders, zip(*rows, strict=True), strict=True)]


class Statement(NamedTuple):
    """What does all kinds of a group."""

    sql: str
    types: tuple[int, ...]


_JOB: Final = (
    "number, key, submitted, due, attempt, deaths, priority, function, uniq, reducer, options, workload"
)
_JOB_ENCODERS: Final = (
    bigints, uuids, floats, floats, ints, ints, smallints, byteas, byteas, byteas, byteas, byteas,
)  # fmt: skip
_JOB_ALONE: Final = (
    _bigint, _uuid, _real, _real, _integer, _integer, _smallint, _bytea, _bytea, _bytea, _bytea, _bytea,
)  # fmt: skip
_RECORD: Final = (
    "number, expires, token, submitted, started, ended, attempt, deaths, outcome, function, uniq, worker, "
    "notes, body"
)
_RECORD_ENCODERS: Final = (
    bigints, floats, bigints, floats, floats, floats, ints, ints, smallints, byteas, byteas, byteas, byteas,
    byteas,
)  # fmt: skip
_VALUES: Final = ", ".join("u." + name for name in _RECORD.split(", ")).replace(
    "u.token", "nullif(u.token, 0)"  # an array of numbers has no NULL
)  # fmt: skip


def _unnest(columns: str) -> str:
    """Rows from parameters."""
    return f"{{f}}unnest({', '.join('?' * len(columns.split(', ')))}) AS u ({columns})"


def _without_pieces(cte: str) -> str:
    """Bodies go with the rows that a CTE has removed."""
    return (
        f"{cte}b AS (DELETE FROM {{s}}.bodies AS b USING {cte} AS o "
        "WHERE o.pieces IS NOT NULL AND b.pieces = o.pieces), "
        f"{cte}p AS (DELETE FROM {{s}}.pieces AS p USING {cte} AS o "
        "WHERE o.pieces IS NOT NULL AND p.pieces = o.pieces)"
    )


INSERT_ALONE: Final = Kind(  # a row from arrays takes the server twice as long
    20,
    f"one AS (INSERT INTO {{s}}.jobs ({_JOB}) SELECT u.* FROM {{f}}"
    f"(VALUES ({', '.join('?' * len(_JOB_ALONE))})) AS u ON CONFLICT DO NOTHING RETURNING number)",
    _JOB_ALONE,
    "one",
)
INSERT: Final = Kind(
    0,
    f"new AS (INSERT INTO {{s}}.jobs ({_JOB}) SELECT u.* FROM {_unnest(_JOB)} ORDER BY u.key "
    "ON CONFLICT DO NOTHING RETURNING number)",
    _JOB_ENCODERS,
    "new",
    INSERT_ALONE,
)
INSERT_LARGE: Final = Kind(
    1,
    f"big AS (INSERT INTO {{s}}.jobs ({_JOB}, pieces, size) SELECT u.* "
    f"FROM {_unnest(_JOB + ', pieces, size')} ORDER BY u.key ON CONFLICT DO NOTHING RETURNING number)",
    (*_JOB_ENCODERS, uuids, bigints),
    "big",
)
RESTORE: Final = Kind(
    2,
    "res AS (UPDATE {s}.jobs AS j SET submitted = u.submitted, due = u.due, attempt = u.attempt, "
    "deaths = u.deaths, priority = u.priority, reducer = u.reducer, options = u.options FROM "
    + _unnest("number, submitted, due, attempt, deaths, priority, reducer, options")
    + " WHERE j.number = u.number RETURNING j.number)",
    (bigints, floats, floats, ints, ints, smallints, byteas, byteas),
    "res",
)
RESCHEDULE: Final = Kind(
    3,
    "upd AS (UPDATE {s}.jobs AS j SET due = u.due, attempt = u.attempt, deaths = u.deaths, "
    f"options = coalesce(u.options, j.options) FROM {_unnest('number, due, attempt, deaths, options')} "
    "WHERE j.number = u.number AND NOT j.dead)",
    (bigints, floats, ints, ints, byteas),
)
END: Final = Kind(
    4,
    f"old AS (DELETE FROM {{s}}.jobs AS j USING {_unnest('number')} WHERE j.number = u.number "
    f"RETURNING j.pieces), {_without_pieces('old')}",
    (bigints,),
)
RECORD: Final = Kind(
    5,
    f"rec AS (INSERT INTO {{s}}.records ({_RECORD}) SELECT {_VALUES} FROM {_unnest(_RECORD)} "
    "ON CONFLICT (number) DO NOTHING)",
    _RECORD_ENCODERS,
)
RECORD_LARGE: Final = Kind(
    6,
    f"recl AS (INSERT INTO {{s}}.records ({_RECORD}, pieces, size) SELECT {_VALUES}, u.pieces, u.size "
    f"FROM {_unnest(_RECORD + ', pieces, size')} ON CONFLICT (number) DO NOTHING)",
    (*_RECORD_ENCODERS, uuids, bigints),
)
LETTER: Final = Kind(  # a dead letter whose job is there
    7,
    f"let AS MATERIALIZED (SELECT u.* FROM {_unnest(_RECORD + ', due, attempts, death, options')}), "
    "dead AS (UPDATE {s}.jobs AS j SET dead = true, key = NULL, due = u.due, attempt = u.attempts, "
    "deaths = u.death, options = u.options FROM let AS u WHERE j.number = u.number RETURNING j.number), "
    f"recd AS (INSERT INTO {{s}}.records ({_RECORD}, dead) SELECT {_VALUES}, true "
    "FROM dead JOIN let AS u USING (number) ON CONFLICT (number) DO NOTHING)",
    (*_RECORD_ENCODERS, floats, ints, ints, byteas),
    "dead",
)
WHOLE_LETTER: Final = Kind(  # with its workload; beside it is its ``RECORD_OF_LETTER``
    8,
    f"lets AS (INSERT INTO {{s}}.jobs AS j ({_JOB}, dead) SELECT u.*, true FROM {_unnest(_JOB)} "
    "ON CONFLICT (number) DO UPDATE SET dead = true, key = NULL, due = excluded.due, "
    "attempt = excluded.attempt, deaths = excluded.deaths, options = excluded.options)",
    _JOB_ENCODERS,
)
RECORD_OF_LETTER: Final = Kind(
    9,
    f"recw AS (INSERT INTO {{s}}.records ({_RECORD}, dead) SELECT {_VALUES}, true FROM {_unnest(_RECORD)} "
    "ON CONFLICT (number) DO NOTHING)",
    _RECORD_ENCODERS,
)
FORGET: Final = Kind(
    10,
    "fu AS MATERIALIZED (SELECT u.number FROM " + _unnest("number") + "), "
    "fj AS (DELETE FROM {s}.jobs AS j USING fu AS u WHERE j.number = u.number RETURNING j.pieces), "
    "fr AS (DELETE FROM {s}.records AS r USING fu AS u WHERE r.number = u.number RETURNING r.pieces), "
    "fs AS (DELETE FROM {s}.stream_parts AS s USING fu AS u WHERE s.number = u.number), "
    f"{_without_pieces('fj')}, {_without_pieces('fr')}",
    (bigints,),
)
FORGET_OTHER: Final = Kind(  # of another server's: only a dead letter, which no server has in memory
    11,
    "go AS (DELETE FROM {s}.records AS r USING unnest(?) AS u (number) WHERE r.number = u.number AND r.dead "
    "RETURNING r.number, r.pieces), "
    "gj AS (DELETE FROM {s}.jobs AS j USING go WHERE j.number = go.number AND j.dead RETURNING j.pieces), "
    "gs AS (DELETE FROM {s}.stream_parts AS s USING go WHERE s.number = go.number), "
    f"{_without_pieces('go')}, {_without_pieces('gj')}",
    (bigints,),
    "go",
)
REVIVE: Final = Kind(  # a job that lives already stays as it is
    12,
    "rev AS (UPDATE {s}.jobs AS j SET dead = false, due = CASE WHEN j.dead THEN 0 ELSE j.due END, "
    "attempt = CASE WHEN j.dead THEN 0 ELSE j.attempt END, "
    "deaths = CASE WHEN j.dead THEN 0 ELSE j.deaths END, "
    "options = CASE WHEN j.dead THEN coalesce(u.options, j.options) ELSE j.options END FROM "
    + _unnest("number, options")
    + " WHERE j.number = u.number RETURNING j.number), "
    "revr AS (DELETE FROM {s}.records AS r USING rev WHERE r.number = rev.number "
    "RETURNING r.number, r.pieces), "
    "revs AS (DELETE FROM {s}.stream_parts AS s USING revr WHERE s.number = revr.number), "
    f"{_without_pieces('revr')}",
    (bigints, byteas),
    "rev",
)
_GOES_ON: Final = "NOT EXISTS (SELECT 1 FROM {s}.records AS r WHERE r.number = u.number)"
"""What comes again after the end of its job is too late: its parts belong to the result now."""

RUN: Final = Kind(  # parts of other runs are not wanted any more
    13,
    f"run AS (DELETE FROM {{s}}.stream_parts AS s USING {_unnest('number, run')} "
    f"WHERE s.number = u.number AND s.run <> u.run AND {_GOES_ON})",
    (bigints, ints),
)
PART: Final = Kind(
    14,
    "part AS (INSERT INTO {s}.stream_parts (number, run, position, body) SELECT u.* FROM "
    f"{_unnest('number, run, position, body')} WHERE {_GOES_ON} ON CONFLICT DO NOTHING)",
    (bigints, ints, bigints, byteas),
)
DROP: Final = Kind(  # the last part stays: its position is that of the stream
    15,
    f"drp AS (DELETE FROM {{s}}.stream_parts AS s USING {_unnest('number, below')} "
    "WHERE s.number = u.number AND s.position > 0 AND s.position < u.below AND s.position < "
    f"(SELECT max(m.position) FROM {{s}}.stream_parts AS m WHERE m.number = u.number) AND {_GOES_ON})",
    (bigints, bigints),
)
DROP_ALL: Final = Kind(
    16,
    f"drpa AS (DELETE FROM {{s}}.stream_parts AS s USING {_unnest('number')} "
    f"WHERE s.number = u.number AND {_GOES_ON})",
    (bigints,),
)
PAUSE: Final = Kind(
    17,
    "pau AS (INSERT INTO {s}.paused (function) SELECT u.function FROM unnest(?) AS u (function) "
    "ON CONFLICT DO NOTHING RETURNING 1), "
    "pauc AS (UPDATE {s}.meta SET changed = changed + 1 WHERE EXISTS (SELECT 1 FROM pau))",
    (byteas,),
)
RESUME: Final = Kind(
    18,
    "rsm AS (DELETE FROM {s}.paused AS p USING unnest(?) AS u (function) WHERE p.function = u.function "
    "RETURNING 1), "
    "rsmc AS (UPDATE {s}.meta SET changed = changed + 1 WHERE EXISTS (SELECT 1 FROM rsm))",
    (byteas,),
)
ORDER: Final = Kind(
    19,
    "ord AS (INSERT INTO {s}.orders (number, verb) SELECT u.* FROM unnest(?, ?) AS u (number, verb) "
    "ON CONFLICT DO NOTHING)",
    (bigints, texts),
)
_REMOVED: Final = "CASE WHEN u.value = '' THEN clock_timestamp() END"
_IS_HISTORY: Final = f"u.kind = '{HISTORY}'"
SET: Final = Kind(  # without a value it is removed. No beat brings history to others, and it goes after a day
    21,
    "stg AS (INSERT INTO {s}.settings AS s (kind, name, value, removed, changed) "
    f"SELECT u.*, CASE WHEN u.value = '' OR {_IS_HISTORY} THEN clock_timestamp() END, "
    f"CASE WHEN {_IS_HISTORY} THEN '0'::xid8 ELSE pg_current_xact_id() END "
    "FROM unnest(?, ?, ?) AS u (kind, name, value) ORDER BY u.kind, u.name "
    "ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value, removed = excluded.removed, "
    "changed = excluded.changed WHERE s.value <> excluded.value)",
    (texts, byteas, byteas),
)
ADD: Final = Kind(  # a schedule that is not there
    22,
    "add AS (INSERT INTO {s}.settings AS s (kind, name, value) SELECT 'schedule', u.* "
    "FROM unnest(?, ?) AS u (name, value) ORDER BY u.name "
    "ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value, removed = NULL, "
    "changed = excluded.changed WHERE s.value = '' RETURNING 1)",
    (byteas, byteas),
    "add",
)
TICK: Final = Kind(  # number 0: no job
    23,
    "tkm AS (UPDATE {s}.settings AS s SET value = u.value, changed = pg_current_xact_id(), "
    f"removed = {_REMOVED} FROM {_unnest('name, before, value, ' + _JOB)} "
    "WHERE s.kind = 'schedule' AND s.name = u.name AND s.value = u.before RETURNING u.*), "
    f"tkj AS (INSERT INTO {{s}}.jobs ({_JOB}) SELECT {_JOB} FROM tkm WHERE number <> 0 ORDER BY key "
    "ON CONFLICT DO NOTHING RETURNING number), "
    "tk AS (SELECT number FROM tkm WHERE number = 0 UNION ALL SELECT number FROM tkj)",
    (byteas, byteas, byteas, *_JOB_ENCODERS),
    "tk",
)
_EDITED: Final = "number, priority, due, options"
EDIT: Final = Kind(
    24,
    "edt AS (UPDATE {s}.jobs AS j SET priority = u.priority, due = u.due, options = u.options "
    f"FROM {_unnest(_EDITED)} WHERE j.number = u.number AND NOT j.dead)",
    (bigints, smallints, floats, byteas),
)
EDIT_WORKLOAD: Final = Kind(
    25,
    f"edw AS MATERIALIZED (SELECT u.* FROM {_unnest(_EDITED + ', workload')}), "
    "edo AS MATERIALIZED (SELECT j.pieces FROM {s}.jobs AS j JOIN edw AS u ON j.number = u.number "
    "WHERE NOT j.dead), "
    "edn AS (UPDATE {s}.jobs AS j SET priority = u.priority, due = u.due, options = u.options, "
    "workload = u.workload, pieces = NULL, size = NULL FROM edw AS u "
    f"WHERE j.number = u.number AND NOT j.dead), {_without_pieces('edo')}",
    (bigints, smallints, floats, byteas, byteas),
)
FREE: Final = Kind(
    26,
    "fre AS (UPDATE {s}.jobs AS j SET key = NULL, uniq = ''::bytea "
    f"FROM {_unnest('number')} WHERE j.number = u.number AND NOT j.dead)",
    (bigints,),
)


def statement(kinds: Sequence[Kind], schema: str, *, fenced: bool) -> Statement:
    """The statement for a group of these kinds, in the order of their places.

    Its first three parameters are those of the fence, if it has one. Its result has a column for each kind
    that is counted: how many of its changes were done.
    """
    parts = [kind.sql for kind in kinds]
    types: list[int] = []
    if fenced:
        parts.insert(0, "f AS MATERIALIZED (SELECT {s}.fence(?, ?, ?))")
        types += [arrays.INTS, arrays.BIGINTS, arrays.UUID]
    types += [_TYPES[encode] for kind in kinds for encode in kind.encoders]
    counts = ", ".join(f"(SELECT count(*) FROM {kind.counted})" for kind in kinds if kind.counted) or "1"
    sql = f"WITH {', '.join(parts)} SELECT {counts}" + (" FROM f" if fenced else "")
    sql = sql.replace("{s}", schema).replace("{f}", "f, " if fenced else "")
    pieces = sql.split("?")
    numbered = "".join(f"{piece}${place}" for place, piece in enumerate(pieces[:-1], 1)) + pieces[-1]
    return Statement(numbered, tuple(types))
