"""Ports on which nobody listens now, and which nobody else takes meanwhile."""

import socket
from contextlib import suppress
from random import SystemRandom
from typing import Final

_PORTS: Final = range(18_000, 32_000)
"""Below those that Linux gives to servers without a port, and to outgoing connections. One of these that was
free may be somebody else's by the time that a program needs it."""

_given: set[int] = set()


def free_port() -> int:
    """A port of this host on which nobody listens, and that no other test of this process has got."""
    while True:
        port = SystemRandom().choice(_PORTS)  # hypothesis sets the seed of all others
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
