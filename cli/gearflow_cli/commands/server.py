"""``gearflow server``: the job server in a process of its own.

``server`` is a command that has a command below it, ``backup``; alone it serves.

Where a server's jobs live on this machine: the folder, its rescue, copies of it.

By default each port has a folder of its own, below the user's data directory, so that two servers do not
want the same file.
"""

import errno
import os
import signal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from gearflow_cli import logs, options, output
from gearflow_cli.commands.pause import counted
from gearflow_cli.errors import ExitCode, Failure, tell
from gearflow_cli.options import LogLevel

if TYPE_CHECKING:
    from gearflow.server import ServerSettings


def folder(given: Path | None, port: int) -> Path:
    """The folder for the jobs of a server on ``port``.

    Raises:
        Failure: None is given, and there is none by default.
    """
    if given is not None:
        return given.absolute()
    if port == 0:
        raise Failure(
            ExitCode.USAGE,
            "-p 0 takes another port each time, and by default each port has its folder for jobs: "
            "name one with --data DIR, or add --memory to keep them in memory only",
        )
    return _data_home() / "gearflow" / str(port)


def recover_folder(folder: Path) -> None:
    """Save what can be read of a damaged file, and say what became of it. Raises StoreError."""
    from gearflow.server.settings import FILE_NAME
    from gearflow.stores.sqlite.recovery import recover

    saved = recover(folder / FILE_NAME)
    jobs = _kept(saved.kept_jobs, saved.lost_jobs, "job")
    results = _kept(saved.kept_records, saved.lost_records, "result")
    tell(f"recovered {jobs} and {results}; the damaged file is {saved.moved_to} now")
    if saved.lost_groups:
        tell(f"the last {counted(saved.lost_groups, 'group')} of changes are lost as well: the log was cut")
    if not saved.same_name:
        tell("handles that were given before mean nothing any more: the store's name could not be read")
    if not saved.same_paused:
        tell("which functions were paused could not be read: none of them is any more")


def backup(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The copy, which must not be there yet.")],
    data: options.Data = None,
    port: options.Port = 4730,
) -> None:
    """Copy the jobs and results of a server of this machine into FILE, also while it runs.

    To go back to it, put it in the place of the file that a server names when it starts.
    """
    from gearflow.server.settings import FILE_NAME
    from gearflow.stores.sqlite.backup import backup

    server = context.parent
    if server is not None:  # what stands before the word backup holds, too
        data = server.params["data"] if data is None else data
        port = server.params["port"] if _is_default(context, "port") else port
    original = folder(data, port) / FILE_NAME
    if data is None and not original.exists():
        raise Failure(
            ExitCode.MISCONFIGURED,
            f"there is no file {original} to copy; if the server has --data DIR, add that here, too",
        )
    size = backup(original, file)
    output.write(f"copied to {file}: {counted(size, 'byte')}")


def _kept(kept: int, lost: int | None, what: str) -> str:
    if lost is None:
        return f"{counted(kept, what)} (how many are lost cannot be known)"
    return f"{kept:,} of {counted(kept + lost, what)}" if lost else f"all of {counted(kept, what)}"


def _is_default(context: typer.Context, parameter: str) -> bool:
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "DEFAULT"


def _data_home() -> Path:
    """The user's directory for data, by the XDG Base Directory Specification (it ignores relative paths)."""
    named = Path(os.environ.get("XDG_DATA_HOME", ""))
    if named.is_absolute():
        return named
    try:
        return Path.home() / ".local" / "share"
    except RuntimeError as error:
        raise Failure(
            ExitCode.MISCONFIGURED, f"{error}: say where jobs shall live with --data DIR, or add --memory"
        ) from None


app = typer.Typer(subcommand_metavar="[backup FILE]")
app.command("backup")(backup)

_SECURITY: Final = "TLS and token"

_REMEDIES: Final = {
    errno.EADDRINUSE: "it is taken, perhaps by another job server; stop that one, or choose a port with -p",
    errno.EACCES: "ports below 1024 are for root; choose another with -p",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose another with -L",
}


class SyncMode(StrEnum):
    """What an acknowledged background job survives."""

    ALWAYS = "always"
    BATCH = "batch"
    OFF = "off"


