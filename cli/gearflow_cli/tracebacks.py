"""Tracebacks with the lines of the user's own code, without those of gearflow and of Python."""

import json
import sysconfig
import textwrap
import traceback
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeAlias, cast

if TYPE_CHECKING:
    from gearflow.tasks.remote_errors import Relayed

Group: TypeAlias = BaseExceptionGroup[BaseException]

_FRAMES: Final = 5
"""The number of frames to show. They are the last ones, next to the fault."""

_CHARACTERS: Final = 16384
"""The number of characters to show of what an exception says."""

_MEMBERS: Final = 15
"""The number of members of a group to show, as Python itself does."""

_LEVELS: Final = 10
"""The number of levels of groups in groups to show, as Python itself does."""

_HEADER: Final = "Traceback (most recent call last):\n"


def own_lines(error: BaseException, trace: TracebackType | None = None) -> str:
    """Format an exception with the frames of the user's own code.

    If there are none, it has the frames of libraries. It has the first members of a group. For an exception
    from the process of a task, it is the traceback of that process.
    """
    from gearflow.tasks.remote_errors import summary_of

    return _own_lines(error, summary_of(error, trace or error.__traceback__))


def _own_lines(error: BaseException, summary: traceback.TracebackException, depth: int = 0) -> str:
    from gearflow.tasks.remote_errors import relayed

    if (there := relayed(error)) is not None:
        return _text_of(there)
    frames = [frame for frame in summary.stack if not _is_machinery(frame.filename)]
    own = [frame for frame in frames if not _is_library(frame.filename)] or frames
    said = "".join(summary.format_exception_only()).rstrip()
    if len(said) > _CHARACTERS:
        said = f"{said[:_CHARACTERS]}... ({len(said):,} characters)"
    text = "".join([*traceback.format_list(own[-_FRAMES:]), said])
    if not isinstance(error, BaseExceptionGroup):
        return text
    members = list(zip(cast(Group, error).exceptions, summary.exceptions or (), strict=False))
    shown = members[:_MEMBERS] if depth < _LEVELS else []
    lines = [_own_lines(*member, depth + 1) for member in shown]
    if more := len(members) - len(shown):
        lines.append(f"... and {more:,} more")
    return "\n".join([text, *(textwrap.indent(line, "  ") for line in lines)])


def is_own(filename: str) -> bool:
    """Whether a file is the user's, and not gearflow's, Python's or a library's."""
    return not _is_machinery(filename) and not _is_library(filename)


def _text_of(there: "Relayed") -> str:
    """The traceback from another process. It starts with the frames of the user's own code."""
    return str(json.loads(there.data)["traceback"]).removeprefix(_HEADER).rstrip()


@lru_cache(maxsize=1024)
def _is_machinery(filename: str) -> bool:
    import gearflow

    ours = [str(Path(__file__).parent), *map(str, gearflow.__path__)]
    standard = sysconfig.get_path("stdlib")
    return filename.startswith(("<frozen", *ours)) or (
        filename.startswith(standard) and not _is_library(filename)
    )


def _is_library(filename: str) -> bool:
    return filename.endswith(".pyx") or "site-packages" in filename or "dist-packages" in filename
