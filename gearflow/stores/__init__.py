"""The stores: where jobs survive the server, and where results are kept."""

from gearflow.stores.memory import MemoryStore
from gearflow.stores.sqlite.backup import backup
from gearflow.stores.sqlite.recovery import Recovered, recover
from gearflow.stores.sqlite.rows import OVERHEAD
from gearflow.stores.sqlite.store import SqliteStore
from gearflow.stores.sqlite.wal import Sync

__all__ = ["OVERHEAD", "MemoryStore", "Recovered", "SqliteStore", "Sync", "backup", "recover"]
