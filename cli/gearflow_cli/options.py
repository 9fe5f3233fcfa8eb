"""Options that several commands share, and how their values are read.

The options of TLS and the token, which all commands share that talk to servers.

Each says the same as an environment variable, and so sets it. Whatever the command starts finds it there:
clients, workers, and their processes.
"""

import inspect
import math
import os
import re
from collections.abc import Callable
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import typer

from gearflow_cli.errors import ExitCode, Failure

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])", re.ASCII)
_BYTES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SIZE: Final = re.compile(r"(\d+)([kmg]?)", re.ASCII | re.IGNORECASE)
_LONGEST: Final = 1e10  # seconds, some 300 years; a server takes no more
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_LAST: Final = 1e11  # Unix time, in the year 5138; a server takes none later


def duration(text: str) -> float:
    """Seconds in ``30s``, ``5m``, ``1h30m``, ``2d`` or a plain number."""
    if re.fullmatch(rf"(?:{_DURATION.pattern})+", text, re.ASCII):
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))
    else:
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
    if not 0 <= seconds <= _LONGEST:
        raise typer.BadParameter(f"{text!r} is no duration; write 30s, 5m, 1h30m or 2d")
    return seconds


def size(text: str) -> int:
    """Bytes in ``512``, ``64K``, ``512M`` or ``1G``."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no size; write 65536, 64K, 512M or 1G")
    return int(found[1]) * _BYTES[found[2].lower()]


def memory(text: str) -> int:
    """The same for a limit that can be kept."""
    found = size(text)
    if not found:
        raise typer.BadParameter("0 bytes are too few; leave the option out for no limit")
    return found


def moment(text: str) -> datetime:
    """A time such as ``2030-12-24T18:00`` (local), or ``2030-12-24T17:00Z``: ISO 8601.

    One that is long past means now, as any other that is past: it is not before 1970.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time; write 2030-12-24T18:00, and Z or +01:00 behind it if it is not local"
        ) from None
    if found.tzinfo is None:
        # At the ends of the calendar Python may find no local time. There the zone does not matter.
        found = found.astimezone() if MINYEAR < found.year < MAXYEAR else found.replace(tzinfo=UTC)
    if found.timestamp() > _LAST:
        raise typer.BadParameter(f"{text!r} is too late; a server takes times up to the year 5138")
    return max(found, _EPOCH)


def _addresses(values: list[str] | None) -> list[str]:
    from gearflow.client import parse_servers

    if not values:
        return []
    try:
        return [str(address) for address in parse_servers(",".join(values))]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _name(value: str | None) -> str | None:
    """The name of a job or a function; it is told in JSON, which has no place for other bytes."""
    if value is None:
        return None
    if not value:
        raise typer.BadParameter("it is empty")
    if not is_utf8(value):
        raise typer.BadParameter(f"{value!r} is not UTF-8")
    return value


def _key(value: str | None) -> str | None:
    """The key of a job."""
    if value == "":
        raise typer.BadParameter("it is empty")
    return value


def is_utf8(text: str) -> bool:
    """Whether an argument was text: Python has other bytes of a command line as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split(values: list[str] | None) -> list[str]:
    """Names may also be separated by commas, as is usual in environment variables."""
    return [name for value in values or () for name in value.split(",") if name]


def _some(values: list[str] | None) -> list[str]:
    """The same where there has to be one."""
    names = _split(values)
    if not names:
        raise typer.BadParameter("there is no name in it; give one such as myapp.tasks")
    return names


class LogLevel(StrEnum):
    """From which level on log lines are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


Servers: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--server",
        "-s",
        metavar="HOST[:PORT]",
        envvar="GEARMAN_SERVERS",
        callback=_addresses,
        show_default="127.0.0.1:4730",
        help="A job server; may be repeated.",
    ),
]


def _modules(callback: Callable[[list[str] | None], list[str]]) -> Any:
    return typer.Argument(
        metavar="MODULE",
        envvar="GEARFLOW_TASKS",
        callback=callback,
        help="Modules that define tasks, such as myapp.tasks; found in the current directory, too.",
    )


Modules: TypeAlias = Annotated[list[str], _modules(_some)]

WorkerModules: TypeAlias = Annotated[list[str] | None, _modules(_split)]

TaskModules: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--module",
        "-m",
        metavar="MODULE",
        envvar="GEARFLOW_TASKS",
        callback=_split,
        help="A module that defines the task: arguments are then read and checked by its types.",
    ),
]

Json: TypeAlias = Annotated[bool, typer.Option("--json", envvar="GEARFLOW_JSON", help="Print JSON.")]

Concurrency: TypeAlias = Annotated[
    int,
    typer.Option(
        "--concurrency", "-c", min=1, envvar="GEARFLOW_CONCURRENCY", help="How many jobs run at once."
    ),
]

Functions: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--function",
        "-f",
        metavar="PATTERN",
        envvar="GEARFLOW_FUNCTION",
        callback=_split,
        help="Serve only tasks whose full or bare name fits, such as 'thumb*'; may be repeated.",
    ),
]

