"""Errors of PostgreSQL as ``StoreError``, with the fault and the remedy."""

from __future__ import annotations

from typing import Final

from gearflow.errors import StoreError
from gearflow.stores.shared import Away, Fenced

FENCED: Final = "GF001"  # raised by the function fence
READ_ONLY: Final = "25006"

_REPEATED: Final = ("40001", "40P01")
_AWAY: Final = ("57P01", "57P02", "57P03", "57P04", "57P05", "57014", "53300", READ_ONLY)
_UNSENT: Final = ("57P03", "53300", READ_ONLY)
_LOST_STATEMENT: Final = "26000"
_SETUP: Final = ("28", "3D")


class Locked(StoreError):
    """A lock was not there in time. (Not public, because only adoption has such a limit.)"""


class Collided(StoreError):
    """Two transactions waited for each other, and nothing of this one is kept. It may be repeated. (Not
    public, because the store repeats it.)"""


class MissingRights(StoreError):
    """The role may not do something. (Not public, because callers treat it like every refusal.)"""


class MissingTable(StoreError):
    """A table, a column or a schema is not there. (Not public, for the same reason.)"""


def failed(code: str, message: str, schema: str) -> StoreError:
    """The ``StoreError`` for an error that PostgreSQL reported. ``code`` is the SQLSTATE, if it is known."""
    if code == FENCED:
        return Fenced("this server does not own the lot of a job any more")
    if code == "55P03":
        return Locked(f"PostgreSQL: {message}")
    if code in _REPEATED:
        return Collided(f"PostgreSQL: {message}")
    if not code or code.startswith("08") or code in _AWAY:
        return Away(f"PostgreSQL: {message}", sent=code not in _UNSENT)
    if code == _LOST_STATEMENT:
        return pooled()
    if code.startswith("53"):
        return StoreError(f"PostgreSQL has no space left ({message}); make room on its machine")
    if code == "42501":
        return MissingRights(f"PostgreSQL: {message}")
    if code.startswith(("42", "3F")):
        return MissingTable(
            f"PostgreSQL: {message}; has somebody changed the schema {schema}? Restart the server"
        )
    if code.startswith(_SETUP):
        return refused(message)
    return StoreError(f"PostgreSQL: {message} (SQLSTATE {code})")


def pooled() -> StoreError:
    """The error for a connection whose session is not its own."""
    return StoreError(
        "the database is behind a pooler that shares sessions, and a server needs sessions of its own; set "
        "pool_mode=session for its database in PgBouncer, or connect to PostgreSQL directly"
    )


def refused(message: str) -> StoreError:
    """The error for a database that does not let this server in. Another attempt would not help."""
    return StoreError(
        f"PostgreSQL refuses the connection ({message}); check --postgres, the password and pg_hba.conf"
    )


def grants(error: MissingRights, schema: str, role: str, database: str) -> MissingRights:
    """The same error with the statements that give the missing rights."""
    lines = (
        f"GRANT CREATE ON DATABASE {database} TO {role}; -- if the schema {schema} is not there yet",
        f"GRANT USAGE ON SCHEMA {schema} TO {role};",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role};",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role};",
        f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role};",
    )
    return MissingRights("\n".join((f"{error}; the role {role} needs:", *lines)))
