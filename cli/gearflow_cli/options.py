"""The options that commands share, and how the values of all options are read.

``secured`` adds the options for TLS and the token to a command. They set environment variables, where the
clients, the workers and their processes find them.
"""

import errno
import inspect
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from enum import StrEnum
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from gearflow_cli.errors import CliError, ExitCode
from gearflow_cli.help import Panel, variable

if TYPE_CHECKING:
    from gearflow.client import Priority

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])", re.ASCII)
_BYTES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SIZE: Final = re.compile(r"(\d+)([kmg]?)", re.ASCII | re.IGNORECASE)
_LONGEST: Final = 1e10  # seconds, about 300 years. A server accepts no longer duration
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_LAST: Final = 1e11  # Unix time, in the year 5138. A server accepts no later time


def duration(text: str) -> float:
    """Read seconds from ``30s``, ``5m``, ``1h30m``, ``2d`` or a plain number."""
    if re.fullmatch(rf"(?:{_DURATION.pattern})+", text, re.ASCII):
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))
    else:
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
    if not 0 <= seconds <= _LONGEST:
        raise typer.BadParameter(f"{text!r} is no duration. Write 30s, 5m, 1h30m or 2d")
    return seconds


def size(text: str) -> int:
    """Read bytes from ``512``, ``64K``, ``512M`` or ``1G``."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no size. Write 65536, 64K, 512M or 1G")
    return int(found[1]) * _BYTES[found[2].lower()]


def memory(text: str) -> int:
    """Read a size that can be a limit."""
    found = size(text)
    if not found:
        raise typer.BadParameter("a limit of 0 bytes is too low. Leave the option out for its default")
    return found


def moment(text: str) -> datetime:
    """Read a time in ISO 8601: ``2030-12-24T18:00`` (local) or ``2030-12-24T17:00Z``.

    A time before 1970 becomes 1970. Every past time means now.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time. Write 2030-12-24T18:00, with Z or +01:00 at its end if it is not local"
        ) from None
    if found.tzinfo is None:
        # At the ends of the calendar Python may find no local time. There the zone does not matter.
        found = found.astimezone() if MINYEAR < found.year < MAXYEAR else found.replace(tzinfo=UTC)
    if found.timestamp() > _LAST:
        raise typer.BadParameter(f"{text!r} is too late. A server takes times up to the year 5138")
    return max(found, _EPOCH)


def _addresses(values: list[str] | None) -> list[str]:
    from gearflow.client import parse_servers

    if not values:
        return []
    try:
        return [str(address) for address in parse_servers(",".join(values))]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def name(value: str | None) -> str | None:
    """Check the name of a job or a function. Requests have it in JSON, which needs UTF-8."""
    if value is None:
        return None
    if not value:
        raise typer.BadParameter("it is empty")
    if not is_utf8(value):
        raise typer.BadParameter(f"{value!r} is not UTF-8")
    return value


def _key(value: str | None) -> str | None:
    """Check the key of a job."""
    if value == "":
        raise typer.BadParameter("it is empty")
    return value


def is_utf8(text: str) -> bool:
    """Whether an argument is text. Python shows other bytes of a command line as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split(values: list[str] | None) -> list[str]:
    """Names may also be separated by commas, as is usual in environment variables."""
    return [name for value in values or () for name in value.split(",") if name]


def _some(values: list[str] | None) -> list[str]:
    """Split names, of which there must be at least one."""
    names = _split(values)
    if not names:
        raise typer.BadParameter("there is no name in it. Give one such as myapp.tasks")
    return names


def priority(text: str) -> "Priority":
    """One of gearflow's priorities."""
    from gearflow.client import Priority

    try:
        return Priority(text)
    except ValueError:
        known = ", ".join(repr(priority.value) for priority in Priority)
        raise typer.BadParameter(f"{text!r} is not one of {known}.") from None


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """Where a port for HTTP listens."""

    host: str
    port: int


_HTTP_ADDRESS: Final = re.compile(r"(?:\[([^\]\s]+)\]|([^:\s/\[\],]+)):(\d{1,5})", re.ASCII)


def http_address(text: str) -> HttpAddress:
    """Read ``127.0.0.1:9730`` or ``[::1]:9730``."""
    found = _HTTP_ADDRESS.fullmatch(text)
    if found is None or int(found[3]) > 65535:
        raise typer.BadParameter(f"{text!r} is no address to listen on. Write 127.0.0.1:9730 or [::1]:9730")
    return HttpAddress(found[1] or found[2], int(found[3]))


_NO_LISTENING: Final = {
    errno.EADDRINUSE: "it is taken",
    errno.EACCES: "ports below 1024 are for root",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


def cannot_listen(address: HttpAddress, names: str, error: OSError) -> CliError:
    """Say why a port for HTTP cannot be opened, and by which option another one is chosen."""
    said = (error.strerror or str(error)).partition(" (while ")[0]  # asyncio and socket repeat the address
    reason = _NO_LISTENING.get(error.errno or 0, said)
    return CliError(
        ExitCode.MISCONFIGURED,
        f"cannot listen on port {address.port} of {address.host}: {reason}; choose another with {names}",
    )


PRIORITIES: Final = "high|normal|low"

_PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    "DURATION": duration,
    "TIME": moment,
    "SIZE": size,
    PRIORITIES: priority,
}


