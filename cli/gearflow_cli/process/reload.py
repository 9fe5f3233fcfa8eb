"""Watching the files of the user's code for changes. This needs the extra ``reload``."""

import importlib
import importlib.util
import logging
import sys
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from gearflow_cli.errors import CliError, ExitCode, tell

_PATIENCE: Final = 300
"""Milliseconds between two checks of the watching thread whether it must end."""

REMEDY: Final = "install gearflow with its extra, as by pip install '.[reload]' in its checkout"
"""How to install the extra."""


def is_possible() -> bool:
    """Whether the extra is installed."""
    try:
        importlib.import_module("watchfiles")
    except ImportError:
        return False
    return True


def changes(modules: Sequence[str]) -> AsyncIterable[object]:
    """Yield when a Python file changes in the current directory, or beside one of the modules.

    Changes at about the same time are one change.

    Raises:
        CliError: The extra is not installed.
    """
    if not is_possible():
        raise CliError(ExitCode.MISCONFIGURED, f"--reload needs watchfiles: {REMEDY}")
    return _changes(directories(modules))


async def _changes(watched: Sequence[Path]) -> AsyncIterator[object]:
    from watchfiles import PythonFilter, awatch

    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # the supervisor logs the effect of a change
    try:
        async for changes in awatch(*watched, watch_filter=PythonFilter(), rust_timeout=_PATIENCE):
            for _, path in changes:
                _forget_bytecode(path)
            yield changes
    except OSError as error:  # such as a limit of the system
        tell(f"files are not watched for changes: {error}; send HUP to load new code")


def _forget_bytecode(path: str) -> None:
    """Make Python compile a file again.

    Python compares the size of the file and the second of its change. A quick change keeps both.
    """
    with suppress(OSError, NotImplementedError):  # there is no bytecode
        Path(importlib.util.cache_from_source(path)).unlink()


def directories(modules: Sequence[str]) -> list[Path]:
    """The directories of modules, as far as they are known without an import."""
    here = Path.cwd()
    sys.path.insert(0, str(here))
    try:
        found = [here, *(path for module in modules for path in _homes(module.partition(".")[0]))]
    finally:
        sys.path.remove(str(here))
    # Watching a directory includes everything below it.
    return [path for path in dict.fromkeys(found) if not any(other in path.parents for other in found)]


def _homes(package: str) -> list[Path]:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(location).resolve() for location in spec.submodule_search_locations]
    return [Path(spec.origin).resolve().parent] if spec.has_location and spec.origin else []
