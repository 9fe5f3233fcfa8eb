"""Operations on gearflow's own server: jobs, dead letters, limits, policies, paused functions, workers.

Each function asks the server that a submission would go to, unless you name one. Code without an event loop
calls them through ``SyncClient.run``, as in ``client.run(lambda client: dead_letters(client))``.

All of them raise:
    UnsupportedByServer: The server is not gearflow's own. Nothing was sent.
    ServerError: The server refuses.
    NoServer: The server cannot be reached.
    ConnectionLost: The connection closed before the answer, or there was none in time.
    RemoteProtocolError: The answer cannot be read.
"""

from collections.abc import Sequence
from typing import Literal, TypeVar

from gearflow.client.client import Client
from gearflow.client.config import ServerAddress
from gearflow.client.requests import read_answer
from gearflow.protocol.group_info import GROUP, GroupInfo, GroupRequest
from gearflow.protocol.jobs import BULK, JOBS, BulkDone, BulkRequest, JobFilter, JobPage, JobsRequest
from gearflow.protocol.limits import (
    LIMIT,
    LIMITS,
    POLICY,
    FunctionPolicy,
    LimitChange,
    LimitChanges,
    LimitList,
    LimitRequest,
    LimitsRequest,
    Policies,
    PolicyRequest,
)
from gearflow.protocol.metrics import METRICS, Metrics, MetricsRequest
from gearflow.protocol.server_calls import (
    DEAD,
    INFO,
    PAUSE,
    PURGE,
    REOPEN,
    DeadRequest,
    Done,
    InfoRequest,
    JobInfo,
    Letter,
    Letters,
    Message,
    PauseRequest,
    PurgeRequest,
    Reopened,
    ReopenRequest,
    ServerInfo,
)
from gearflow.protocol.workers import (
    QUIET,
    WORKERS,
    QuietDone,
    QuietRequest,
    WorkerInfo,
    Workers,
    WorkersRequest,
)

M = TypeVar("M", bound=Message)


async def server_info(client: Client, *, server: ServerAddress | str | None = None) -> ServerInfo:
    """Return the state of the server.

    Args:
        client: The client that makes the call.
        server: The server to ask. By default the one that a submission would go to.
    """
    return await _ask(client, INFO, InfoRequest(), ServerInfo, server)


async def group_info(client: Client, *, server: ServerAddress | str | None = None) -> GroupInfo:
    """Return the servers that share the server's database, and the state of the database.

    Args:
        client: The client that makes the call.
        server: The server to ask. By default the one that a submission would go to.

    Raises:
        ServerError: The server is in no group, or its database cannot be reached.
    """
    return await _ask(client, GROUP, GroupRequest(), GroupInfo, server)


async def reopen(client: Client, *, server: ServerAddress | str | None = None) -> bool:
    """Have the server accept background jobs again after its disk failed. Returns whether it refused them.

    Args:
        client: The client that makes the call.
        server: The server to ask. By default the one that a submission would go to.

    Raises:
        ServerError: The disk still fails, or something is missing in the file.
    """
    return (await _ask(client, REOPEN, ReopenRequest(), Reopened, server)).was_closed


async def workers(
    client: Client, *, jobs: int = 0, server: ServerAddress | str | None = None
) -> tuple[WorkerInfo, ...]:
    """Return the workers of the server, which are all connections that offer functions.

    Args:
        client: The client that makes the call.
        jobs: The largest number of jobs to return of those that each worker runs, up to 1,000.
        server: The server to ask. By default the one that a submission would go to.
    """
    return (await _ask(client, WORKERS, WorkersRequest(jobs=jobs), Workers, server)).workers


async def quiet(
    client: Client,
    worker: str | None = None,
    quiet: bool = True,
    *,
    client_id: str | None = None,
    server: ServerAddress | str | None = None,
) -> QuietDone:
    """Give workers no more jobs, or go on. They end what they run. Works with workers of any library.

    The server forgets it when a worker's connection closes. A worker that connects again gets jobs.

    Args:
        client: The client that makes the call.
        worker: The id of a worker, from ``workers``.
        quiet: False to go on.
        client_id: In place of the id, the name that workers have set. All workers of this name are meant.
        server: The server to ask. By default the one that a submission would go to.

    Raises:
        ServerError: There is no such worker.
    """
    request = QuietRequest(id=worker, client_id=client_id, quiet=quiet)
    return await _ask(client, QUIET, request, QuietDone, server)


