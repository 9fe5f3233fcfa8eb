"""Connections that have to say the server's token first, until they have.

Of a stranger only two things are taken: OPTION_REQ, by which clients learn whom they talk to before they say
anything, and a foreground submission of ``gearflow:auth`` with the token. Whatever else comes ends in ERROR
(or ERR, for text) and the end of the connection; nothing of it reaches the rest of the broker. Nothing else
knows of strangers either, so whoever is let in costs what he costs without a token.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from gearflow.broker.parser import forbid_tls
from gearflow.broker.session import Session
from gearflow.errors import RemoteProtocolError
from gearflow.protocol.constants import (
    AUTH,
    HEADER,
    HEADER_SIZE,
    MAX_TOKEN,
    REQ,
    RES,
    UNAUTHORIZED,
    PacketType,
)

_MOST: Final = MAX_TOKEN + 64
"""Bytes of a body that is looked at: a token, and the names before it."""

_TEXT: Final = b"say the token first: submit a job of gearflow:auth, with the token as its workload"


class Unauthorized(RemoteProtocolError):
    """A stranger did not say the token; the connection is to be closed."""


class Authenticator:
    """Lets in who knows the token. Owns the strangers, and what they have sent of a packet.

    Args:
        token: The token; None: everybody is let in at once.
        option: Called with the option of an OPTION_REQ.
        admit: Called with who has said the token, to be answered, and with what he sent behind it.
        send: Called with bytes to be sent.
    """

    def __init__(
        self,
        token: bytes | None,
        option: Callable[[Session, bytes], None],
        admit: Callable[[Session, bytes], None],
        send: Callable[[Session, bytes], None],
    ) -> None:
        self.strangers: dict[Session, bytes] = {}
        self.is_shut = token is not None
        self._digest = sha256(token or b"").digest()
        self._option = option
        self._admit = admit
        self._send = send

    def knock(self, session: Session) -> None:
        """A connection was made."""
        if self.is_shut:
            self.strangers[session] = b""

    def forget(self, session: Session) -> None:
        """The session is gone."""
        self.strangers.pop(session, None)

    def receive(self, session: Session, data: bytes) -> None:
        """A stranger has sent something.

        Raises:
            Unauthorized: It is not the token.
        """
        data = self.strangers[session] + data
        while len(data) >= HEADER_SIZE and data[:4] == REQ:
            _, kind, size = HEADER.unpack_from(data)
            end = HEADER_SIZE + size
            if kind not in (PacketType.OPTION_REQ, PacketType.SUBMIT_JOB) or size > _MOST:
                break
            if end > len(data):
                self.strangers[session] = data
                return
            body = data[HEADER_SIZE:end]
            data = data[end:]
            if kind == PacketType.OPTION_REQ:
                self._option(session, body)
                continue
            self._check(session, body)
            del self.strangers[session]
            self._admit(session, data)
            return
        if len(data) < HEADER_SIZE and REQ.startswith(data[:4]):
            self.strangers[session] = data
            return
        forbid_tls(data)
        self._refuse(session, _TEXT, in_words=bool(data[0]))

    def _check(self, session: Session, body: bytes) -> None:
        """Look at a submission. Raises Unauthorized if it does not say the token."""
        name, _, rest = body.partition(b"\0")
        token = rest.partition(b"\0")[2]
        if name != AUTH:
            self._refuse(session, _TEXT)
        if not hmac.compare_digest(sha256(token).digest(), self._digest):
            self._refuse(session, b"that is not the token")

    def _refuse(self, session: Session, text: bytes, *, in_words: bool = False) -> None:
        if in_words:
            self._send(session, b"ERR %b %b\r\n" % (UNAUTHORIZED, text.replace(b" ", b"+")))
        else:
            body = UNAUTHORIZED + b"\0" + text
            self._send(session, HEADER.pack(RES, PacketType.ERROR, len(body)) + body)
        raise Unauthorized("a wrong token" if text != _TEXT else "something else came than the token")