def is_given_here(context: typer.Context, parameter: str) -> bool:
    """Whether an option is on the command line, and not only in the environment."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def option(
    panel: Panel,
    names: str,
    text: str,
    metavar: str | None = None,
    *,
    env: str | None = "",
    default: str | bool = True,
    parser: Callable[[str], Any] | None = None,
    **limits: Any,
) -> Any:
    """Declare an option. Its metavar says how its value is read.

    Args:
        names: Such as ``"--port -p"``.
        env: The environment variable, if it is not ``GEARFLOW_`` and the name. None means no variable.
        default: The default to show, if it is not the parameter's.
    """
    long, *_ = names.split()
    return typer.Option(
        *names.split(),
        metavar=metavar,
        parser=parser or _PARSERS.get(metavar or ""),
        envvar=variable(long.partition("/")[0]) if env == "" else env,
        show_default=default,
        help=text,
        rich_help_panel=panel,
        **limits,
    )


what: Final = partial(option, Panel.WHAT)
jobs: Final = partial(option, Panel.JOBS)
how: Final = partial(option, Panel.HOW)
where: Final = partial(option, Panel.WHERE)
group: Final = partial(option, Panel.GROUP)
limit: Final = partial(option, Panel.LIMITS)
out: Final = partial(option, Panel.OUTPUT)
tls: Final = partial(option, Panel.TLS)


def argument(panel: Panel, metavar: str, text: str, **more: Any) -> Any:
    """Declare an argument."""
    return typer.Argument(metavar=metavar, help=text, rich_help_panel=panel, **more)


class LogLevel(StrEnum):
    """The lowest level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


Servers: TypeAlias = Annotated[
    list[str] | None,
    where(
        "--server -s",
        "A job server. May be repeated.",
        "HOST[:PORT]",
        env="GEARMAN_SERVERS",
        default="127.0.0.1:4730",
        callback=_addresses,
    ),
]


def _modules(callback: Callable[[list[str] | None], list[str]]) -> Any:
    text = "Modules that define tasks, such as myapp.tasks."
    return argument(Panel.WHAT, "MODULE", text, envvar="GEARFLOW_TASKS", callback=callback)


Modules: TypeAlias = Annotated[list[str], _modules(_some)]

WorkerModules: TypeAlias = Annotated[list[str] | None, _modules(_split)]

TaskModules: TypeAlias = Annotated[
    list[str] | None,
    what(
        "--module -m",
        "A module that defines the task. Its types check the arguments.",
        "MODULE",
        env="GEARFLOW_TASKS",
        callback=_split,
    ),
]

Json: TypeAlias = Annotated[bool, out("--json", "Print JSON.")]

Wide: TypeAlias = Annotated[bool, out("--wide", "Show every column of a table, and cut nothing.")]

Concurrency: TypeAlias = Annotated[int, how("--concurrency -c", "How many jobs run at once.", "N", min=1)]

Functions: TypeAlias = Annotated[
    list[str] | None,
    what(
        "--function -f",
        "Serve only tasks of this name, such as 'thumb*'. May be repeated.",
        "PATTERN",
        callback=_split,
    ),
]

Level: TypeAlias = Annotated[
    LogLevel, out("--log-level", "What to log: debug, info, warning or error.", "LEVEL")
]

LogJson: TypeAlias = Annotated[bool, out("--log-json", "Log JSON, one object a line.")]

ScheduleName: TypeAlias = Annotated[
    str,
    argument(
        Panel.WHAT,
        "NAME",
        "A schedule. The last part of its name is enough if no other has it.",
        callback=name,
    ),
]

Timeout: TypeAlias = Annotated[float | None, how("--timeout", "The longest wait, such as 30s.", "DURATION")]

Raw: TypeAlias = Annotated[bool, what("--raw", "Send payloads as they are, without a check.")]

Background: TypeAlias = Annotated[
    bool, how("--bg -b", "Do not wait for results. Print the handle of each job.")
]

Delay: TypeAlias = Annotated[
    float | None,
    how("--delay", "Do not start before this time has passed. With --bg.", "DURATION", env=None),
]

Expires: TypeAlias = Annotated[
    float | None, how("--expires", "Give the job up if it has not started after this time.", "DURATION")
]

Priorities: TypeAlias = Annotated[
    Any,  # a Priority, whose module is imported only when it is needed
    how("--priority", "Among the waiting jobs of the function.", PRIORITIES),
]

Keep: TypeAlias = Annotated[
    float | None,
    how("--keep", "How long the server keeps the result, such as 7d. 0: not at all.", "DURATION"),
]

Retries: TypeAlias = Annotated[
    int | None, how("--retries", "How many more runs may follow if the task fails.", "N", min=0, max=1000)
]

