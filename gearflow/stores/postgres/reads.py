"""QuestionReader questions: all that were asked together in one transaction, so in one round trip."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Final

from gearflow.broker.storage import (
    HISTORY,
    Answer,
    DeadOf,
    DeadTotal,
    EndedEntry,
    EndedOf,
    EndedPage,
    EndPlace,
    HeadOf,
    JobOf,
    JobRecord,
    LatestOf,
    PartsOf,
    Question,
    RecordOf,
    Renumbered,
    Setting,
    StoredJob,
    WholeRecordOf,
)
from gearflow.errors import StoreError
from gearflow.stores.postgres import arrays
from gearflow.stores.postgres.arrays import bigint, integer, read_int, real, smallints
from gearflow.stores.postgres.rows import JOB, RECORD, SHORT, SIZE, job_of, record_of, token_of
from gearflow.stores.postgres.session import DatabaseSession, Query, Row, Rows
from gearflow.stores.shared import Away

_LOOKS: Final = 10_000
"""Results that are looked at for one question about those that have ended."""

_PIECES: Final = 4  # of a body that are read at a time


class QuestionReader:
    """QuestionReader questions on a session of its own."""

    def __init__(self, session: DatabaseSession, schema: str, large: int) -> None:
        """``schema`` is quoted. A result of ``large`` bytes or more is its length unless all is asked."""
        self._session = session
        size, of_record = SIZE.format("workload"), SIZE.format("body")
        jobs, records = f"FROM {schema}.jobs", f"FROM {schema}.records"
        short = f"CASE WHEN octet_length(workload) <= {SHORT} THEN workload END"
        body = f"CASE WHEN octet_length(body) < {large} THEN body END"
        record = f"SELECT {RECORD}, {of_record}, pieces, {body} {records}"
        self._job = f"SELECT {JOB}, {size}, pieces, workload {jobs} WHERE number = $1"
        self._head = f"SELECT {JOB}, {size}, pieces, {short} {jobs} WHERE number = $1"
        self._record = f"{record} WHERE number = $1"
        self._whole = f"SELECT {RECORD}, {of_record}, pieces, body {records} WHERE number = $1"
        self._latest = (
            f"{record} WHERE token = $1 AND function = $2 AND uniq = $3 ORDER BY ended DESC LIMIT 1"
        )
        up, down = "number > $1 ORDER BY number LIMIT $2", "number < $1 ORDER BY number DESC LIMIT $2"
        self._dead = [f"{record} WHERE dead AND {which}" for which in (up, down)]
        self._dead_of = [f"{record} WHERE dead AND function = $3 AND {which}" for which in (up, down)]
        self._dead_total = f"SELECT count(*) FROM {schema}.records WHERE dead"
        # The rows that are looked at, those of them that are wanted, and beside these the last of the first.
        self._ended = (
            f"WITH looked AS MATERIALIZED (SELECT number, ended, outcome = ANY ($4) AND "
            f"($5::bytea IS NULL OR function = $5) AS wanted {records} "
            "WHERE (ended, number) < ($1, $2) ORDER BY ended DESC, number DESC LIMIT $3), "
            "found AS MATERIALIZED (SELECT number FROM looked WHERE wanted "
            "ORDER BY ended DESC, number DESC LIMIT $6), "
            "entries AS (SELECT number, true AS wanted FROM found UNION ALL SELECT number, false "
            "FROM (SELECT number FROM looked ORDER BY ended, number LIMIT 1) AS last "
            "WHERE (SELECT count(*) FROM looked) = $3) "
            f"SELECT e.wanted, dead, {RECORD}, {of_record}, pieces, {body} FROM entries AS e "
            f"JOIN {schema}.records USING (number) ORDER BY ended DESC, number DESC, e.wanted DESC"
        )
        self._pieces = (
            f"SELECT place, bytes FROM {schema}.pieces WHERE pieces = $1 AND place > $2 "
            f"ORDER BY place LIMIT {_PIECES}"
        )
        parts = f"{schema}.stream_parts"
        self._parts = (
            "SELECT position, body FROM (SELECT position, body, row_number() OVER w AS place, "
            "sum(octet_length(body)) OVER w AS total FROM (SELECT position, body "
            f"FROM {parts} WHERE number = $1 AND position > $2 AND run = (SELECT max(run) FROM {parts} "
            "WHERE number = $1) ORDER BY position LIMIT $4) AS first WINDOW w AS (ORDER BY position)) "
            "AS counted WHERE place = 1 OR total <= $3 ORDER BY position"
        )

    async def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """The answers, as ``SharedStore.answer``."""
        if not questions:
            return []
        asked = [self.query_of(question) for question in questions]
        try:
            found = await self._session.run(*(query for query, _ in asked))
        except Away:
            raise
        except StoreError as error:
            return [error] * len(questions)
        return [
            await self._complete(question, read(rows), rows)
            for question, (_, read), rows in zip(questions, asked, found, strict=True)
        ]

    def query_of(self, question: Question) -> tuple[Query, Callable[[Rows], Answer]]:
        """The statement that answers a question, and how to read the rows."""
        if isinstance(question, JobOf | HeadOf):
            sql = self._job if isinstance(question, JobOf) else self._head
            return Query(sql, (arrays.BIGINT,), (bigint(question.number),)), _job
        if isinstance(question, RecordOf | WholeRecordOf):
            sql = self._record if isinstance(question, RecordOf) else self._whole
            return Query(sql, (arrays.BIGINT,), (bigint(question.number),)), _record
        if isinstance(question, LatestOf):
            token = bigint(token_of(*question)) if question.unique else None
            types = (arrays.BIGINT, arrays.BYTEA, arrays.BYTEA)
            return Query(self._latest, types, (token, *question)), _record
        if isinstance(question, DeadOf):
            kinds = (arrays.BIGINT, arrays.INT)
            after = question.after or (sys.maxsize if question.descending else 0)
            params = (bigint(after), integer(question.limit))
            if question.function is None:
                return Query(self._dead[question.descending], kinds, params), _records
            sql = self._dead_of[question.descending]
            return Query(sql, (*kinds, arrays.BYTEA), (*params, question.function)), _records
        if isinstance(question, DeadTotal):
            return Query(self._dead_total), _total
        if isinstance(question, EndedOf):
            return self._ask_ended(question)
        return self._ask_parts(question)

    def _ask_ended(self, question: EndedOf) -> tuple[Query, Callable[[Rows], Answer]]:
        function, outcomes, before, until, limit = question
        place = before or EndPlace(inf if until is None else until, 0)
        params = (
            real(place.time),
            bigint(place.number),
            integer(_LOOKS),
            smallints([int(outcome) for outcome in outcomes]),
            function,
            integer(limit),
        )
        types = (arrays.FLOAT, arrays.BIGINT, arrays.INT, arrays.SMALLINTS, arrays.BYTEA, arrays.INT)
        return Query(self._ended, types, params), partial(_ended, limit)

    def _ask_parts(self, question: PartsOf) -> tuple[Query, Callable[[Rows], Answer]]:
        number, after, limit_bytes, limit = question
        params = (bigint(number), bigint(after), bigint(limit_bytes), integer(limit))
        types = (arrays.BIGINT, arrays.BIGINT, arrays.BIGINT, arrays.INT)
        return Query(self._parts, types, params), _parts

    async def _complete(self, question: Question, answer: Answer, rows: Rows) -> Answer:
        """With the body, if all of it was asked and it is in pieces."""
        if isinstance(question, JobOf) and isinstance(answer, StoredJob) and rows[0][-2]:
            body = await self._body(rows[0][-2])
            if len(body) != answer.workload:
                return StoreError(f"the workload of job {answer.number} is not whole; its pieces are lost")
            return answer._replace(workload=body)
        if isinstance(question, WholeRecordOf) and isinstance(answer, JobRecord) and rows[0][-2]:
            body = await self._body(rows[0][-2])
            if len(body) != answer.body:
                return StoreError(f"the result of job {answer.number} is not whole; its pieces are lost")
            return answer._replace(body=body)
        return answer

    async def _body(self, pieces: bytes) -> bytes:
        found: list[bytes] = []
        place = -1
        while True:
            query = Query(self._pieces, (arrays.UUID, arrays.INT), (pieces, integer(place)))
            (rows,) = await self._session.run(query)
            found += [piece or b"" for _, piece in rows]
            if len(rows) < _PIECES:
                return b"".join(found)
            place = read_int(rows[-1][0])


def _body_of(row: Row) -> bytes | int:
    """The last columns are its size, its pieces, and the body itself or NULL."""
    return row[-1] if row[-1] is not None else read_int(row[-3])


def _job(rows: Rows) -> Answer:
    return job_of(rows[0], _body_of(rows[0])) if rows else None


def _record(rows: Rows) -> Answer:
    return record_of(rows[0], _body_of(rows[0])) if rows else None


def _records(rows: Rows) -> Answer:
    return [record_of(row, _body_of(row)) for row in rows]


def _ended(limit: int, rows: Rows) -> Answer:
    """The rows of ``QuestionReader._ended``."""
    entries: list[EndedEntry] = []
    last: EndPlace | None = None
    for wanted, dead, *row in rows:
        record = record_of(tuple(row), _body_of(tuple(row)))
        last = EndPlace(record.ended, record.number)
        if wanted == b"\1":
            entries.append(EndedEntry(last, record, dead == b"\1"))
            if len(entries) == limit:
                return EndedPage(entries, last, limit, None)
    if rows and rows[-1][0] != b"\1":
        return EndedPage(entries, last, _LOOKS, None)
    return EndedPage(entries, None, len(entries), 0)


def _parts(rows: Rows) -> Answer:
    return [(read_int(position), body or b"") for position, body in rows]


def _total(rows: Rows) -> Answer:
    return read_int(rows[0][0])


async def read_renumbered(session: DatabaseSession, schema: str) -> tuple[Renumbered, ...]:
    """The stores from which jobs were copied. ``schema`` is quoted."""
    (rows,) = await session.run(
        Query(f"SELECT name, first, last, add FROM {schema}.renumbered ORDER BY 1, 2")
    )
    return tuple(Renumbered(name or b"", *map(read_int, numbers)) for name, *numbers in rows)


SETTINGS: Final = "SELECT kind, encode(name, 'hex'), encode(value, 'hex') FROM {0}.settings"
"""Of settings as text. ``{0}`` is the schema."""


def setting_of(row: Row) -> Setting:
    """The setting in a row of ``SETTINGS``."""
    kind, name, value = (str(column or b"", "utf-8") for column in row)
    return Setting(bytes.fromhex(name), kind, bytes.fromhex(value))


async def read_settings(session: DatabaseSession, schema: str) -> tuple[Setting, ...]:
    """All settings but the history of servers. ``schema`` is quoted."""
    (rows,) = await session.simple(f"{SETTINGS.format(schema)} WHERE value <> '' AND kind <> '{HISTORY}'")
    return tuple(map(setting_of, rows))


async def read_history(session: DatabaseSession, schema: str, prefix: bytes) -> tuple[Setting, ...]:
    """The settings that are the history of a server, which have this prefix. ``schema`` is quoted."""
    (rows,) = await session.simple(
        f"{SETTINGS.format(schema)} WHERE kind = '{HISTORY}' "
        f"AND substring(name FOR {len(prefix)}) = '\\x{prefix.hex()}'::bytea"
    )
    return tuple(map(setting_of, rows))
