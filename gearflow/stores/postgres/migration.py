"""Makes the tables, or checks that those that are there fit this code.

The lock is held until the transaction ends, so two servers that start do not both migrate. Nothing of a step
that fails stays.

The table ``meta`` also has a mark if the jobs were copied to a file. No server starts on the tables then.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from gearflow.errors import StoreError
from gearflow.stores.postgres.errors import MissingRights, MissingTable, grants
from gearflow.stores.postgres.schema import LOCK, STEPS, Step, literal, quoted
from gearflow.stores.postgres.session import Rows

LIVE_LEASES: Final = 3
"""A server without a beat for so many of its leases is not alive."""


_PATIENCE: Final = 60.0
"""Seconds to wait until another server has looked at the tables or migrated them."""

_LONG: Final = 3600.0
"""Seconds for a step. An index takes about one second for each million rows (measured on two cores)."""


class TextSession(Protocol):
    """A connection on which a transaction can be begun."""

    async def simple(self, sql: str, timeout: float | None = None) -> list[Rows]:
        """Run statements without parameters. The results are text."""
        ...


async def prepare(session: TextSession, schema: str, steps: Sequence[Step] = STEPS) -> None:
    """Make the tables, or bring them to the version of this code.

    Raises:
        StoreError: This code cannot use them, or a server that is alive could not any more. Or a right is
            missing, and the error has the statements that give it.
    """
    try:
        version, oldest = await _version(session, schema)
        if version == len(steps):
            await _check_rights(session, schema)
            return
        if version < len(steps):
            await _migrate(session, schema, steps)
        check_code(version, oldest, schema, steps)
        await _check_rights(session, schema)
    except MissingRights as error:
        rows = (await session.simple("SELECT quote_ident(current_user), quote_ident(current_database())"))[0]
        role, database = (str(value or b"", "utf-8") for value in rows[0])
        raise grants(error, quoted(schema), role, database) from None


def check_code(version: int, oldest: int, schema: str, steps: Sequence[Step] = STEPS) -> None:
    """Check that this code can use tables of a version.

    A server also does this after it has registered, with the row of ``meta`` locked. Else a step that looked
    at the registered servers just before would not have seen it.

    Raises:
        StoreError: It is older than ``oldest``.
    """
    if oldest > len(steps):
        raise StoreError(
            f"the schema {schema} is of version {version}, which this gearflow does not know; install the "
            "later gearflow that has made it"
        )


async def _version(session: TextSession, schema: str) -> tuple[int, int]:
    """Of the tables that are there, and the oldest that may use them. 0 if there are none."""
    name = literal(f"{quoted(schema)}.meta")
    has_schema = f"SELECT 1 FROM pg_namespace WHERE nspname = {literal(schema)}"
    if not (await session.simple(has_schema))[0]:
        return 0, 0
    if (await session.simple(f"SELECT to_regclass({name})"))[0][0][0] is None:
        return 0, 0
    rows = (await session.simple(f"SELECT version, oldest FROM {quoted(schema)}.meta"))[0]
    if not rows:
        raise MissingTable(f"the table {schema}.meta is empty; put its row back, or use another --schema")
    return int(rows[0][0] or 0), int(rows[0][1] or 0)


async def _migrate(session: TextSession, schema: str, steps: Sequence[Step]) -> None:
    await session.simple("BEGIN; SET LOCAL lock_timeout = '10s'; SET LOCAL statement_timeout = 0")
    try:
        await session.simple(f"SELECT pg_advisory_xact_lock({LOCK})", _PATIENCE)
        version, _ = await _version(session, schema)
        if version < len(steps):
            await _apply(session, schema, steps, version)
    except BaseException:
        await session.simple("ROLLBACK")
        raise
    await session.simple("COMMIT")


async def _apply(session: TextSession, schema: str, steps: Sequence[Step], version: int) -> None:
    oldest = max(step.oldest for step in steps)
    name = quoted(schema)
    if version:
        # A server registers, then it looks at this row again (see ``check_code``).
        await session.simple(f"SELECT version FROM {name}.meta FOR UPDATE")
        await _check_servers(session, name, oldest, len(steps))
    elif not (await session.simple(f"SELECT 1 FROM pg_namespace WHERE nspname = {literal(schema)}"))[0]:
        await session.simple(f"CREATE SCHEMA {name}")
    for step in steps[version:]:
        await session.simple(step.statements.replace("{s}", name), _LONG)
    await session.simple(f"UPDATE {name}.meta SET version = {len(steps)}, oldest = {oldest}")


async def _check_servers(session: TextSession, name: str, oldest: int, version: int) -> None:
    """No server that is alive is older than the steps allow."""
    (rows,) = await session.simple(
        f"SELECT address, version FROM {name}.servers WHERE code < {oldest} "
        f"AND seen > clock_timestamp() - lease * {LIVE_LEASES} * interval '1 s' ORDER BY address"
    )
    if rows:
        servers = ", ".join(f"{_text(address)} (gearflow {_text(code)})" for address, code in rows)
        raise StoreError(
            f"the tables cannot be brought to version {version} while older servers use them: {servers}; "
            "stop these first"
        )


async def _check_rights(session: TextSession, schema: str) -> None:
    """This role may read and write all tables."""
    name = quoted(schema)
    (rows,) = await session.simple(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE n.nspname = {literal(schema)} AND (c.relkind IN ('r', 'p') AND NOT ("
        "has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT') AND "
        "has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE')) "
        "OR c.relkind = 'S' AND NOT has_sequence_privilege(c.oid, 'USAGE')) ORDER BY 1"
    )
    if rows:
        tables = ", ".join(_text(row[0]) for row in rows)
        raise MissingRights(f"this role may not read and write these tables of {name}: {tables}")


def _text(value: bytes | None) -> str:
    return str(value or b"", "utf-8", "replace")


class Moved(NamedTuple):
    """The jobs of a schema are being copied to a file, or have been. No server starts on it then."""

    id: str  # of the copy, a UUID
    to: str  # the path of the file
    done: bool

    def text(self) -> str:
        """As in the column ``moved`` of the table ``meta``."""
        return json.dumps(self._asdict())


def moved_of(text: bytes | None) -> Moved | None:
    """What ``Moved.text`` made a text of, or None if there is none."""
    return None if text is None else Moved(**json.loads(text))


def check_not_moved(text: bytes | None, schema: str) -> None:
    """Raises StoreError if the jobs of a schema have been copied to a file, or are being copied."""
    moved = moved_of(text)
    if moved is not None:
        remedy = f"To use the schema still, run: UPDATE {quoted(schema)}.meta SET moved = NULL"
        if moved.done:
            raise StoreError(
                f"the jobs of the schema {schema} were copied to {moved.to}; serve them from there. {remedy}"
            )
        raise StoreError(
            f"a copy of the schema {schema} to {moved.to} did not end; run that gearflow server copy again. "
            f"{remedy}"
        )
