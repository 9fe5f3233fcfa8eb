"""Clients of Gearman servers. They submit jobs, wait for them, watch them and ask about them."""

from typing import TYPE_CHECKING

from gearflow.backoff import Backoff
from gearflow.client.client import Client
from gearflow.client.config import ServerAddress, default_servers, parse_servers
from gearflow.client.connection import ServerFeatures
from gearflow.client.current import configure, connect
from gearflow.client.job import ClientJob, JobEvent, JobFailed, JobHandle, JobKey, JobName, JobStatus
from gearflow.client.pool import ResubmitPolicy
from gearflow.client.submission import JobRequest, SubmitOptions
from gearflow.client.sync_client import SyncClient, SyncJob
from gearflow.protocol.constants import Priority
from gearflow.protocol.heartbeat import Timeouts
from gearflow.security.tls import TLS, Security

if TYPE_CHECKING:
    from gearflow.client.admin import Admin, SyncAdmin

__all__ = [
    "TLS",
    "Admin",
    "Backoff",
    "Client",
    "ClientJob",
    "JobEvent",
    "JobFailed",
    "JobHandle",
    "JobKey",
    "JobName",
    "JobRequest",
    "JobStatus",
    "Priority",
    "ResubmitPolicy",
    "Security",
    "ServerAddress",
    "ServerFeatures",
    "SubmitOptions",
    "SyncAdmin",
    "SyncClient",
    "SyncJob",
    "Timeouts",
    "configure",
    "connect",
    "default_servers",
    "parse_servers",
]


def __getattr__(name: str) -> object:
    """Import the admin clients on first use, because calls and workers do not need them."""
    if name in ("Admin", "SyncAdmin"):
        from gearflow.client import admin

        return getattr(admin, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
