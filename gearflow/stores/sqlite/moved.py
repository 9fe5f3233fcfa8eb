"""The mark of a file whose jobs were copied to another store: a file beside it, with ``-moved`` at the end.

While it is there, no server starts with the file, because the jobs would run twice. It is not in the file
itself, so that a copy leaves the file as it is, and people see the mark.

The mark is written before the first entry is copied. So a file does not change while its copy is not whole.
It is replaced as a whole: there is always one of a copy that goes on, or of one that is complete.

If somebody removes the mark, the file is as any other. The next copy of it has another UUID then.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gearflow.errors import StoreError
from gearflow.stores.sqlite.files import sync_names


class MovedFile(NamedTuple):
    """Where the jobs of a file are being copied to, or have been."""

    copy: str  # a UUID
    to: str  # for people
    key: str  # tells one target from another
    done: bool = False


def mark_of(path: Path) -> Path:
    """The path of the mark."""
    return path.with_name(f"{path.name}-moved")


def read_mark(path: Path) -> MovedFile | None:
    """The mark of a file, or None if it has none. Raises StoreError."""
    mark = mark_of(path)
    try:
        return MovedFile(**json.loads(mark.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(
            f"{mark} cannot be read ({error}); if the jobs of {path.name} are not in another store, remove it"
        ) from None


def write_mark(path: Path, moved: MovedFile) -> None:
    """Write the mark of a file. Raises OSError."""
    draft = path.with_name(f"{path.name}-moved-draft")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(moved._asdict(), file)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(mark_of(path))
    with suppress(OSError):  # not every file system can
        sync_names(path.parent)


def remove_mark(path: Path) -> None:
    """Remove the mark of a file. Raises OSError."""
    mark_of(path).unlink(missing_ok=True)
    with suppress(OSError):
        sync_names(path.parent)


def check_not_moved(path: Path) -> None:
    """Raises StoreError if the jobs of a file have been copied to another store, or are being copied."""
    moved = read_mark(path)
    if moved is None:
        return
    remedy = f"to use the file still, remove {mark_of(path).name}"
    if moved.done:
        raise StoreError(f"the jobs in {path} were copied to {moved.to}; serve them from there, or {remedy}")
    raise StoreError(
        f"a copy of {path} to {moved.to} did not end; run that gearflow server copy again, or {remedy}"
    )
