"""What operators ask of gearflow's own server: dead letters, paused functions, workers, what it is.

Each asks the server that a submission would go to, unless one is named. Code without an event loop calls
them through ``SyncClient.run``: ``client.run(lambda client: dead_letters(client))``.

All of them raise:
    UnsupportedByServer: It is not gearflow's own server; nothing was sent.
    ServerError: It refuses.
    NoServer: It cannot be reached.
    ConnectionLost: The connection closed before the answer.
"""

from typing import TypeVar

from gearflow.client.client import Client
from gearflow.client.config import ServerAddress
from gearflow.protocol.server_calls import (
    DEAD,
    INFO,
    PAUSE,
    PURGE,
    WORKERS,
    DeadRequest,
    Done,
    InfoRequest,
    JobInfo,
    Letter,
    Letters,
    Message,
    PauseRequest,
    PurgeRequest,
    ServerInfo,
    WorkerInfo,
    Workers,
    WorkersRequest,
)

M = TypeVar("M", bound=Message)


async def server_info(client: Client, *, server: ServerAddress | str | None = None) -> ServerInfo:
    """What the server is."""
    return await _ask(client, INFO, InfoRequest(), ServerInfo, server)


async def workers(client: Client, *, server: ServerAddress | str | None = None) -> tuple[WorkerInfo, ...]:
    """Who works for it: every connection that offers functions."""
    return (await _ask(client, WORKERS, WorkersRequest(), Workers, server)).workers


async def pause(
    client: Client, function: str, paused: bool = True, *, server: ServerAddress | str | None = None
) -> int:
    """Give out no job of a function any more, or go on; how many wait."""
    request = PauseRequest(function=function, paused=paused)
    return (await _ask(client, PAUSE, request, Done, server)).jobs


async def purge(client: Client, function: str, *, server: ServerAddress | str | None = None) -> int:
    """Cancel the waiting and delayed jobs of a function; how many there were."""
    return (await _ask(client, PURGE, PurgeRequest(function=function), Done, server)).jobs


async def dead_letters(
    client: Client,
    function: str | None = None,
    *,
    after: str | None = None,
    limit: int = 100,
    server: ServerAddress | str | None = None,
) -> tuple[JobInfo, ...]:
    """The first ``limit`` (up to 1,000) dead letters of a function, or of all.

    ``after`` is the handle of the last one of those before.
    """
    request = DeadRequest(action="list", function=function, after=after, limit=limit)
    return (await _ask(client, DEAD, request, Letters, server)).letters


async def dead_letter(client: Client, handle: str, *, server: ServerAddress | str | None = None) -> Letter:
    """A dead letter with its payload. Raises UnknownJob if there is none of that handle."""
    return await _ask(client, DEAD, DeadRequest(action="show", handle=handle), Letter, server)


async def replay(
    client: Client,
    handle: str | None = None,
    *,
    function: str | None = None,
    server: ServerAddress | str | None = None,
) -> Done:
    """Run dead letters again, as if they had just been submitted; how many were, and how many were left.

    The one with that handle, those of a function, or all. Those of whose unique another job waits or runs are
    left: there would be two.

    Raises:
        UnknownJob: There is no dead letter of that handle.
        ServerError: It is to be left.
    """
    request = DeadRequest(action="replay", handle=handle, function=function)
    return await _ask(client, DEAD, request, Done, server)


async def purge_dead(
    client: Client,
    handle: str | None = None,
    *,
    function: str | None = None,
    server: ServerAddress | str | None = None,
) -> int:
    """Forget dead letters, named as for ``replay``; how many there were.

    Raises UnknownJob if there is none of that handle.
    """
    request = DeadRequest(action="purge", handle=handle, function=function)
    return (await _ask(client, DEAD, request, Done, server)).jobs


async def _ask(
    client: Client, function: bytes, request: Message, answer: type[M], server: ServerAddress | str | None
) -> M:
    return answer.model_validate_json(await client.call_reserved(function, request, server=server))
