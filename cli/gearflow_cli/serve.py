"""``gearflow server``: the job server in a process of its own."""

import errno
import signal
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

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


def _limit(name: str, default: str, what: str, metavar: str = "SIZE") -> Any:
    """An option for one of the server's limits."""
    return typer.Option(
        f"--max-{name}",
        metavar=metavar,
        parser={"SIZE": options.size, "TIME": options.duration}.get(metavar),
        envvar=f"GEARFLOW_MAX_{name.upper().replace('-', '_')}",
        show_default=default,
        help=what,
        rich_help_panel="Limits",
    )


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
    log_level: options.Level = LogLevel.WARNING,
    max_connections: Annotated[
        int | None, _limit("connections", "what open files allow", "Connections at a time.", "N")
    ] = None,
    max_body: Annotated[
        int | None,
        _limit("body", "1G", "A packet's body, up to 4G less a byte; more is thrown away and refused."),
    ] = None,
    max_queued_bytes: Annotated[
        int | None, _limit("queued-bytes", "none", "The payloads of all jobs together.")
    ] = None,
    max_pending_bytes: Annotated[
        int | None,
        _limit("pending-bytes", "64M", "What waits for one reader before its feeders wait, too."),
    ] = None,
    max_stall: Annotated[
        float | None,
        _limit(
            "stall", "30s", "How long a slow reader keeps its feeders waiting until it is closed.", "TIME"
        ),
    ] = None,
    max_packet_time: Annotated[
        float | None,
        _limit("packet-time", "60s", "How long a packet may take to come, and 1 s more a MiB.", "TIME"),
    ] = None,
    max_function: Annotated[int | None, _limit("function", "8K", "A function's name.")] = None,
    max_unique: Annotated[int | None, _limit("unique", "64", "A unique.")] = None,
    max_line: Annotated[int | None, _limit("line", "8K", "A text command.")] = None,
) -> None:
    """Run a job server; TERM or INT stop it. Jobs live in memory: those it has then are lost."""
    import asyncio

    from pydantic import ValidationError

    from gearflow.server import ServerSettings, new_event_loop

    limits = {
        "max_connections": max_connections,
        "max_body": max_body,
        "max_queued_bytes": max_queued_bytes,
        "max_pending_bytes": max_pending_bytes,
        "max_stall": max_stall,
        "max_packet_time": max_packet_time,
        "max_function": max_function,
        "max_unique": max_unique,
        "max_line": max_line,
    }
    given = {name: value for name, value in limits.items() if value is not None}
    try:
        settings = ServerSettings.model_validate({"host": listen, "port": port, **given})
    except ValidationError as error:
        fault = error.errors()[0]
        raise Failure(ExitCode.USAGE, f"--{fault['loc'][0]}: {fault['msg']}".replace("_", "-")) from None
    logs.to_stderr(log_level.value)
    _raise_file_limit()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(settings))


def _raise_file_limit() -> None:
    """Allow as many open files, and so connections, as the system lets us."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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