def _setting(
    name: str,
    default: str,
    what: str,
    metavar: str = "SIZE",
    panel: str | None = None,
    prefix: str = "GEARFLOW",
) -> Any:
    """An option for one of the server's settings, whose default is not told twice."""
    return typer.Option(
        f"--{name}",
        metavar=metavar,
        parser={"SIZE": options.size, "TIME": options.duration}.get(metavar),
        envvar=f"{prefix}_{name.upper().replace('-', '_')}",
        show_default=default,
        help=what,
        rich_help_panel=panel,
    )


def _limit(name: str, default: str, what: str, metavar: str = "SIZE") -> Any:
    """An option for one of the server's limits."""
    return _setting(f"max-{name}", default, what, metavar, "Limits")


def _secret(name: str, what: str) -> Any:
    """An option for a file of TLS; not by the client's variable, as both may share an environment."""
    return typer.Option(
        f"--{name}",
        metavar="FILE",
        envvar=f"GEARFLOW_SERVER_{name.upper().replace('-', '_')}",
        help=what,
        rich_help_panel=_SECURITY,
    )


@app.callback(invoke_without_command=True)
def server(
    context: typer.Context,
    port: options.Port = 4730,
    listen: Annotated[
        str,
        typer.Option(
            "--listen", "-L", metavar="HOST", envvar="GEARFLOW_LISTEN", help="The address to listen on."
        ),
    ] = "127.0.0.1",
    data: options.Data = None,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory",
            envvar="GEARFLOW_MEMORY",
            help="Keep jobs and results in memory only: they are gone when the server ends.",
        ),
    ] = False,
    sync: Annotated[
        SyncMode,
        typer.Option(
            envvar="GEARFLOW_SYNC",
            help="What a background job that was acknowledged survives: the death of the server in any case; "
            "always: that of the machine, too; batch: that too, but for the last second or so; off: then the "
            "file may be damaged.",
        ),
    ] = SyncMode.BATCH,
    recover: Annotated[
        bool,
        typer.Option(
            "--recover", help="Before serving, save what can be read of a damaged file into a new one."
        ),
    ] = False,
    keep: Annotated[
        float | None,
        _setting(
            "keep",
            "1d",
            "How long results of background jobs are kept where a job does not say.",
            "TIME",
            prefix="GEARFLOW_SERVER",  # without it, it is an option of gearflow submit
        ),
    ] = None,
    keep_dead: Annotated[
        float | None, _setting("keep-dead", "30d", "How long dead letters are kept.", "TIME")
    ] = None,
    keep_bytes: Annotated[
        int | None,
        _setting(
            "keep-bytes",
            "none; 64M with --memory",
            "What is kept of jobs that have ended, at most; the oldest goes first.",
        ),
    ] = None,
    max_deaths: Annotated[
        int | None,
        _setting(
            "max-deaths",
            "3",
            "Workers that may die of a job until it is a dead letter; 0: any number.",
            "N",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        _secret("tls-cert", "Speak TLS only, with this certificate and those it is signed with (PEM)."),
    ] = None,
    tls_key: Annotated[
        Path | None, _secret("tls-key", "Its key, unencrypted, if it is not in the same file.")
    ] = None,
    tls_ca: Annotated[
        Path | None, _secret("tls-ca", "Serve only who shows a certificate of one of the authorities in it.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            envvar="GEARFLOW_TOKEN_FILE",
            help="Serve only who says the token in it; in GEARFLOW_TOKEN it may stand itself.",
            rich_help_panel=_SECURITY,
        ),
    ] = None,
    log_level: options.Level = LogLevel.WARNING,
    log_json: options.LogJson = False,
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
    """Run a job server; TERM or INT stop it, and the next one goes on with its background jobs."""
    if context.invoked_subcommand is not None:
        return
    import asyncio

    from pydantic import ValidationError

    from gearflow.runtime.eventloop import new_event_loop
    from gearflow.server import ServerSettings

    folder = _folder(context, data, port, memory=memory)
    chosen: dict[str, float | str | Path | None] = {
        "keep": keep,
        "keep_dead": keep_dead,
        "keep_bytes": keep_bytes,
        "max_connections": max_connections,
        "max_body": max_body,
        "max_queued_bytes": max_queued_bytes,
        "max_pending_bytes": max_pending_bytes,
        "max_stall": max_stall,
        "max_packet_time": max_packet_time,
        "max_function": max_function,
        "max_unique": max_unique,
        "max_line": max_line,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "tls_ca": tls_ca,
        "token": _token(token_file),
    }
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    if max_deaths is not None:
        given["max_deaths"] = max_deaths or None
    try:
        settings = ServerSettings.model_validate(
            {"host": listen, "port": port, "data": folder, "sync": sync.value, **given}
        )
    except ValidationError as error:
        fault = error.errors()[0]
        where = f"--{fault['loc'][0]}: " if fault["loc"] else ""
        what = fault["msg"].removeprefix("Value error, ")
        raise Failure(ExitCode.USAGE, f"{where}{what}".replace("_", "-")) from None
    logs.to_stderr(log_level.value, json=log_json)
    if recover and folder is not None:
        recover_folder(folder)
    _raise_file_limit()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(settings))


