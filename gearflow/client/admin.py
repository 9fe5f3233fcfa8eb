"""Ask one server about itself, by the text protocol, on a connection of its own for each question."""

import re
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import anyio

from gearflow.client.config import ServerAddress
from gearflow.client.names import function_to_wire, handle_to_wire
from gearflow.client.transport import NO_TLS, NO_TOKEN, Unreachable, describe, open_stream
from gearflow.errors import ConnectionLost, LocalProtocolError, NoServer, RemoteProtocolError
from gearflow.protocol.admin import (
    END,
    FunctionPriorities,
    FunctionStatus,
    JobRow,
    WorkerRow,
    parse_jobs,
    parse_ok,
    parse_priority_status,
    parse_status,
    parse_workers,
)
from gearflow.protocol.constants import TLS_REQUIRED, UNAUTHORIZED
from gearflow.security.tls import TLS, Security

if TYPE_CHECKING:
    from gearflow.client.client import Client

T = TypeVar("T")

_MAX_TABLE: Final = 256 << 20
"""Bytes in the answer to a command. A table of a million functions has 30 MiB."""

_UNWANTED: Final = {b"ERR %b " % TLS_REQUIRED: NO_TLS, b"ERR %b " % UNAUTHORIZED: NO_TOKEN}
"""Prefix of the error that a server sends to an unauthenticated connection, and its meaning."""


class Admin:
    """Sends text commands to one server, and keeps no connection open between them.

    Args:
        server: The server's address.
        timeout: Seconds to connect, and to wait for an answer.
        tls: How to use TLS. See ``Client``.
        token: The token for a server that requires one. See ``Client``.

    Attributes:
        server: The server's address.
        timeout: Seconds to connect, and to wait for an answer.

    Every method raises:
        NoServer: The server cannot be reached within ``timeout`` seconds, or refuses the connection.
        TimeoutError: The server was reached, and did not answer within ``timeout`` seconds.
        ConnectionLost: The server closed the connection instead of answering.
        ServerError: The server refused the command, or does not know it.
        RemoteProtocolError: The answer cannot be read.
    """

    def __init__(
        self,
        server: str | ServerAddress,
        *,
        timeout: float = 5.0,
        tls: TLS | bool | None = None,
        token: str | None = None,
    ) -> None:
        self.server: ServerAddress = ServerAddress.parse(server) if isinstance(server, str) else server
        self.timeout = timeout
        self._security = Security.of(tls, token)

    async def status(self) -> list[FunctionStatus]:
        """Return the functions, with their jobs and workers."""
        return parse_status(await self._table(b"status"))

    async def priority_status(self) -> list[FunctionPriorities]:
        """Return the functions, with their waiting jobs by priority."""
        return parse_priority_status(await self._table(b"prioritystatus"))

    async def workers(self) -> list[WorkerRow]:
        """Return the connections, with the functions that they offer."""
        return parse_workers(await self._table(b"workers"))

    async def jobs(self) -> list[JobRow]:
        """Return the jobs, with their handles."""
        return parse_jobs(await self._table(b"show jobs"))

    async def version(self) -> str:
        """Return the server's version."""
        return await self._line(b"version")

    async def pid(self) -> int:
        """Return the server's process id."""
        answer = await self._line(b"getpid")
        if not re.fullmatch("[0-9]{1,20}", answer):
            raise RemoteProtocolError(f"{self.server}: {answer[:80]!r} is no process id")
        return int(answer)

    async def cancel_job(self, handle: str) -> None:
        """End a job that has not run."""
        await self._line(b"cancel job " + _word(handle_to_wire(handle)))

    async def create_function(self, function: str) -> None:
        """Make a function known, so that ``status`` lists it."""
        # gearmand 1.1.21 cuts off the name's last letter before a bare LF, so every line ends in CRLF.
        await self._line(b"create function " + _word(function_to_wire(function)))

    async def drop_function(self, function: str) -> None:
        """Forget a function that has neither workers nor running jobs."""
        await self._line(b"drop function " + _word(function_to_wire(function)))

    async def max_queue(self, function: str, limit: int | None) -> None:
        """Limit how many jobs a function may have. None removes the limit."""
        words = [b"maxqueue", _word(function_to_wire(function))]
        await self._line(b" ".join(words if limit is None else [*words, b"%d" % limit]))

    async def _line(self, command: bytes) -> str:
        line, *more = await self._exchange(command, lambda answer: answer.endswith(b"\n"))
        if more:
            raise RemoteProtocolError(f"{self.server} answered {command.decode()!r} with several lines")
        return parse_ok(line)

    async def _table(self, command: bytes) -> list[bytes]:
        *rows, last = await self._exchange(command, _is_whole_table)
        if last != END:
            parse_ok(last)  # a refusal
        return rows

    async def _exchange(self, command: bytes, is_whole: Callable[[bytearray], bool]) -> list[bytes]:
        """The lines of the answer to a command, without their ends."""
        try:
            stream = await open_stream(self.server, self._security, self.timeout)
        except Unreachable as error:
            raise NoServer({str(self.server): str(error)}) from error
        answer = bytearray()
        try:
            async with stream:
                with anyio.fail_after(self.timeout):
                    await stream.send(command + b"\r\n")
                    while not is_whole(answer):
                        answer += await stream.receive()
                        if len(answer) > _MAX_TABLE:
                            raise RemoteProtocolError(
                                f"{self.server} answered {command.decode()!r} with over {_MAX_TABLE} bytes"
                            )
        except TimeoutError:
            raise TimeoutError(
                f"{self.server} did not answer {command.decode()!r} within {self.timeout:g} s"
            ) from None
        except ssl.SSLError as error:  # it is only now that a server tells that it refuses our certificate
            raise NoServer({str(self.server): describe(error)}) from error
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
            raise ConnectionLost(
                f"{self.server} closed the connection instead of answering {command.decode()!r}"
            ) from error
        for refusal, reason in _UNWANTED.items():
            if answer.startswith(refusal):
                raise NoServer({str(self.server): reason})
        return [line.removesuffix(b"\r") for line in bytes(answer).split(b"\n")[:-1]]


