"""``gearflow server`` runs the job server. ``backup`` copies its file, ``copy`` moves its jobs to
PostgreSQL or back, and ``reopen`` is for a failed disk.

By default each port has its own folder below the user's data directory, so that two servers do not use the
same file.
"""

import errno
import logging
import os
import signal
from collections.abc import Callable
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from gearflow_cli import logs, options, output, server_queries
from gearflow_cli.commands.copy import copy
from gearflow_cli.errors import CliError, ExitCode, tell
from gearflow_cli.help import HelpCommand, HelpGroup, Panel, variable
from gearflow_cli.options import LogLevel, argument, group, how, limit, tls, where
from gearflow_cli.output import counted
from gearflow_cli.process import raise_file_limit
from gearflow_cli.process.metrics import server_port

if TYPE_CHECKING:
    from gearflow.server import JobServer, ServerSettings


def folder(given: Path | None, port: int) -> Path:
    """The folder for the jobs of a server on ``port``.

    Raises:
        CliError: No folder is given, and there is no default.
    """
    if given is not None:
        return given.absolute()
    if port == 0:
        raise CliError(
            ExitCode.USAGE,
            "-p 0 takes another port each time, and by default each port has its folder for jobs: "
            "name one with --data DIR, or add --memory to keep them in memory only",
        )
    return _data_home() / "gearflow" / str(port)


def recover_folder(folder: Path) -> None:
    """Save what is readable of a damaged file, and report it. Raises StoreError."""
    from gearflow.server.settings import FILE_NAME
    from gearflow.stores.sqlite.recovery import recover

    saved = recover(folder / FILE_NAME)
    jobs = _kept(saved.kept_jobs, saved.lost_jobs, "job")
    results = _kept(saved.kept_records, saved.lost_records, "result")
    tell(f"recovered {jobs} and {results}; the damaged file is {saved.moved_to} now")
    if saved.doubtful_jobs:
        tell(
            f"found {counted(saved.doubtful_jobs, 'more job')} that may have ended before, as the list of "
            "free pages is damaged too; they are dead letters now, see gearflow dead list"
        )
    if saved.lost_groups:
        tell(f"the last {counted(saved.lost_groups, 'group')} of changes are lost as well: the log was cut")
    if not saved.same_name:
        tell("handles that were given before mean nothing any more: the store's name could not be read")
    if not saved.same_renumbered:
        tell("handles of servers from which jobs were copied mean nothing any more: they could not be read")
    if not saved.same_paused:
        tell("which functions were paused could not be read: none of them is any more")
    for setting in saved.damaged_settings:
        tell(f"the setting {setting} is not what was written, and is lost: set it again")
    unnamed = None if saved.lost_settings is None else saved.lost_settings - len(saved.damaged_settings)
    if unnamed is None:
        tell("it is not known whether schedules, limits or policies are lost: look at them")
    elif unnamed > 0:
        tell(f"{counted(unnamed, 'more setting')} could not be found: look at schedules, limits and policies")
    if not saved.same_parts:
        tell("some parts of streams could not be read: their readers get a gap")


def backup(
    context: typer.Context,
    file: Annotated[Path, argument(Panel.WHERE, "FILE", "The copy. It must not exist yet.")],
    data: options.Data = None,
    port: options.Port = 4730,
) -> None:
    """Copy a server's jobs and results into FILE, also while the server runs.

    The server must be on this machine. To restore the copy, put it in the place of the file that the server
    names when it starts.

    Examples:
      gearflow server backup jobs-monday.db
      gearflow server backup --data /var/lib/gearflow jobs-monday.db
    """
    from gearflow.server.settings import FILE_NAME
    from gearflow.stores.sqlite.backup import backup

    server = context.parent
    if server is not None:  # options before the word backup apply too
        data = server.params["data"] if data is None else data
        port = server.params["port"] if _is_default(context, "port") else port
    original = folder(data, port) / FILE_NAME
    if data is None and not original.exists():
        raise CliError(
            ExitCode.MISCONFIGURED,
            f"there is no file {original} to copy; if the server has --data DIR, add that here, too",
        )
    size = backup(original, file)
    output.write(f"copied to {file}: {counted(size, 'byte')}")


_REOPENING: Final = 3600.0
"""Seconds in which a server reads its file. It answers nobody meanwhile."""


