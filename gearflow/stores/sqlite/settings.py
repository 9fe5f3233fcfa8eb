"""The table ``settings``: a row with a checksum for each setting. The metadata has the number of rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final
from zlib import crc32

from gearflow.broker.storage import Setting
from gearflow.stores.sqlite.rows import DamagedRow, Row
from gearflow.stores.sqlite.schema import Metadata

SETTING_COLUMNS: Final = "id, kind, name, value, crc"


def setting_row(setting: Setting) -> Row:
    """The columns of ``SETTING_COLUMNS``."""
    name, kind, value = setting
    return (
        setting_id(setting),
        kind,
        name.decode("latin-1"),
        value.decode("latin-1"),
        crc32(b"%b\0%d %b\0%b" % (kind.encode(), len(name), name, value)),
    )


def row_setting(row: Row) -> Setting:
    """The setting in a row of ``setting_row``. Raises DamagedRow."""
    _, kind, name, value, _ = row
    try:
        setting = Setting(name.encode("latin-1"), kind, value.encode("latin-1"))
        if setting_row(setting) != row:
            raise DamagedRow
    except (AttributeError, TypeError, ValueError) as error:
        raise DamagedRow from error
    return setting


def setting_id(setting: Setting) -> int:
    """The key of a row: a hash that no two settings have but by a chance of 2 to -62."""
    name = b"%b\0%b" % (setting.kind.encode(), setting.name)
    return 1 + int.from_bytes(blake2b(name, digest_size=8).digest(), "big") // 4


def named(row: Row) -> str:
    """The kind and the name in a row that may be damaged, as text for a message."""
    return " ".join(_text(column) for column in row[1:3])


def _text(column: object) -> str:
    if not isinstance(column, str):
        return "?"
    return column.encode("latin-1", "replace").decode(errors="replace")


def write_settings(connection: sqlite3.Connection, metadata: Metadata, settings: Iterable[Setting]) -> None:
    """Have these settings in place of those of the same names. Raises sqlite3.Error."""
    for setting in settings:
        row = setting_row(setting)
        if not setting.value:
            query, values = "DELETE FROM settings WHERE id = ?", row[:1]
            metadata.settings -= connection.execute(query, values).rowcount
        elif not connection.execute(_UPDATE, (*row[1:], row[0])).rowcount:
            connection.execute(_INSERT, row)
            metadata.settings += 1


_UPDATE: Final = "UPDATE settings SET kind = ?, name = ?, value = ?, crc = ? WHERE id = ?"
_INSERT: Final = f"INSERT INTO settings ({SETTING_COLUMNS}) VALUES (?, ?, ?, ?, ?)"
