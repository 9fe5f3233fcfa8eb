"""Acts on the servers of views. Each raises as the functions of ``gearflow.client.operate`` do."""

from collections.abc import Iterable, Sequence

from gearflow.client.admin import admin_of
from gearflow.client.client import Client
from gearflow.client.config import ServerAddress
from gearflow.client.job import JobHandle
from gearflow.client.operate import pause, purge
from gearflow.client.operate import quiet as set_quiet
from gearflow.errors import GearflowError, NoServer, ServerError, UnsupportedByServer
from gearflow.observe.view import ServerView
from gearflow.protocol.workers import QuietDone


def targets(views: Iterable[ServerView], server: str | None = None) -> list[ServerView]:
    """The servers on which an act is to be done: of gearflow's that answer, each group by one of its servers.

    Args:
        views: The servers to choose from.
        server: The address of the only server that is meant.

    Raises:
        NoServer: None of them answers.
        UnsupportedByServer: None that answers is gearflow's own.
    """
    meant = [view for view in views if server in (None, view.address, view.name)]
    chosen: dict[str, ServerView] = {}
    for view in meant:
        if view.info is not None and view.answers:
            chosen.setdefault(view.store_name, view)
    if not chosen:
        raise _no_target(meant, server)
    return list(chosen.values())


def _no_target(meant: Sequence[ServerView], server: str | None) -> GearflowError:
    away = {view.address: view.error for view in meant if not view.answers}
    if away and len(away) == len(meant):
        return NoServer(away)
    if not meant:
        return UnsupportedByServer(f"{server or 'nothing'} is none of the servers that were asked")
    others = [view.address for view in meant if view.answers]
    text = (
        f"only gearflow's own server can do this, and {', '.join(others)} {'are' if others[1:] else 'is'} not"
    )
    return UnsupportedByServer("; ".join([text, *(f"{address} does not answer" for address in away)]))


async def pause_function(
    client: Client,
    views: Iterable[ServerView],
    function: str,
    paused: bool = True,
    *,
    server: str | None = None,
) -> dict[str, int]:
    """Stop giving out the jobs of a function, or go on. Returns the number of waiting jobs by server.

    Args:
        client: The client that makes the calls.
        views: The servers. Those that are not gearflow's own are left out.
        function: The function.
        paused: False to go on.
        server: The address of the only server that is meant.
    """
    return {
        view.address: await pause(client, function, paused, server=view.address)
        for view in targets(views, server)
    }


async def purge_function(
    client: Client, views: Iterable[ServerView], function: str, *, server: str | None = None
) -> dict[str, int]:
    """Cancel the waiting and delayed jobs of a function. Returns their number by server.

    Each server of a group cancels its own jobs, so all of them are asked.

    Args:
        client: The client that makes the calls.
        views: The servers. Those that are not gearflow's own are left out.
        function: The function.
        server: The address of the only server that is meant.
    """
    views = list(views)
    asked = [view for view in views if view.info is not None and view.answers]
    if server is not None or not asked:
        asked = targets(views, server)
    return {view.address: await purge(client, function, server=view.address) for view in asked}


async def quiet_worker(client: Client, view: ServerView, worker: str, quiet: bool = True) -> QuietDone:
    """Give a worker no more jobs, or go on.

    Args:
        client: The client that makes the call.
        view: The server of the worker.
        worker: The id of the worker, which only gearflow's server gives it.
        quiet: False to go on.
    """
    targets([view])
    return await set_quiet(client, worker, quiet, server=view.address)


async def cancel_job(client: Client, view: ServerView, handle: str) -> bool:
    """Cancel a job of a server. C gearmand cancels only a job that has not started.

    Returns whether there was a job to cancel.

    Args:
        client: The client that makes the call.
        view: The server that has the job.
        handle: The handle of the job.
    """
    address = ServerAddress.parse(view.address)
    if view.kind == "gearflow":
        return await client.cancel(JobHandle(handle, address))
    try:
        await admin_of(client, address).cancel_job(handle)
    except ServerError:
        return False
    return True
