"""The HTTP server of ``gearflow web``: its socket, its signals, and peers that send or read nothing.

uvicorn waits for ever for the rest of a request, and for a peer that does not read. So a few hundred silent
connections could take all files that a process may open, and silent readers all streams of events.
"""

import asyncio
import logging
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gearflow_cli.errors import tell
from gearflow_cli.options import HttpAddress, cannot_listen

if TYPE_CHECKING:
    from types import FrameType

    from gearflow.web import AccessTokens

_GRACE: Final = 2
"""Seconds that requests have to end when the program stops."""

_BACKLOG: Final = 128

PEER_TIMEOUT: Final = 20.0
"""Seconds in which a request has to come as a whole, and in which a peer has to read something."""


class TimedProtocol(H11Protocol):
    """Looks after its connection once per ``peer_timeout``, and ends it if nothing has moved since then."""

    peer_timeout = PEER_TIMEOUT

    _next: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in H11Protocol
        """Begin to look after a connection."""
        super().connection_made(transport)
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """End that."""
        if self._next is not None:
            self._next.cancel()
        super().connection_lost(exc)

    def _look_later(self) -> None:
        self._next = self.loop.call_later(self.peer_timeout, self._look, self.cycle, self._unsent)

    def _look(self, request: Any, unsent: int) -> None:
        """End the connection if it stands still.

        Args:
            request: The last request at the last look. None if there was none.
            unsent: The bytes that the peer had not read.
        """
        cycle: Any = self.cycle
        waits = cycle is None or cycle.response_complete or cycle.more_body
        if (waits and cycle is request and not self._unsent) or (unsent and self._unsent >= unsent):
            self.transport.abort()
        else:
            self._look_later()

    @property
    def _unsent(self) -> int:
        return self.transport.get_write_buffer_size()


def listen(address: HttpAddress) -> socket.socket:
    """Listen on an address. Raises CliError."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise cannot_listen(address, "--listen", error) from None


def serve(app: Any, listener: socket.socket, token_file: Path | None, tokens: "AccessTokens | None") -> None:
    """Serve an application until a signal comes. HUP reads the tokens again."""
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # X-Forwarded-For must not look like the proxy's own address
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=_GRACE,
    )

    def reload(_number: int, _frame: "FrameType | None") -> None:
        if tokens is not None and token_file is not None:
            _reload(tokens, token_file)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ignore)  # uvicorn stops at them, and sends them again at its end
    signal.signal(signal.SIGHUP, reload)
    uvicorn.Server(config).run(sockets=[listener])


def _ignore(_number: int, _frame: "FrameType | None") -> None:
    """Do nothing."""


def _reload(tokens: "AccessTokens", file: Path) -> None:
    """Read the tokens again. If that fails, the old ones go on to count."""
    from gearflow.security.tokens import read_tokens

    try:
        tokens.replace(read_tokens(file))
    except ValueError as error:
        tell(f"the access tokens stay as they are: {error}", logging.ERROR)
    else:
        tell(f"the access tokens are those of {file} again")
