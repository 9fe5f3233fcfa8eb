"""Tracebacks for the users of gearflow: their own lines, without the machinery between them."""

import sysconfig
import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

_FRAMES: Final = 5
"""The last ones, which are next to the fault."""


def own_lines(error: BaseException, trace: TracebackType | None = None) -> str:
    """An exception and the user's own frames on the way to it: none of gearflow's or the interpreter's.

    Those of libraries are shown only if there is nothing of the user's.
    """
    summary = traceback.TracebackException(type(error), error, trace or error.__traceback__, compact=True)
    frames = [frame for frame in summary.stack if not _is_machinery(frame.filename)]
    own = [frame for frame in frames if not _is_library(frame.filename)] or frames
    return "".join([*traceback.format_list(own[-_FRAMES:]), *summary.format_exception_only()]).rstrip()


def _is_machinery(filename: str) -> bool:
    import gearflow

    ours = [str(Path(__file__).parent), *map(str, gearflow.__path__)]
    standard = sysconfig.get_path("stdlib")
    return filename.startswith(("<frozen", *ours)) or (
        filename.startswith(standard) and not _is_library(filename)
    )


def _is_library(filename: str) -> bool:
    return "site-packages" in filename or "dist-packages" in filename