async def pause(
    client: Client, function: str, paused: bool = True, *, server: ServerAddress | str | None = None
) -> int:
    """Stop giving out the jobs of a function, or go on. Returns the number of waiting jobs.

    Args:
        client: The client that makes the call.
        function: The function.
        paused: False to go on.
        server: The server to ask. By default the one that a submission would go to.
    """
    request = PauseRequest(function=function, paused=paused)
    return (await _ask(client, PAUSE, request, Done, server)).jobs


async def purge(client: Client, function: str, *, server: ServerAddress | str | None = None) -> int:
    """Cancel the waiting and delayed jobs of a function. Returns their number.

    Args:
        client: The client that makes the call.
        function: The function.
        server: The server to ask. By default the one that a submission would go to.
    """
    return (await _ask(client, PURGE, PurgeRequest(function=function), Done, server)).jobs


async def jobs(
    client: Client,
    select: JobFilter | None = None,
    *,
    after: str = "",
    limit: int = 100,
    payload: int = 0,
    server: ServerAddress | str | None = None,
) -> JobPage:
    """Return a page of the jobs that a filter selects.

    First come the running, waiting and delayed jobs in the order of their numbers. Then come those that have
    ended, the last one first.

    Args:
        client: The client that makes the call.
        select: The filter. None selects all jobs.
        after: ``next`` of the page before. A page without ``next`` is the last one.
        limit: The largest number of jobs (up to 1,000). A page may have fewer, or none, and have a ``next``.
        payload: Up to so many bytes (up to 65,536) of each payload are returned as text.
        server: The server to ask. By default the one that a submission would go to.

    Raises:
        ServerError: ``after`` is no ``next`` of a page.
    """
    chosen = {} if select is None else select.model_dump(exclude_defaults=True)
    request = JobsRequest(**chosen, after=after, limit=limit, payload=payload)
    return await _ask(client, JOBS, request, JobPage, server)


async def bulk(
    client: Client,
    do: Literal["count", "cancel", "replay", "purge", "errors"],
    select: JobFilter | None = None,
    *,
    expected: int | None = None,
    server: ServerAddress | str | None = None,
) -> BulkDone:
    """Count the jobs that a filter selects, or act on all of them.

    ``cancel`` is for live jobs, ``replay`` and ``purge`` are for dead letters. Jobs in other states are not
    touched and do not count. ``errors`` groups dead letters by function and error.

    A client of a group acts on the live jobs of one server, and on the dead letters of all. If the client
    leaves, or has no answer in ``answer_timeout``, the act goes on.

    Args:
        client: The client that makes the call.
        do: The act, or the question.
        select: The filter. None selects all jobs.
        expected: If more jobs match than this, nothing is done.
        server: The server to ask. By default the one that a submission would go to.

    Raises:
        ServerError: More jobs match than expected, or not all could be written.
        ValueError: The filter selects only jobs in states that ``do`` is not for.
    """
    chosen = {} if select is None else select.model_dump(exclude_defaults=True)
    request = BulkRequest(**chosen, do=do, expected=expected)
    return await _ask(client, BULK, request, BulkDone, server)


async def dead_letters(
    client: Client,
    function: str | None = None,
    *,
    after: str | None = None,
    limit: int = 100,
    server: ServerAddress | str | None = None,
) -> tuple[JobInfo, ...]:
    """Return the first ``limit`` (up to 1,000) dead letters of a function, or of all.

    Args:
        client: The client that makes the call.
        function: The function. None means all.
        after: The handle of the last dead letter of the previous call.
        limit: The largest number to return.
        server: The server to ask. By default the one that a submission would go to.
    """
    request = DeadRequest(action="list", function=function, after=after, limit=limit)
    return (await _ask(client, DEAD, request, Letters, server)).letters