def reopen(servers: options.Servers = None) -> None:
    """Have a running server accept background jobs again after its disk failed.

    Repair the disk first. The server reads its file as it does at a start, and serves nobody meanwhile. It
    writes again what the disk may have lost. If something is missing, it goes on refusing background jobs.

    Examples:
      gearflow server reopen
      gearflow server reopen -s jobs.example.com
    """
    from gearflow.client.operate import reopen as reopen_on

    addresses = server_queries.addresses_of(servers)
    answers = server_queries.each(
        addresses, lambda client, server: reopen_on(client, server=server), timeout=_REOPENING
    )
    for address, was_closed in answers.given.items():
        again = "again" if was_closed else "already"
        output.write(f"{address}: accepts background jobs {again}")
    answers.require_all()


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
        raise CliError(
            ExitCode.MISCONFIGURED, f"{error}: say where jobs shall live with --data DIR, or add --memory"
        ) from None


app = typer.Typer(cls=HelpGroup, subcommand_metavar="[backup FILE | copy | reopen]")
app.command("backup", cls=HelpCommand)(backup)
app.command("copy", cls=HelpCommand)(copy)
app.command("reopen", cls=HelpCommand)(options.secured(reopen))

_REMEDIES: Final = {
    errno.EADDRINUSE: "it is taken, perhaps by another job server; stop that one, or choose a port with -p",
    errno.EACCES: "ports below 1024 are for root; choose another with -p",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose another with -L",
}


class SyncMode(StrEnum):
    """How safe an acknowledged background job is."""

    ALWAYS = "always"
    BATCH = "batch"
    OFF = "off"


def _server_tls(name: str, text: str) -> Any:
    """Declare a file for TLS. Its variable is not the client's, because both may share an environment."""
    return tls(name, text, "FILE", env=variable(name, "GEARFLOW_SERVER"))


