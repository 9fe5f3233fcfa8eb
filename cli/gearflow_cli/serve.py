"""``gearflow server``: the job server in a process of its own."""

import errno
import signal
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from gearflow_cli import logs, options
from gearflow_cli.exits import ExitCode, Failure, tell
from gearflow_cli.options import LogLevel

if TYPE_CHECKING:
    from gearflow.server import ServerSettings

_REMEDIES: Final = {
    errno.EADDRINUSE: "it is taken, perhaps by another job server; stop that one, or choose a port with -p",
    errno.EACCES: "ports below 1024 are for root; choose another with -p",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose another with -L",
}


def server(
    port: options.Port = 4730,
    listen: Annotated[
        str,
        typer.Option(
            "--listen", "-L", metavar="HOST", envvar="GEARFLOW_LISTEN", help="The address to listen on."
        ),
    ] = "127.0.0.1",
    memory: Annotated[
        bool,
        typer.Option(
            "--memory",
            envvar="GEARFLOW_MEMORY",
            help="Keep jobs in memory only; it is the only way yet, so it may be left out.",
        ),
    ] = False,
    max_body: Annotated[
        int | None,
        typer.Option(
            "--max-body",
            metavar="SIZE",
            parser=options.size,
            envvar="GEARFLOW_MAX_BODY",
            show_default="1G",
            help="How large a packet may be, such as 64M; who announces a larger one is disconnected.",
        ),
    ] = None,
    log_level: options.Level = LogLevel.WARNING,
) -> None:
    """Run a job server; TERM or INT stop it. Jobs live in memory: those it has then are lost."""
    import asyncio

    from pydantic import ValidationError

    from gearflow.server import ServerSettings, new_event_loop

    try:
        settings = ServerSettings(host=listen, port=port)
        if max_body is not None:
            settings = ServerSettings(host=listen, port=port, max_body=max_body)
    except ValidationError as error:
        fault = error.errors()[0]
        raise Failure(ExitCode.USAGE, f"--{fault['loc'][0]}: {fault['msg']}".replace("_", "-")) from None
    logs.to_stderr(log_level.value)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(settings))


async def _serve(settings: "ServerSettings") -> None:
    """Serve until a signal comes. What runs is cut off then, as by gearmand."""
    import asyncio

    from gearflow.server import JobServer, server_version, tune_garbage_collection

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    job_server = JobServer(settings)
    try:
        await job_server.__aenter__()
    except OSError as error:
        refuse(settings.host, settings.port, error)
    tune_garbage_collection()
    tell(
        f"{server_version()} listens on {job_server.address}; "
        "jobs live in memory only and are lost when it ends"
    )
    try:
        await stop.wait()
    finally:
        await job_server.__aexit__()


def refuse(host: str, port: int, error: OSError) -> NoReturn:
    """Say why a server cannot listen.

    Raises:
        Failure: Always.
    """
    remedy = _REMEDIES.get(
        error.errno or 0, f"{error.strerror or error}; choose another address with -L or -p"
    )
    raise Failure(ExitCode.MISCONFIGURED, f"cannot listen on port {port} of {host}: {remedy}") from error
