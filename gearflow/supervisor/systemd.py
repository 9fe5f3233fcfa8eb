"""Notifies systemd of the state of a service, by the protocol of ``sd_notify(3)``."""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Self

import anyio

_TIMEOUT: Final = 1.0  # seconds


class Notifier:
    """Notifies the service manager, if there is one.

    Args:
        address: Where it listens: a socket's path, or an abstract name behind ``@``; ``None``: nowhere.
        watchdog: Seconds of silence after which it takes the service for dead; ``None``: it does not.
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self._address = address
        self._watchdog = watchdog

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """As the service manager has set it up for this process."""
        watchdog = None
        if environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            with suppress(KeyError, ValueError):
                watchdog = int(environment["WATCHDOG_USEC"]) / 1e6
        return cls(environment.get("NOTIFY_SOCKET") or None, watchdog)

    def ready(self) -> None:
        """The service does its work; also after ``reloading``."""
        self._send("READY=1")

    def reloading(self) -> None:
        """It takes up new code; ``ready`` follows when it has, or goes on without."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """It is about to end."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """A line for people, shown by ``systemctl status``."""
        self._send(f"STATUS={text}")

    async def keep_alive(self) -> None:
        """Report regularly that the event loop runs, if the manager wants that."""
        if self._address is None or not self._watchdog:
            return
        while True:
            self._send("WATCHDOG=1")
            await anyio.sleep(self._watchdog / 2)

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        # A service must not hang because its manager does.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.settimeout(_TIMEOUT)
            end.connect(address)
            end.send("\n".join(lines).encode())
