"""Where a server's jobs live on this machine: the folder, its rescue, copies of it.

By default each port has a folder of its own, below the user's data directory, so that two servers do not
want the same file.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from gearflow_cli import console, options
from gearflow_cli.exits import ExitCode, Failure, tell
from gearflow_cli.functions import counted


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


def recover(folder: Path) -> None:
    """Save what can be read of a damaged file, and say what became of it. Raises StoreError."""
    from gearflow.server.settings import FILE_NAME
    from gearflow.stores.recover import recover

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
    from gearflow.stores.backup import backup

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
    console.write(f"copied to {file}: {counted(size, 'byte')}")


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
