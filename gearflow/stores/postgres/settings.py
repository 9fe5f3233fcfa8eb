"""How a server uses its database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gearflow.stores.sqlite.wal import Sync

SCHEMA: Final = "gearflow"


@dataclass(frozen=True, slots=True)
class PostgresSettings:
    """Settings of a ``PostgresStore``. Times are in seconds, sizes in bytes."""

    conninfo: str
    """As libpq reads it: ``host=pg1,pg2 dbname=gearflow``, or a URL."""

    address: str
    """``host:port`` by which clients reach this server."""

    version: str
    """Of gearflow."""

    schema: str = SCHEMA

    lease: float = 10.0
    """A server without a beat for this time may lose its lots."""

    timeout: float = 5.0
    """For one statement. Then its connection is closed."""

    connect_timeout: float = 2.0
    """For one address of a database server."""

    sync: Sync = "always"
    """Whether groups wait for the disk. Tables, lots and their epochs always do."""

    large: int = 1 << 20
    """A body of at least this size is written and read in pieces."""

    piece: int = 1 << 20
