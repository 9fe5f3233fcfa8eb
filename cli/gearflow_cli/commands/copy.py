"""``gearflow server copy`` moves what a stopped server has kept: from its file to PostgreSQL, or back."""

import logging
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self

import typer

from gearflow_cli import output
from gearflow_cli.errors import CliError, ExitCode, tell
from gearflow_cli.options import how, where
from gearflow_cli.output import counted

if TYPE_CHECKING:
    from rich.progress import Progress as ProgressBar
    from rich.progress import TaskID

    from gearflow.stores.copying import CopyProgress
    from gearflow.stores.copying.entries import CopyGroup
    from gearflow.stores.postgres.settings import PostgresSettings

_TIMEOUT = 60.0
"""Seconds for one statement."""


def copy(
    context: typer.Context,
    source: Annotated[
        str, where("--from", "The file of a stopped server, or a database.", "FILE|CONNINFO", env=None)
    ],
    target: Annotated[
        str, where("--to", "A database, or a file that does not exist yet.", "FILE|CONNINFO", env=None)
    ],
    schema: Annotated[
        str | None,
        where("--schema", "The schema in it. Its servers are a group.", "NAME", default="gearflow"),
    ] = None,
    keep_source: Annotated[
        bool,
        how("--keep-source", "Let servers start with the source. Jobs that are in both run twice.", env=None),
    ] = False,
) -> None:
    """Copy the jobs and results of a stopped server from its file to PostgreSQL, or back.

    Its schedules, limits and policies go with them. Of those that the target has already, the target's stay.
    Old handles stay valid. No server starts with the source afterwards. If the command is cut off, run it
    again, and it goes on.

    Examples:
      gearflow server copy --from /var/lib/gearflow/gearflow.db --to "host=pg1 dbname=gearflow"
      gearflow server copy --from "host=pg1 dbname=gearflow" --to /var/lib/gearflow/gearflow.db
    """
    import asyncio

    from gearflow.runtime.eventloop import new_event_loop
    from gearflow.stores.copying import copy_to_file, copy_to_postgres

    if is_conninfo(source) == is_conninfo(target):
        raise CliError(
            ExitCode.USAGE,
            "one of --from and --to is a file, and the other one a database, such as "
            '"host=pg1 dbname=gearflow" or postgresql://pg1/gearflow',
        )
    if schema is None:  # options before the word copy apply too
        schema = str(context.parent.params["schema"]) if context.parent is not None else "gearflow"
    database = _settings(target if is_conninfo(target) else source, schema)
    with CopyView() as view, asyncio.Runner(loop_factory=new_event_loop) as runner:
        if is_conninfo(target):
            call = copy_to_postgres(file_of(source), database, keep=keep_source, report=view.show)
        else:
            call = copy_to_file(database, file_of(target), keep=keep_source, report=view.show)
        copied = runner.run(call)
    output.write(_summary(copied))
    if copied.damaged:
        entries = "1 entry" if copied.damaged == 1 else f"{copied.damaged:,} entries"
        raise CliError(
            ExitCode.MISCONFIGURED,
            f"could not read {entries} of the source, which still has what is left; all others are copied",
        )


def is_conninfo(text: str) -> bool:
    """Whether it names a database, by a URI or ``key=value``. A file with ``=`` has a ``/`` before it."""
    return text.startswith(("postgres://", "postgresql://")) or (
        "=" in text and text[:1] not in ("/", ".", "~")
    )


def file_of(text: str) -> Path:
    """The file that is meant. A folder is that of a server."""
    from gearflow.server.settings import FILE_NAME

    path = Path(text).expanduser().absolute()
    return path / FILE_NAME if path.is_dir() else path


class CopyView:
    """Shows how far a copy has come, on a terminal. Damaged entries are reported anywhere."""

    def __init__(self) -> None:
        self._bar: tuple[ProgressBar, TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def show(self, group: "CopyGroup", total: int | None) -> None:
        """Show a group that was written."""
        for fault in group.damaged:
            tell(f"warning: not copied: {fault}", logging.WARNING)
        for reason in group.left:
            tell(f"not copied: {reason}", logging.WARNING)
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            from rich.progress import Progress

            bar = Progress(console=output.error_console(), transient=True)
            self._bar = bar, bar.add_task("copied", total=total)
            bar.start()
        progress = group.progress
        bar, row = self._bar
        bar.update(row, completed=progress.jobs + progress.dead + progress.results)


def _settings(conninfo: str, schema: str) -> "PostgresSettings":
    from gearflow.server.admin import server_version
    from gearflow.stores.postgres.settings import PostgresSettings

    return PostgresSettings(
        conninfo=conninfo, address="", version=server_version(), schema=schema, timeout=_TIMEOUT
    )


def _summary(copied: "CopyProgress") -> str:
    parts = f", {counted(copied.parts, 'part')} of streams" if copied.parts else ""
    settings = f", {counted(copied.settings, 'setting')}" if copied.settings else ""
    return (
        f"copied {counted(copied.jobs, 'job')}, {counted(copied.dead, 'dead letter')}, "
        f"{counted(copied.results, 'result')}{parts}{settings}"
    )
