"""Limits what connections may do whose token does not have all rights. ``rights`` says what needs which.

A connection with all rights meets no guard: its parser calls the handlers themselves. For other connections
there is another parser for each combination of rights, with other handlers: the same ones for packets that
the rights allow, and the guard's for all others. All parsers share what has come of packets.

A refused request gets the answer that belongs to it: ERROR ``FORBIDDEN``, the fault ``gearflow:forbidden`` of
a reserved function, or ``ERR FORBIDDEN`` of a text command. The connection stays. Packets without an answer
are those of workers. ERROR would be taken for the answer to another packet, so the connection is closed
behind it, which also ends the loop of a worker that can never get a job.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NoReturn

from gearflow.broker.auth import Authenticator
from gearflow.broker.calls import ServerCalls
from gearflow.broker.core import Core
from gearflow.broker.limits import Rejected
from gearflow.broker.parser import Body, Handler, PacketParser
from gearflow.broker.rights import (
    ANSWERED,
    COMMANDS,
    FUNCTIONS,
    PACKETS,
    REFUSED,
    SUBMISSIONS,
    Needed,
    refusal_text,
)
from gearflow.broker.session import Session
from gearflow.broker.submission import Submissions
from gearflow.errors import RemoteProtocolError
from gearflow.protocol.admin import parse_command
from gearflow.protocol.constants import FORBIDDEN, MAX_ARGUMENT, RESERVED_PREFIX, SUBMIT, PacketType
from gearflow.protocol.rights import ALL, NO_RIGHT, Right, Tokens


class Forbidden(RemoteProtocolError):
    """A connection sent what its token gives no right to, and it has no answer; it is to be closed."""


class Guards:
    """Gives a connection the parser that its rights allow. Owns the parsers, one for each combination."""

    def __init__(
        self,
        auth: Authenticator,
        parser: PacketParser,
        handlers: Mapping[PacketType, Handler],
        text: Callable[[Session, bytes], None],
        core: Core,
        calls: ServerCalls,
        submissions: Submissions,
    ) -> None:
        self.auth = auth
        self.handlers = handlers
        self.text = text
        self.core = core
        self.calls = calls
        self.submissions = submissions
        self._parsers = {ALL: parser}

    def admit(self, session: Session) -> None:
        """A connection has sent its token, or the rights of its token have changed."""
        grant = self.auth.grants[session]
        rights = grant.rights
        session.grant = None if rights == ALL else grant
        parser = self._parsers.get(rights)
        if parser is None:
            guard = _Guard(rights, self)
            parser = self._parsers[rights] = self._parsers[ALL].sibling(guard.handlers, guard.text)
        session.parser, session.receive = parser, parser.receive

    def replace_tokens(self, tokens: Tokens) -> list[Session]:
        """Accept other tokens from now on.

        Connections whose token has more rights than before have these at once. Those whose token is gone, or
        has lost a right, are in the result: the shell closes them.
        """
        gone = self.auth.replace(tokens)
        for session in self.auth.grants:
            self.admit(session)
        return gone


class _Guard:
    """Checks what connections with the same rights send."""

    def __init__(self, rights: Right, guards: Guards) -> None:
        self._rights = rights
        self._guards = guards
        self._functions = {name: FUNCTIONS.get(name, NO_RIGHT) for name in guards.calls.names}
        self._outgoing = guards.core.outgoing
        self.handlers = {kind: self._handler(kind, handler) for kind, handler in guards.handlers.items()}

    def _handler(self, kind: PacketType, handler: Handler) -> Handler:
        if kind in SUBMISSIONS:
            return partial(self._submission, handler, SUBMISSIONS[kind])
        needed = PACKETS.get(kind, NO_RIGHT)
        if needed & self._rights:
            return handler
        return partial(self._refuse if kind in ANSWERED else self._close, needed)

    def _submission(
        self, handler: Handler, background: bool, session: Session, kind: int, body: Body
    ) -> int | None:
        """A submission. It may be the call of a reserved function."""
        name = bytes(body[:MAX_ARGUMENT]).partition(b"\0")[0]
        if not name.startswith(RESERVED_PREFIX):
            what, needed = PacketType(kind).name, PACKETS[PacketType(kind)]
        elif name not in self._functions or (background and name != SUBMIT):
            return handler(session, kind, body)  # which refuses it for another reason
        else:
            what, needed = name.decode(), self._functions[name]
        if needed & self._rights:
            return handler(session, kind, body)
        if name.startswith(RESERVED_PREFIX) and not background:
            self._guards.calls.refuse(session, refusal_text(what, needed, self._rights))
            return None
        refused = Rejected(FORBIDDEN, self._refused(session, what, needed).encode())
        return self._guards.submissions.answer(session, None, background, refused)

    def _refuse(self, needed: Needed, session: Session, kind: int, body: Body) -> None:
        """Refuse a packet in place of its answer."""
        text = self._refused(session, PacketType(kind).name, needed)
        self._outgoing.error(session, FORBIDDEN, text.encode())

    def _close(self, needed: Needed, session: Session, kind: int, body: Body) -> NoReturn:
        """Refuse a packet that has no answer."""
        text = refusal_text(PacketType(kind).name, needed, self._rights)
        self._outgoing.error(session, FORBIDDEN, text.encode())
        raise Forbidden(text)

    def text(self, session: Session, line: bytes) -> None:
        """Check a text command."""
        command = parse_command(line)
        needed = COMMANDS.get(type(command), NO_RIGHT)
        if needed & self._rights:
            self._guards.text(session, line)
            return
        words = line.split(b" ", 1)[0].decode(errors="replace").lower()
        text = self._refused(session, f"the command {words}", needed)
        self._outgoing.send(session, b"ERR %b %b\r\n" % (FORBIDDEN, text.replace(" ", "+").encode()))

    def _refused(self, session: Session, what: str, needed: Needed) -> str:
        """Have a refusal logged. Returns its text."""
        text = refusal_text(what, needed, self._rights)
        self._outgoing.notify(REFUSED, session, str(session.grant).encode(), text)
        return text
