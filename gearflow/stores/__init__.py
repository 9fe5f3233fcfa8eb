"""Where jobs live while the server is down, and where results are kept."""

from gearflow.stores.backup import backup
from gearflow.stores.log import Sync
from gearflow.stores.memory import MemoryStore
from gearflow.stores.recover import recover
from gearflow.stores.rows import OVERHEAD
from gearflow.stores.sqlite import SqliteStore
from gearflow.stores.swap import Recovered

__all__ = ["OVERHEAD", "MemoryStore", "Recovered", "SqliteStore", "Sync", "backup", "recover"]
