"""gearflow's own job server."""

from gearflow.server.admin import server_version
from gearflow.server.server import JobServer, tune_garbage_collection
from gearflow.server.settings import ServerSettings

__all__ = ["JobServer", "ServerSettings", "server_version", "tune_garbage_collection"]
