"""Tracebacks for the users of gearflow: their own lines, without the machinery between them."""

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
"""The last ones, which are next to the fault."""

_HEADER: Final = "Traceback (most recent call last):\n"


def own_lines(error: BaseException, trace: TracebackType | None = None) -> str:
    """An exception and the user's own frames on the way to it: none of gearflow's or the interpreter's.

    Those of libraries are shown only if there is nothing of the user's. Of a group, each exception is shown.
    Of what was raised in a process of a task, it is what was said there.
    """
    from gearflow.tasks.remote_errors import relayed

    if (told := relayed(error)) is not None:
        return _told(told)
    summary = traceback.TracebackException(type(error), error, trace or error.__traceback__, compact=True)
    frames = [frame for frame in summary.stack if not _is_machinery(frame.filename)]
    own = [frame for frame in frames if not _is_library(frame.filename)] or frames
    text = "".join([*traceback.format_list(own[-_FRAMES:]), *summary.format_exception_only()]).rstrip()
    members = cast(Group, error).exceptions if isinstance(error, BaseExceptionGroup) else ()
    return "\n".join([text, *(textwrap.indent(own_lines(member), "  ") for member in members)])


def is_own(filename: str) -> bool:
    """A file is of the user's code: not of gearflow's, the interpreter's or a library's."""
    return not _is_machinery(filename) and not _is_library(filename)


def _told(there: "Relayed") -> str:
    """The traceback from another process, which begins with the user's own frames."""
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