RunLimit: TypeAlias = Annotated[
    float | None, how("--run-limit", "How long a run may take on the worker, such as 30s.", "DURATION")
]

Spread: TypeAlias = Annotated[
    bool | None,
    where("--spread", "Share the load between all servers, by key or in turn, and not only use the first."),
]

Verbose: TypeAlias = Annotated[bool, out("--verbose -v", "Show the worker's traceback if the task fails.")]

Data: TypeAlias = Annotated[
    Path | None, where("--data", "The folder for jobs.", "DIR", default="~/.local/share/gearflow/PORT")
]

Port: TypeAlias = Annotated[
    int, where("--port -p", "The TCP port. 0 takes a free one.", "PORT", min=0, max=65535)
]


def metrics(env: str | None = "") -> Any:
    """Declare the option ``--metrics``."""
    text = "Serve /metrics (Prometheus), /healthz and /readyz here."
    return where("--metrics", text, "HOST:PORT", env=env, parser=http_address)


# None of the following has a variable. In an environment that sets it, a command would select other jobs than
# you expect, or agree to a loss without a question.


def _one_job(text: str) -> Any:
    return argument(Panel.JOBS, "HANDLE", text, callback=name)


JobName: TypeAlias = Annotated[str, _one_job("The job's handle. With --unique, the function's name.")]

Handle: TypeAlias = Annotated[str, _one_job("The dead letter's handle.")]

OneHandle: TypeAlias = Annotated[str | None, _one_job("The dead letter's handle.")]

JobUnique: TypeAlias = Annotated[
    str | None,
    jobs(
        "--unique",
        "The last job with this key, of the function in HANDLE's place.",
        "KEY",
        env=None,
        callback=_key,
    ),
]

Function: TypeAlias = Annotated[
    str, argument(Panel.JOBS, "FUNCTION", "The function's full or bare name.", callback=name)
]

OfFunction: TypeAlias = Annotated[
    str | None,
    jobs(
        "--function -f",
        "The dead letters of this function, by its full or bare name.",
        "FUNCTION",
        env=None,
        callback=name,
    ),
]

All: TypeAlias = Annotated[bool, jobs("--all", "All dead letters.", env=None)]

Yes: TypeAlias = Annotated[bool, how("--yes -y", "Do not ask first.", env=None)]


def _security(
    *,
    tls: Annotated[
        bool | None, tls("--tls/--no-tls", "Use TLS.", default="if another TLS option is given")
    ] = None,
    tls_ca: Annotated[
        Path | None, tls("--tls-ca", "The authorities to trust, in place of the system's.", "FILE")
    ] = None,
    tls_cert: Annotated[
        Path | None, tls("--tls-cert", "Your own certificate, for servers that require one.", "FILE")
    ] = None,
    tls_key: Annotated[
        Path | None, tls("--tls-key", "Its key, if it is not in the same file.", "FILE")
    ] = None,
    tls_server_name: Annotated[
        str | None,
        tls("--tls-server-name", "The name in the servers' certificates, if not their host's.", "NAME"),
    ] = None,
    token_file: Annotated[
        Path | None,
        tls("--token-file", "The token, for servers that require one. Or set GEARFLOW_TOKEN.", "FILE"),
    ] = None,
) -> None:
    """Set the environment variables of these options, and check them.

    Raises:
        CliError: A value cannot be used.
    """
    prefer(token_file)
    given = {
        "GEARFLOW_TLS": None if tls is None else str(int(tls)),
        "GEARFLOW_TLS_CA": tls_ca,
        "GEARFLOW_TLS_CERT": tls_cert,
        "GEARFLOW_TLS_KEY": tls_key,
        "GEARFLOW_TLS_SERVER_NAME": tls_server_name,
    }
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    if any(name.startswith(("GEARFLOW_TLS", "GEARFLOW_TOKEN")) for name in os.environ):
        from gearflow.client import Security

        try:
            Security.of()
        except ValueError as error:
            raise CliError(ExitCode.MISCONFIGURED, str(error)) from None


def prefer(token_file: Path | None) -> None:
    """Use the token of a file, if the command line names one."""
    if token_file is not None and str(token_file) != os.environ.get("GEARFLOW_TOKEN_FILE"):
        os.environ.pop("GEARFLOW_TOKEN", None)
        os.environ["GEARFLOW_TOKEN_FILE"] = str(token_file)


def secured(command: Callable[..., None]) -> Callable[..., None]:
    """Add these options to a command, after its own."""
    own, shared = (inspect.signature(function, eval_str=True) for function in (command, _security))

    @wraps(command)
    def secured_command(*args: Any, **kwargs: Any) -> None:
        _security(**{name: kwargs.pop(name) for name in shared.parameters})
        command(*args, **kwargs)

    parameters = [*own.parameters.values(), *shared.parameters.values()]
    vars(secured_command)["__signature__"] = own.replace(parameters=parameters)
    secured_command.__annotations__ = command.__annotations__ | _security.__annotations__
    return secured_command
