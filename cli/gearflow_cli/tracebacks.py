"""Tracebacks with the lines of the user's own code, without those of gearflow and of Python."""

import json
import sysconfig
import textwrap
import traceback
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeAlias, cast

if TYPE_CHECKING:
    from gearflow.tasks.remote_errors import Relayed

Group: TypeAlias = BaseExceptionGroup[BaseException]

_FRAMES: Final = 5
"""The number of frames to show. They are the last ones, next to the fault."""

_HEADER: Final = "Traceback (most recent call last):\n"


def own_lines(error: BaseException, trace: TracebackType | None = None) -> str:
    """Format an exception with the frames of the user's own code.

    If there are none, it has the frames of libraries. It has every exception of a group. For an exception
    from the process of a task, it is the traceback of that process.
    """
    from gearflow.tasks.remote_errors import relayed

    if (there := relayed(error)) is not None:
        return _text_of(there)
    summary = traceback.TracebackException(type(error), error, trace or error.__traceback__, compact=True)
    frames = [frame for frame in summary.stack if not _is_machinery(frame.filename)]
    own = [frame for frame in frames if not _is_library(frame.filename)] or frames
    text = "".join([*traceback.format_list(own[-_FRAMES:]), *summary.format_exception_only()]).rstrip()
    members = cast(Group, error).exceptions if isinstance(error, BaseExceptionGroup) else ()
    return "\n".join([text, *(textwrap.indent(own_lines(member), "  ") for member in members)])


def is_own(filename: str) -> bool:
    """Whether a file is the user's, and not gearflow's, Python's or a library's."""
    return not _is_machinery(filename) and not _is_library(filename)


def _text_of(there: "Relayed") -> str:
    """The traceback from another process. It starts with the frames of the user's own code."""
    return str(json.loads(there.data)["traceback"]).removeprefix(_HEADER).rstrip()


def _is_machinery(filename: str) -> bool:
    import gearflow

    ours = [str(Path(__file__).parent), *map(str, gearflow.__path__)]
    standard = sysconfig.get_path("stdlib")
    return filename.startswith(("<frozen", *ours)) or (
        filename.startswith(standard) and not _is_library(filename)
    )


def _is_library(filename: str) -> bool:
    return filename.endswith(".pyx") or "site-packages" in filename or "dist-packages" in filename
