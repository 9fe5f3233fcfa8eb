"""Connections that must send a token first.

An unauthenticated connection may send two things: OPTION_REQ, by which clients learn which server this is,
and a foreground submission of ``gearflow:auth`` with the token. Anything else is answered with ERROR (ERR for
text), and the connection is closed. Nothing of it reaches the rest of the broker, and the rest does not know
of these connections. So an authenticated connection costs no more than one of a server without a token.

``guard`` limits what connections may do whose token does not have all rights.
"""

from __future__ import annotations

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
from gearflow.protocol.rights import Grant, Tokens

_MAX_BODY: Final = MAX_TOKEN + 64
"""Bytes of the largest body that is accepted: a token, and the names before it."""

_MAX_OPTIONS: Final = 32
"""Options that it may ask for, so that it cannot cause more than a few KiB of answers."""

_TEXT: Final = b"say the token first: submit a job of gearflow:auth, with the token as its workload"


class Unauthorized(RemoteProtocolError):
    """A connection did not send the token; it is to be closed."""


class Authenticator:
    """Lets connections in that send a token. Owns those that have not, and what they have sent of a packet.

    Without tokens every connection is let in at once.

    Attributes:
        unauthenticated: By session, how many options it has asked for, and what it has sent of a packet.
        grants: By session that has sent a token, what that grants.
    """

    def __init__(self, tokens: Tokens | None, core: Core) -> None:
        self.unauthenticated: dict[Session, tuple[int, bytes]] = {}
        self.grants: dict[Session, Grant] = {}
        self._tokens = tokens
        self._core = core
        self._outgoing = core.outgoing

    def must_ask(self, session: Session) -> bool:
        """Whether a connection that was just made must send a token first."""
        if self._tokens is not None:
            self.unauthenticated[session] = 0, b""
        return self._tokens is not None

    def forget(self, session: Session) -> None:
        """The connection is closed."""
        self.unauthenticated.pop(session, None)
        self.grants.pop(session, None)

    def replace(self, tokens: Tokens) -> list[Session]:
        """Accept other tokens from now on. Returns the sessions whose token is gone or has lost a right."""
        self._tokens = tokens
        gone: list[Session] = []
        for session, before in self.grants.items():
            grant = tokens.now(before)
            if grant is None or before.rights not in grant.rights:
                gone.append(session)
            else:
                self.grants[session] = grant
        return gone

    def receive(self, session: Session, data: bytes) -> bytes | None:  # noqa: RET503  (it ends in _refuse)
        """Handle what an unauthenticated connection sends.

        Returns:
            Once it is let in, what it has sent behind the token; until then None.

        Raises:
            Unauthorized: It sent something else than the token.
        """
        if session not in self.unauthenticated:  # it was refused, and is being closed
            return None
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
        grant = self._tokens.find(token) if self._tokens is not None else None
        if grant is None:
            self._refuse(session, b"that is not the token")
        self.grants[session] = grant

    def _refuse(self, session: Session, text: bytes, *, as_text: bool = False) -> NoReturn:
        if as_text:
            self._outgoing.send(session, b"ERR %b %b\r\n" % (UNAUTHORIZED, text.replace(b" ", b"+")))
        else:
            self._outgoing.error(session, UNAUTHORIZED, text)
        raise Unauthorized("a wrong token" if text != _TEXT else "something else came than the token")