@app.callback(invoke_without_command=True)
def server(
    context: typer.Context,
    port: options.Port = 4730,
    listen: Annotated[str, where("--listen -L", "The address to listen on.", "HOST")] = "127.0.0.1",
    data: options.Data = None,
    memory: Annotated[
        bool, where("--memory", "Keep jobs and results in memory only, and lose them at the end.")
    ] = False,
    recover: Annotated[
        bool, where("--recover", "First save what is readable of a damaged file into a new one.", env=None)
    ] = False,
    postgres: Annotated[
        str | None,
        where("--postgres", "Or a database for them, which several servers can share.", "CONNINFO"),
    ] = None,
    schema: Annotated[
        str, group("--schema", "The schema in it. Its servers are a group.", "NAME")
    ] = "gearflow",
    lease: Annotated[
        float | None,
        group(
            "--lease",
            "Others take over the jobs of a dead server after this.",
            "DURATION",
            default="10s",
        ),
    ] = None,
    advertise: Annotated[
        str | None,
        group("--advertise", "The address by which others reach this server.", "HOST:PORT"),
    ] = None,
    store_timeout: Annotated[
        float | None,
        group(
            "--store-timeout",
            "The wait for a database that is away.",
            "DURATION",
            default="5s",
        ),
    ] = None,
    migrate_only: Annotated[
        bool, group("--migrate-only", "Bring the schema up to date, and do not serve.", env=None)
    ] = False,
    sync: Annotated[
        SyncMode | None,
        how(
            "--sync",
            "If the machine fails, always loses no acknowledged background job, batch those of the last "
            "second, and off perhaps the file.",
            "MODE",
            default="batch, with --postgres always",
        ),
    ] = None,
    keep: Annotated[
        float | None,
        how(
            "--keep",
            "How long to keep results, if a job does not say.",
            "DURATION",
            env="GEARFLOW_SERVER_KEEP",  # GEARFLOW_KEEP is an option of gearflow submit
            default="1d",
        ),
    ] = None,
    keep_dead: Annotated[
        float | None, how("--keep-dead", "How long to keep dead letters.", "DURATION", default="30d")
    ] = None,
    keep_bytes: Annotated[
        int | None,
        how("--keep-bytes", "How much to keep of ended jobs.", "SIZE", default="none, 64M in memory"),
    ] = None,
    max_deaths: Annotated[
        int | None,
        how("--max-deaths", "Give a job up after this many workers died. 0: never.", "N", default="3"),
    ] = None,
    tls_cert: Annotated[
        Path | None, _server_tls("--tls-cert", "Use TLS only, with this certificate and its chain (PEM).")
    ] = None,
    tls_key: Annotated[
        Path | None, _server_tls("--tls-key", "Its key, unencrypted, if it is in another file.")
    ] = None,
    tls_ca: Annotated[
        Path | None, _server_tls("--tls-ca", "Require a certificate that one of these authorities signed.")
    ] = None,
    token_file: Annotated[
        Path | None, tls("--token-file", "Require a token of this file. Or set GEARFLOW_TOKEN.", "FILE")
    ] = None,
    max_connections: Annotated[
        int | None, limit("--max-connections", "Connections at a time.", "N", default="as open files allow")
    ] = None,
    max_body: Annotated[
        int | None, limit("--max-body", "A packet's body, below 4G.", "SIZE", default="1G")
    ] = None,
    max_queued_bytes: Annotated[
        int | None, limit("--max-queued-bytes", "The payloads of all jobs together.", "SIZE", default="none")
    ] = None,
    max_pending_bytes: Annotated[
        int | None,
        limit(
            "--max-pending-bytes", "Data for a slow reader, before its senders wait.", "SIZE", default="64M"
        ),
    ] = None,
    max_stall: Annotated[
        float | None,
        limit("--max-stall", "The wait for a slow reader, before it is closed.", "DURATION", default="30s"),
    ] = None,
    max_packet_time: Annotated[
        float | None,
        limit("--max-packet-time", "The wait for a packet, plus 1 s per MiB.", "DURATION", default="60s"),
    ] = None,
    max_function: Annotated[
        int | None, limit("--max-function", "A function's name.", "SIZE", default="8K")
    ] = None,
    max_unique: Annotated[int | None, limit("--max-unique", "A job's unique.", "SIZE", default="64")] = None,
    max_line: Annotated[int | None, limit("--max-line", "A text command.", "SIZE", default="8K")] = None,
    metrics: Annotated[Any, options.metrics("GEARFLOW_SERVER_METRICS")] = None,
    log_level: options.Level = LogLevel.WARNING,
    log_json: options.LogJson = False,
) -> None:
    """Run a job server until TERM or INT. The next one runs the background jobs that are left.

    Examples:
      gearflow server -L 0.0.0.0 --data /var/lib/gearflow --token-file token
      gearflow server --postgres "host=pg1,pg2 dbname=gearflow"
    """
    if context.invoked_subcommand is not None:
        return
    import asyncio

    from pydantic import ValidationError

    from gearflow.runtime.eventloop import new_event_loop
    from gearflow.server import JobServer, ServerSettings

    folder = None if postgres is not None else _folder(context, data, port, memory=memory)
    if postgres is not None:
        _check_postgres(context)
    elif migrate_only:
        raise CliError(ExitCode.USAGE, "--migrate-only is for --postgres, and it is missing")
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
        **_tokens(token_file),
        "postgres": postgres,
        "postgres_schema": schema,
        "lease": lease,
        "advertise": advertise,
        "store_timeout": store_timeout,
        "sync": sync.value if sync is not None else None,
    }
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    if max_deaths is not None:
        given["max_deaths"] = max_deaths or None
    try:
        settings = ServerSettings.model_validate({"host": listen, "port": port, "data": folder, **given})
    except ValidationError as error:
        fault = error.errors()[0]
        where = f"--{fault['loc'][0]}: " if fault["loc"] else ""
        what = fault["msg"].removeprefix("Value error, ")
        raise CliError(ExitCode.USAGE, f"{where}{what}".replace("_", "-")) from None
    logs.to_stderr(log_level.value, json=log_json)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the event loop has it; --recover may take minutes
    raise_file_limit()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        if migrate_only:
            runner.run(_migrate(settings))
            return
        job_server = JobServer(settings)
        with server_port(metrics, job_server, runner.get_loop()) as now:
            if recover and folder is not None:
                now("recovering a damaged file")
                recover_folder(folder)
                now("starting")
            runner.run(_serve(settings, job_server, now))


def _folder(context: typer.Context, data: Path | None, port: int, *, memory: bool) -> Path | None:
    """The folder for jobs, or None for memory. The command line takes precedence over the environment.

    Raises:
        CliError: The options contradict each other.
    """
    if not memory:
        return folder(data, port)
    said = context.get_parameter_source("memory")
    for name in ("data", "sync", "recover"):
        source = context.get_parameter_source(name)
        if source is not None and source == said:
            raise CliError(
                ExitCode.USAGE,
                f"--{name} is about jobs in a file, and --memory has none: leave out one of them",
            )
        if source is not None and source.name == "COMMANDLINE":
            return folder(data, port)
    return None


