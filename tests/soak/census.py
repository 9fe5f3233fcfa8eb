"""What a process holds: open files, threads, memory; its own event loop's tasks, where it tells them."""

import resource
from pathlib import Path
from typing import Final

from pydantic import BaseModel

CONCURRENCY: Final = 10
"""Jobs that a worker runs at once."""


class Census(BaseModel):
    """A count of one process at one moment."""

    files: int
    threads: int
    memory: int
    """Bytes that are resident."""
    tasks: int
    """Of its event loop; 0 where they cannot be seen."""

    def growth(self, later: "Census", memory: int) -> list[str]:
        """What has become more until later, beyond a few; ``memory`` is the bytes that it may be.

        A few: a connection may be on its way out. A worker starts a thread when all that it has are busy,
        until there is one for each job that it runs at once; that may be after it was counted.
        """
        before, after = self.model_dump(), later.model_dump()
        allowed = {"files": 4, "threads": CONCURRENCY, "tasks": 4, "memory": memory}
        return [
            f"{name}: {before[name]:,} became {after[name]:,}"
            for name, more in allowed.items()
            if after[name] > before[name] + more
        ]


def census(pid: int, tasks: int = 0) -> Census:
    """Count what a process holds, as the system sees it."""
    process = Path(f"/proc/{pid}")
    return Census(
        files=len(list((process / "fd").iterdir())),
        threads=len(list((process / "task").iterdir())),
        memory=int((process / "statm").read_text().split()[1]) * resource.getpagesize(),
        tasks=tasks,
    )
