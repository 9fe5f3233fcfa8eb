"""How much memory this process has."""

import os
from pathlib import Path
from typing import Final

from gearflow.reaping import peak

_STATM: Final = Path("/proc/self/statm")


def resident() -> int:
    """Bytes that are resident now; where the system does not tell, the most that ever were."""
    try:
        pages = int(_STATM.read_bytes().split()[1])
    except OSError:
        return peak()
    return pages * os.sysconf("SC_PAGE_SIZE")
