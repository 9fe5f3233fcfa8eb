"""Connections that must send the server's token first.

An unauthenticated connection may send two things: OPTION_REQ, by which clients learn which server this is,
and a foreground submission of ``gearflow:auth`` with the token. Anything else is answered with ERROR (ERR for
text), and the connection is closed. Nothing of it reaches the rest of the broker, and the rest does not know
of these connections. So an authenticated connection costs no more than one of a server without a token.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Final, NoReturn

from gearflow.broker.core import Core
from gearflow.broker.parser import forbid_tls
from gearflow.broker.session import Session
from gearflow.broker.status import set_option
from gearflow.errors import RemoteProtocolError
from gearflow.protocol.constants import (
    AUTH,
    HEADER,
    HEADER_SIZE,
    MAX_TOKEN,
    REQ,
    UNAUTHORIZED,
    PacketType,
)

_MAX_BODY: Final = MAX_TOKEN + 64
"""Bytes of the largest body that is accepted: a token, and the names before it."""

_MAX_OPTIONS: Final = 32
"""Options that it may ask for, so that it cannot cause more than a few KiB of answers."""

_TEXT: Final = b"say the token first: submit a job of gearflow:auth, with the token as its workload"


class Unauthorized(RemoteProtocolError):
    """A connection did not send the token; it is to be closed."""


class Authenticator:
    """Lets connections in that send the token. Owns those that have not, and what they have sent of a packet.

    Without a token every connection is let in at once.
    """

    def __init__(self, token: bytes | None, core: Core) -> None:
        # By session: how many options it has asked for, and what it has sent of a packet.
        self.unauthenticated: dict[Session, tuple[int, bytes]] = {}
        self._requires_token = token is not None
        self._digest = sha256(token or b"").digest()
        self._core = core
        self._outgoing = core.outgoing

    def connected(self, session: Session) -> None:
        """A connection was made."""
        if self._requires_token:
            self.unauthenticated[session] = 0, b""

    def forget(self, session: Session) -> None:
        """The connection is closed."""
        self.unauthenticated.pop(session, None)

    def receive(self, session: Session, data: bytes) -> bytes | None:  # noqa: RET503  (it ends in _refuse)
        """Handle what an unauthenticated connection sends.

        Returns:
            Once it is let in, what it has sent behind the token; until then None.

        Raises:
            Unauthorized: It sent something else than the token.
        """
        options, rest = self.unauthenticated[session]
        data = rest + data
        position = 0
        while len(data) - position >= HEADER_SIZE and data.startswith(REQ, position):
            _, kind, size = HEADER.unpack_from(data, position)
            start = position + HEADER_SIZE
            end = start + size
            if kind not in (PacketType.OPTION_REQ, PacketType.SUBMIT_JOB) or size > _MAX_BODY:
                break
            if end > len(data):
                self.unauthenticated[session] = options, data[position:]
                return None
            body = data[start:end]
            if kind == PacketType.SUBMIT_JOB:
                self._check(session, body)
                del self.unauthenticated[session]
                return data[end:]
            options += 1
            if options > _MAX_OPTIONS:
                break
            if body.lower() == b"gearflow":
                self._outgoing.respond(session, PacketType.OPTION_RES, AUTH)
            else:
                set_option(self._core, session, body)
            position = end
        if len(data) - position < HEADER_SIZE and REQ.startswith(data[position : position + 4]):
            self.unauthenticated[session] = options, data[position:]
            return None
        forbid_tls(data, position)
        self._refuse(session, _TEXT, as_text=bool(data[position]))

    def _check(self, session: Session, body: bytes) -> None:
        """Check a submission. Raises Unauthorized if it is not the token."""
        name, _, rest = body.partition(b"\0")
        token = rest.partition(b"\0")[2]
        if name != AUTH:
            self._refuse(session, _TEXT)
        if not hmac.compare_digest(sha256(token).digest(), self._digest):
            self._refuse(session, b"that is not the token")

    def _refuse(self, session: Session, text: bytes, *, as_text: bool = False) -> NoReturn:
        if as_text:
            self._outgoing.send(session, b"ERR %b %b\r\n" % (UNAUTHORIZED, text.replace(b" ", b"+")))
        else:
            self._outgoing.error(session, UNAUTHORIZED, text)
        raise Unauthorized("a wrong token" if text != _TEXT else "something else came than the token")
