"""Copies all entries from one store to another. A copy that was cut off goes on where it stopped.

**Order.** The source is marked first, so that no server starts with it. Then the target gets the entries in
groups, each together with the progress. The last transaction shows them to servers. At last the mark of the
source says that it was copied. After an end of the process at any point the same command goes on. If it ends
before the last transaction, no server has seen the entries. If it ends after it, only the mark is missing.

**Identity.** Each copy has a UUID, which is in the mark of the source. The target has the same. So a source
that was used since, for somebody removed its mark, is another copy, and what is there of the first one goes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gearflow.broker.storage import HISTORY
from gearflow.errors import StoreError
from gearflow.stores.copying.entries import CopyGroup, CopyPhase, CopyProgress, CopySource, CopyTarget
from gearflow.stores.copying.file_source import FileSource
from gearflow.stores.copying.file_target import FileTarget
from gearflow.stores.postgres.settings import PostgresSettings

Report = Callable[[CopyGroup, int | None], None]
"""Called after each group that is written, with the number of jobs and results in all, if it is known."""


async def copy_to_postgres(
    path: Path, settings: PostgresSettings, *, keep: bool, report: Report
) -> CopyProgress:
    """Copy a file to a schema, as ``copy``."""
    from gearflow.stores.copying.postgres_target import PostgresTarget

    return await copy(FileSource(path), PostgresTarget(settings), keep=keep, report=report)


async def copy_to_file(settings: PostgresSettings, path: Path, *, keep: bool, report: Report) -> CopyProgress:
    """Copy a schema to a file, as ``copy``."""
    from gearflow.stores.copying.postgres_source import PostgresSource

    return await copy(PostgresSource(settings), FileTarget(path), keep=keep, report=report)


async def copy(source: CopySource, target: CopyTarget, *, keep: bool, report: Report) -> CopyProgress:
    """Copy all entries.

    Args:
        source: The store whose entries are copied.
        target: The store that gets them.
        keep: Let servers start with the source afterwards. Its jobs may run twice then.
        report: Called after each group.

    Returns:
        How many of each were copied, also before this call.

    Raises:
        StoreError: It is not allowed, or failed. Call it again to go on.
    """
    try:
        await source.open()
        await target.open()
        name, is_new = await source.begin(target.description, target.key)
        try:
            progress = await target.begin(name, source)
        except StoreError:
            if is_new:
                await source.give_up()
            raise
        if progress.phase != CopyPhase.END:
            total = await source.total()
            async for group in source.groups(progress):
                await target.write(group)
                progress = group.progress
                report(group, total)
            progress = await _finish(source, target, progress, report)
        if keep:
            await source.give_up()
        else:
            await source.end()
        return progress
    finally:
        await target.close()
        await source.close()


async def _finish(
    source: CopySource, target: CopyTarget, progress: CopyProgress, report: Report
) -> CopyProgress:
    """Copy what is no entry, and show all to servers."""
    kept, damaged = await source.settings()
    found = [setting for setting in kept if setting.kind != HISTORY]
    there = {(setting.kind, setting.name): setting for setting in await target.settings()}
    copied = [setting for setting in found if (setting.kind, setting.name) not in there]
    left = [
        f"the {setting.kind} {setting.name.decode(errors='replace')}: the target has one of that name"
        for setting in found
        if there.get((setting.kind, setting.name), setting) != setting
    ]
    progress = progress._replace(settings=len(copied), damaged=progress.damaged + len(damaged))
    report(CopyGroup(progress, damaged=damaged, left=left), None)
    await target.finish(await source.paused(), copied, progress)
    return progress