def _is_whole_table(answer: bytearray) -> bool:
    if answer.startswith(b"ERR ") and b"\t" not in answer:  # a row of a function of that name has tabs
        return answer.endswith(b"\n")
    return answer.endswith(b"\n.\n") or (len(answer) == 2 and answer.startswith(b".\n"))


def _word(name: bytes) -> bytes:
    """A name that is one word of a text command, which cannot quote."""
    if not name or any(character in name for character in b" \t\r\n"):
        raise LocalProtocolError(f"{name!r} cannot be said in a text command: it is empty or contains blanks")
    return name


def admin_of(client: "Client", server: str | ServerAddress, *, timeout: float = 5.0) -> Admin:
    """An ``Admin`` for a server that uses TLS and the token as a client does."""
    security = client.security
    return Admin(server, timeout=timeout, tls=security.tls or False, token=security.token)


class SyncAdmin:
    """The blocking form of ``Admin``. Each command runs in an event loop of its own.

    Like every blocking call, do not use it while an event loop runs in the thread.

    Args:
        server: The server's address.
        timeout: Seconds to connect, and to wait for an answer.
        tls: How to use TLS. See ``Client``.
        token: The token for a server that requires one. See ``Client``.
    """

    def __init__(
        self,
        server: str | ServerAddress,
        *,
        timeout: float = 5.0,
        tls: TLS | bool | None = None,
        token: str | None = None,
    ) -> None:
        self._admin = Admin(server, timeout=timeout, tls=tls, token=token)

    @property
    def server(self) -> ServerAddress:
        """The server's address."""
        return self._admin.server

    def status(self) -> list[FunctionStatus]:
        """See ``Admin.status``."""
        return anyio.run(self._admin.status)

    def priority_status(self) -> list[FunctionPriorities]:
        """See ``Admin.priority_status``."""
        return anyio.run(self._admin.priority_status)

    def workers(self) -> list[WorkerRow]:
        """See ``Admin.workers``."""
        return anyio.run(self._admin.workers)

    def jobs(self) -> list[JobRow]:
        """See ``Admin.jobs``."""
        return anyio.run(self._admin.jobs)

    def version(self) -> str:
        """See ``Admin.version``."""
        return anyio.run(self._admin.version)

    def pid(self) -> int:
        """See ``Admin.pid``."""
        return anyio.run(self._admin.pid)

    def cancel_job(self, handle: str) -> None:
        """See ``Admin.cancel_job``."""
        anyio.run(self._admin.cancel_job, handle)

    def create_function(self, function: str) -> None:
        """See ``Admin.create_function``."""
        anyio.run(self._admin.create_function, function)

    def drop_function(self, function: str) -> None:
        """See ``Admin.drop_function``."""
        anyio.run(self._admin.drop_function, function)

    def max_queue(self, function: str, limit: int | None) -> None:
        """See ``Admin.max_queue``."""
        anyio.run(self._admin.max_queue, function, limit)