def _folder(context: typer.Context, data: Path | None, port: int, *, memory: bool) -> Path | None:
    """Where jobs are to live; None for memory. The command line has its way against the environment.

    Raises:
        Failure: That cannot be told.
    """
    if not memory:
        return folder(data, port)
    said = context.get_parameter_source("memory")
    for name in ("data", "sync", "recover"):
        source = context.get_parameter_source(name)
        if source is not None and source == said:
            raise Failure(
                ExitCode.USAGE,
                f"--{name} is about jobs in a file, and --memory has none: leave out one of them",
            )
        if source is not None and source.name == "COMMANDLINE":
            return folder(data, port)
    return None


def _token(file: Path | None) -> str | None:
    """The token that the server wants, if it wants one.

    Raises:
        Failure: It can be none.
    """
    from gearflow.security.tokens import token_of_environment

    options.prefer(file)
    try:
        return token_of_environment() or None
    except ValueError as error:
        raise Failure(ExitCode.MISCONFIGURED, str(error)) from None


def _raise_file_limit() -> None:
    """Allow as many open files, and so connections, as the system lets us."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(settings: "ServerSettings") -> None:
    """Serve until a signal comes. What runs is cut off then; background jobs are run again by the next one.

    Raises:
        Failure: It cannot listen, or a file of TLS cannot be used.
        StoreError: The file of jobs cannot be used.
    """
    import asyncio

    from gearflow.security.tls import BadCertificate
    from gearflow.server import JobServer, server_version, tune_garbage_collection

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    job_server = JobServer(settings)
    if settings.tls_cert is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, job_server.reload_tls)
    try:
        await job_server.__aenter__()
    except OSError as error:
        refuse(settings.host, settings.port, error)
    except BadCertificate as error:
        raise Failure(ExitCode.MISCONFIGURED, str(error)) from None
    tune_garbage_collection()
    where = f"{job_server.address}{_guards(settings)}"
    tell(f"{server_version()} listens on {where}; {_life(settings, job_server.restored)}")
    try:
        await stop.wait()
    finally:
        await job_server.__aexit__()


def _guards(settings: "ServerSettings") -> str:
    """What a client needs to be served."""
    guards = [
        *(["TLS"] if settings.tls_cert is not None else []),
        *(["a certificate"] if settings.tls_ca is not None else []),
        *(["the token"] if settings.token is not None else []),
    ]
    return f" and wants {', '.join(guards)}" if guards else ""


def _life(settings: "ServerSettings", restored: int) -> str:
    """How jobs live in a server, which has found some."""
    from gearflow.server.settings import FILE_NAME

    if settings.data is None:
        return "jobs live in memory only and are lost when it ends"
    found = counted(restored, "job")
    return f"jobs live in {settings.data / FILE_NAME}, where {found} waited; sync: {settings.sync}"


def refuse(host: str, port: int, error: OSError) -> NoReturn:
    """Say why a server cannot listen.

    Raises:
        Failure: Always.
    """
    remedy = _REMEDIES.get(
        error.errno or 0, f"{error.strerror or error}; choose another address with -L or -p"
    )
    raise Failure(ExitCode.MISCONFIGURED, f"cannot listen on port {port} of {host}: {remedy}") from error