Level: TypeAlias = Annotated[
    LogLevel, typer.Option("--log-level", envvar="GEARFLOW_LOG_LEVEL", help="What to log, on stderr.")
]

LogJson: TypeAlias = Annotated[
    bool, typer.Option("--log-json", envvar="GEARFLOW_LOG_JSON", help="Log JSON, an object a line.")
]

Timeout: TypeAlias = Annotated[
    float | None,
    typer.Option(
        metavar="DURATION",
        parser=duration,
        envvar="GEARFLOW_TIMEOUT",
        help="Wait no longer than that for the result, such as 30s.",
    ),
]

Verbose: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", envvar="GEARFLOW_VERBOSE", help="Show the worker's traceback if the task fails."
    ),
]

Data: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        envvar="GEARFLOW_DATA",
        show_default="~/.local/share/gearflow/PORT",
        help="The folder of the file in which jobs and results are kept.",
    ),
]

Port: TypeAlias = Annotated[
    int,
    typer.Option(
        "--port", "-p", min=0, max=65535, envvar="GEARFLOW_PORT", help="The TCP port; 0 takes a free one."
    ),
]

# None of those that follow has an envvar. An environment in which they are set would have commands be about
# other jobs than their users think, or agree to a loss that nobody sees coming.

JobName: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="HANDLE", callback=_name, help="The job's handle; with --unique, its function's name."
    ),
]

JobUnique: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--unique",
        metavar="KEY",
        callback=_key,
        help="The last job with this key, of the function that stands in HANDLE's place.",
    ),
]

Function: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="FUNCTION",
        callback=_name,
        help="The function's full name, or the end of it behind a dot.",
    ),
]

Handle: TypeAlias = Annotated[
    str, typer.Argument(metavar="HANDLE", callback=_name, help="The dead letter's handle.")
]

OneHandle: TypeAlias = Annotated[
    str | None, typer.Argument(metavar="[HANDLE]", callback=_name, help="The dead letter's handle.")
]

OfFunction: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--function",
        "-f",
        metavar="FUNCTION",
        callback=_name,
        help="Those of this function, by its full name or the end of it behind a dot.",
    ),
]

All: TypeAlias = Annotated[bool, typer.Option("--all", help="All of them.")]

Yes: TypeAlias = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")]


_PANEL: Final = "TLS and token"


def _file(name: str, what: str) -> Any:
    return typer.Option(
        f"--{name}",
        metavar="FILE",
        envvar=f"GEARFLOW_{name.upper().replace('-', '_')}",
        help=what,
        rich_help_panel=_PANEL,
    )


def _options(
    *,
    tls: Annotated[
        bool | None,
        typer.Option(
            "--tls/--no-tls",
            envvar="GEARFLOW_TLS",
            show_default="no, unless another option of TLS is given",
            help="Speak TLS with servers.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    tls_ca: Annotated[
        Path | None, _file("tls-ca", "Trust the authorities in it, in place of those that the system trusts.")
    ] = None,
    tls_cert: Annotated[
        Path | None, _file("tls-cert", "Our own certificate, for servers that want one.")
    ] = None,
    tls_key: Annotated[Path | None, _file("tls-key", "Its key, if it is not in the same file.")] = None,
    tls_server_name: Annotated[
        str | None,
        typer.Option(
            "--tls-server-name",
            metavar="NAME",
            envvar="GEARFLOW_TLS_SERVER_NAME",
            help="The name in the servers' certificates, if it is not their host's.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        _file(
            "token-file", "The token to tell servers that want one; in GEARFLOW_TOKEN it may stand itself."
        ),
    ] = None,
) -> None:
    """Set the environment by them, and look whether all can be used.

    Raises:
        Failure: It cannot.
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
        check()


def prefer(token_file: Path | None) -> None:
    """Have the token be that in a file, if the command line names one."""
    if token_file is not None and str(token_file) != os.environ.get("GEARFLOW_TOKEN_FILE"):
        os.environ.pop("GEARFLOW_TOKEN", None)
        os.environ["GEARFLOW_TOKEN_FILE"] = str(token_file)


def check() -> None:
    """Look whether what the environment says of TLS and the token can be used.

    Raises:
        Failure: It cannot.
    """
    from gearflow.client import Security

    try:
        Security.of()
    except ValueError as error:
        raise Failure(ExitCode.MISCONFIGURED, str(error)) from None


def secured(command: Callable[..., None]) -> Callable[..., None]:
    """The command with these options behind its own."""
    own, shared = (inspect.signature(function, eval_str=True) for function in (command, _options))

    @wraps(command)
    def secured_command(*args: Any, **kwargs: Any) -> None:
        _options(**{name: kwargs.pop(name) for name in shared.parameters})
        command(*args, **kwargs)

    parameters = [*own.parameters.values(), *shared.parameters.values()]
    vars(secured_command)["__signature__"] = own.replace(parameters=parameters)
    secured_command.__annotations__ = command.__annotations__ | _options.__annotations__
    return secured_command
