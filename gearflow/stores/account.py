"""What must be in a file, by its own account: kept in the same transaction as what it tells of."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final
from zlib import crc32

_COLUMNS: Final = "name, reserved, copied, groups, jobs, records, kept, tokens, crc"


class DamagedAccount(Exception):
    """There is none, or it is not what was written."""


_UPDATE: Final = (
    "UPDATE meta SET name = ?, reserved = ?, copied = ?, groups = ?, jobs = ?, records = ?, kept = ?, "
    "tokens = ?, crc = ?"
)


@dataclass(slots=True)
class Account:
    """The row of the table ``meta``; its owner changes it as the tables change."""

    name: bytes
    reserved: int = 1  # numbers below this one may have been given to jobs
    copied: int = 0  # 1: this is a copy, the original may have given more
    groups: int = 0  # of changes, so far
    jobs: int = 0  # rows
    records: int = 0  # rows
    kept: int = 0  # bytes of results
    tokens: int = 0  # the sum of those of the results

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> Account:
        """The account of a file.

        Raises:
            DamagedAccount: As it says.
            sqlite3.Error: It cannot be read.
        """
        row = connection.execute(f"SELECT {_COLUMNS} FROM meta WHERE id = 1").fetchone()
        if row is None:
            raise DamagedAccount
        try:
            account = cls(row[0].encode("ascii"), *row[1:-1])
            if account._row() != row:
                raise DamagedAccount
        except (AttributeError, TypeError, ValueError) as error:
            raise DamagedAccount from error
        return account

    def copy(self) -> Account:
        fields = self.reserved, self.copied, self.groups, self.jobs, self.records, self.kept, self.tokens
        return Account(self.name, *fields)  # seven times faster than dataclasses.replace

    def insert(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            f"INSERT OR REPLACE INTO meta (id, {_COLUMNS}) VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._row()
        )

    def update(self, connection: sqlite3.Connection) -> None:
        connection.execute(_UPDATE, self._row())

    def _row(self) -> tuple[str, int, int, int, int, int, int, int, int]:
        fields = self.reserved, self.copied, self.groups, self.jobs, self.records, self.kept, self.tokens
        return (self.name.decode(), *fields, crc32(b"%b %d %d %d %d %d %d %d" % (self.name, *fields)))
