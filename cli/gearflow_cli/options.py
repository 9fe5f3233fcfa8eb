"""Options that several commands share, and how their values are read."""

import math
import re
from enum import Enum
from typing import Annotated, Final, TypeAlias

import typer

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])", re.ASCII)
_BYTES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SIZE: Final = re.compile(r"(\d+)([kmg]?)", re.ASCII | re.IGNORECASE)


def duration(text: str) -> float:
    """Seconds in ``30s``, ``5m``, ``1h30m``, ``2d`` or a plain number."""
    if re.fullmatch(rf"(?:{_DURATION.pattern})+", text, re.ASCII):
        return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(text))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise typer.BadParameter(f"{text!r} is no duration; write 30s, 5m, 1h30m or 2d")
    return seconds


def size(text: str) -> int:
    """Bytes in ``512``, ``64K``, ``512M`` or ``1G``."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no size; write 65536, 64K, 512M or 1G")
    return int(found[1]) * _BYTES[found[2].lower()]


def _addresses(values: list[str] | None) -> list[str]:
    from gearflow.client import parse_servers

    if not values:
        return []
    try:
        return [str(address) for address in parse_servers(",".join(values))]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _split(values: list[str] | None) -> list[str]:
    """Names may also be separated by commas, as is usual in environment variables."""
    return [name for value in values or () for name in value.split(",") if name]


class LogLevel(str, Enum):  # noqa: UP042  (typer shows a StrEnum's choices by another rule before 0.16)
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
        help="A job server; may be repeated.  [default: 127.0.0.1:4730]",
    ),
]

Modules: TypeAlias = Annotated[
    list[str],
    typer.Argument(
        metavar="MODULE",
        envvar="GEARFLOW_TASKS",
        callback=_split,
        help="Modules that define tasks, such as myapp.tasks; found in the current directory, too.",
    ),
]

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

Port: TypeAlias = Annotated[
    int,
    typer.Option(
        "--port", "-p", min=0, max=65535, envvar="GEARFLOW_PORT", help="The TCP port; 0 takes a free one."
    ),
]