async def dead_letter(client: Client, handle: str, *, server: ServerAddress | str | None = None) -> Letter:
    """Return a dead letter with its payload. Raises UnknownJob if there is none with that handle.

    Args:
        client: The client that makes the call.
        handle: The handle of the dead letter.
        server: The server to ask. By default the one that a submission would go to.
    """
    return await _ask(client, DEAD, DeadRequest(action="show", handle=handle), Letter, server)


async def replay(
    client: Client,
    handle: str | None = None,
    *,
    function: str | None = None,
    server: ServerAddress | str | None = None,
) -> Done:
    """Run dead letters again, as if they had just been submitted. Returns how many were replayed, and how
    many stayed.

    If another job with the same unique waits or runs, the dead letter stays, because otherwise there would be
    two such jobs. A dead letter that is found damaged also stays.

    Args:
        client: The client that makes the call.
        handle: The handle of the dead letter.
        function: The function whose dead letters are meant, if there is no handle. None means all.
        server: The server to ask. By default the one that a submission would go to.

    Raises:
        UnknownJob: There is no dead letter with that handle.
        ServerError: The dead letter with that handle has to stay.
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
    """Forget dead letters, which you name as for ``replay``. Returns their number.

    Raises UnknownJob if there is none with that handle.

    Args:
        client: The client that makes the call.
        handle: The handle of the dead letter.
        function: The function whose dead letters are meant, if there is no handle. None means all.
        server: The server to ask. By default the one that a submission would go to.
    """
    request = DeadRequest(action="purge", handle=handle, function=function)
    return (await _ask(client, DEAD, request, Done, server)).jobs


async def limits(
    client: Client,
    name: str | None = None,
    *,
    function: str | None = None,
    server: ServerAddress | str | None = None,
) -> LimitList:
    """Return the limits of the server, and the functions that use them.

    Args:
        client: The client that makes the call.
        name: Selects the limit of this name.
        function: Selects the limits of this function.
        server: The server to ask. By default the one that a submission would go to.

    Raises:
        ServerError: There is no limit of that name.
    """
    return await _ask(client, LIMITS, LimitsRequest(name=name, function=function), LimitList, server)


async def change_limits(
    client: Client, request: LimitRequest, *, server: ServerAddress | str | None = None
) -> tuple[LimitChange, ...]:
    """Set, unset, pause or resume a limit, or apply what code declares. Returns what it changed.

    Args:
        client: The client that makes the call.
        request: The change.
        server: The server to ask. By default the one that a submission would go to.

    Raises:
        ServerError: There is no limit of that name, or the value does not fit it.
    """
    return (await _ask(client, LIMIT, request, LimitChanges, server)).changes


async def metrics(
    client: Client,
    functions: Sequence[str] | None = None,
    *,
    since: float | None = None,
    server: ServerAddress | str | None = None,
) -> Metrics:
    """Return what the server has counted since it started.

    Args:
        client: The client that makes the call.
        functions: Selects functions, also in the history, where ``""`` stands for all of them together. None
            means all functions, and in the history their sum alone.
        since: Includes the minutes of the history from this Unix time on. None means no history.
        server: The server to ask. By default the one that a submission would go to.
    """
    names = None if functions is None else tuple(functions)
    return await _ask(client, METRICS, MetricsRequest(functions=names, since=since), Metrics, server)


async def policies(
    client: Client, request: PolicyRequest, *, server: ServerAddress | str | None = None
) -> tuple[FunctionPolicy, ...]:
    """Set, unset or list policies, the options for all jobs of a function. Returns those that there are.

    Args:
        client: The client that makes the call.
        request: The change, or the question.
        server: The server to ask. By default the one that a submission would go to.

    Raises:
        ServerError: There is no policy to unset.
    """
    return (await _ask(client, POLICY, request, Policies, server)).policies


async def _ask(
    client: Client, function: bytes, request: Message, answer: type[M], server: ServerAddress | str | None
) -> M:
    data = await client.call_reserved(function, request, server=server)
    return read_answer(answer, data, function.decode(), server or " or ".join(map(str, client.servers)))