def _check_postgres(context: typer.Context) -> None:
    """Refuse options about a file or memory. Raises CliError."""
    for name in ("data", "memory", "recover", "keep_bytes"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = name.replace("_", "-")
            raise CliError(
                ExitCode.USAGE,
                f"--{option} is for a file or memory, and --postgres keeps jobs in a database: "
                "leave out one of them",
            )


async def _migrate(settings: "ServerSettings") -> None:
    """Bring the schema of the database up to date. Raises StoreError."""
    from gearflow.server.shared.persistence import open_shared_store

    store = open_shared_store(settings, settings.port)
    try:
        tell(await store.migrate())
    finally:
        await store.close()


def _tokens(file: Path | None) -> dict[str, str | Path]:
    """The setting for the tokens that the server accepts, if it requires one.

    Raises:
        CliError: They cannot be used.
    """
    from gearflow.security.tokens import FILE_VARIABLE, VARIABLE, checked_token, read_tokens

    options.prefer(file)
    try:
        if token := os.environ.get(VARIABLE):
            return {"token": checked_token(token, f"the token in the environment variable {VARIABLE}")}
        if found := os.environ.get(FILE_VARIABLE):
            read_tokens(found)
            return {"token_file": Path(found)}
    except ValueError as error:
        raise CliError(ExitCode.MISCONFIGURED, str(error)) from None
    return {}


async def _serve(settings: "ServerSettings", job_server: "JobServer", now: Callable[[str], None]) -> None:
    """Serve until a signal comes. This cuts off running jobs. The next server runs background jobs again.

    Args:
        now: Called with what the process does when the server does not serve.

    Raises:
        CliError: It cannot listen, or a TLS file cannot be used.
        StoreError: The file of jobs cannot be used.
    """
    import asyncio

    from gearflow.security.tls import BadCertificate
    from gearflow.security.tokens import BadTokens
    from gearflow.server import server_version, tune_garbage_collection

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, job_server)
    try:
        await job_server.__aenter__()
    except OSError as error:
        refuse(settings.host, settings.port, error)
    except (BadCertificate, BadTokens) as error:
        raise CliError(ExitCode.MISCONFIGURED, str(error)) from None
    now("stopping")
    tune_garbage_collection()
    where = f"{job_server.address}{_guards(settings)}"
    tell(f"{server_version()} listens on {where}; {_life(settings, job_server.restored)}")
    if (risk := _risk(settings)) is not None:
        tell(f"warning: {risk}", logging.WARNING)
    try:
        await stop.wait()
    finally:
        await job_server.__aexit__()


def _reload(job_server: "JobServer") -> None:
    """Read files again, at HUP. Log rotation sends it, and so does a terminal that closes."""
    settings = job_server.settings
    if settings.tls_cert is None and settings.token_file is None:
        tell("HUP has no effect: there are no TLS files and no file of tokens to read again")
    job_server.reload_tls()
    job_server.reload_tokens()


def _guards(settings: "ServerSettings") -> str:
    """The requirements for clients."""
    guards = [
        *(["TLS"] if settings.tls_cert is not None else []),
        *(["a certificate"] if settings.tls_ca is not None else []),
        *(["the token"] if _wants_token(settings) else []),
    ]
    return f" and wants {', '.join(guards)}" if guards else ""


def _wants_token(settings: "ServerSettings") -> bool:
    return settings.token is not None or settings.token_file is not None


def _risk(settings: "ServerSettings") -> str | None:
    """Return what others on the network can do to a server; None if it listens on this machine only."""
    if _is_local(settings.host):
        return None
    if not _wants_token(settings) and settings.tls_ca is None:
        return (
            "anyone who reaches this port can submit and cancel jobs, read their data, and run jobs. "
            "Require a token with --token-file or certificates with --tls-ca, or listen on 127.0.0.1"
        )
    if settings.tls_cert is None:
        return "the token and all payloads travel unencrypted; add --tls-cert"
    return None


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def _life(settings: "ServerSettings", restored: int) -> str:
    """Where the jobs are, and how many the server has found."""
    from gearflow.server.settings import FILE_NAME

    if settings.postgres is not None:
        return f"jobs live in PostgreSQL, schema {settings.postgres_schema}; sync: {settings.effective_sync}"
    if settings.data is None:
        return "jobs live in memory only and are lost when it ends"
    found = counted(restored, "job")
    return f"jobs live in {settings.data / FILE_NAME}, where {found} waited; sync: {settings.sync}"


def refuse(host: str, port: int, error: OSError) -> NoReturn:
    """Report why a server cannot listen.

    Raises:
        CliError: Always.
    """
    remedy = _REMEDIES.get(
        error.errno or 0, f"{error.strerror or error}; choose another address with -L or -p"
    )
    raise CliError(ExitCode.MISCONFIGURED, f"cannot listen on port {port} of {host}: {remedy}") from error
