"""Names of files, which can be lost with the power although what is in the files is not."""

from __future__ import annotations

import os
from pathlib import Path


def sync_names(folder: Path) -> None:
    """Have the names in a folder survive.

    Raises:
        OSError: They may not; some file systems cannot do it.
    """
    directory = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
