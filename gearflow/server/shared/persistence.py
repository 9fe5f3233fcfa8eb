"""The persistence of a server that shares its store: a port, a committer, and the membership in the group."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

from gearflow.broker import Broker
from gearflow.broker.handles import LOT_BITS
from gearflow.errors import StoreError
from gearflow.server.admin import server_version
from gearflow.server.settings import ServerSettings
from gearflow.server.shared.committer import SharedCommitter, SharedTimings
from gearflow.server.shared.lease import Lease
from gearflow.server.shared.member import Member
from gearflow.server.shared.port import SharedPort
from gearflow.stores.shared import Away, SharedContents, SharedStore

logger = logging.getLogger(__name__)

_TRIES: Final = 2
"""Statements that may get no answer, one after the other, before submitters get an error. A network may lose
one without a sign."""

_RETRY: Final = 0.5
"""Seconds between two attempts to open the store at the start of a server."""


def lease_time() -> float:
    """The clock of leases: seconds that also count while the machine is suspended."""
    return time.clock_gettime(_CLOCK)


_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def open_shared_store(settings: ServerSettings, port: int) -> SharedStore:
    """The PostgreSQL store of the settings, which is not connected yet."""
    from gearflow.stores.postgres.settings import PostgresSettings
    from gearflow.stores.postgres.store import PostgresStore

    assert settings.postgres is not None
    return PostgresStore(
        PostgresSettings(
            conninfo=settings.postgres.get_secret_value(),
            schema=settings.postgres_schema,
            lease=settings.lease,
            timeout=settings.store_timeout / _TRIES,
            address=advertised(settings, port),
            version=server_version(),
            sync=settings.effective_sync,
        )
    )


def advertised(settings: ServerSettings, port: int) -> str:
    """The address at which others reach this server."""
    if settings.advertise is not None:
        return settings.advertise
    host = settings.host
    with suppress(ValueError):
        if ip_address(host).is_unspecified:
            host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class SharedPersistence:
    """Commits one broker's journal to a shared store, and keeps its server in the group.

    Args:
        store: The store. This owns it from here on.
        settings: The server's settings.
        make_broker: Makes the broker, with the name of the store and the port to it.
        wake: Called to have the answers of the broker sent.
        timings: Time limits.
    """

    def __init__(
        self,
        store: SharedStore,
        settings: ServerSettings,
        make_broker: Callable[[bytes, SharedPort], Broker],
        wake: Callable[[], None],
        timings: SharedTimings,
    ) -> None:
        self._store = store
        self._settings = settings
        self._make_broker = make_broker
        self._wake = wake
        self._timings = timings
        self._lease = Lease(settings.lease)

    async def start(self) -> Broker:
        """Open the store, and join the group. The broker that is to serve. Raises StoreError."""
        settings, store = self._settings, self._store
        try:
            contents = await self._open()
            self._port = SharedPort(store, settings.store_timeout, self._wake)
            broker = self._make_broker(contents.name, self._port)
            broker.core.handles.share(secrets.randbits(LOT_BITS - 1))
            broker.core.handles.renumber(contents.renumbered)
            broker.core.history.prefix = contents.history_prefix
            broker.core.history.load(contents.history)
            self._committer = SharedCommitter(
                broker.journal,
                store,
                self._lease,
                self._look,
                settings.store_timeout,
                self._wake,
                lease_time,
                self._timings,
            )
            self.member = Member(
                broker,
                store,
                contents,
                self._lease,
                self._committer,
                self._wake,
                lease_time,
                self._timings,
            )
            await self.member.start()
        except BaseException:
            await store.close()
            raise
        return broker

    async def _open(self) -> SharedContents:
        """Open the store, for which the server waits as submitters do."""
        until = lease_time() + self._settings.store_timeout
        fault = None
        while True:
            try:
                return await self._store.open()
            except Away as error:
                if lease_time() >= until:
                    raise
                if fault != str(error):
                    fault = str(error)
                    logger.warning("waiting for the database", extra={"reason": fault})
            await asyncio.sleep(_RETRY)

    async def _look(self) -> None:
        await self.member.look()

    def commit(self) -> None:
        """Commit what is in the broker's journal."""
        self._committer.commit()

    async def settle(self) -> None:
        """Wait until everything in the journal is committed, or refused."""
        await self._committer.settle()

    async def close(self) -> None:
        """Commit the rest of the journal, give all lots back to the group, and close the store."""
        await self._committer.close()
        await self.member.stop()
        await self._port.close()
        try:
            async with asyncio.timeout(self._settings.store_timeout):
                await self._store.release()
        except (StoreError, TimeoutError) as error:
            logger.warning(
                "could not give the jobs back; other servers adopt them after the lease",
                extra={"reason": str(error) or "no answer in time"},
            )
        await self._store.close()
