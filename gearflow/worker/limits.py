"""When a worker has done enough, or has grown too large, and is to be replaced by a fresh one. Pure."""

from typing import Final

JITTER: Final = 0.1
"""The part of a limit by which it is lowered at most, so that a fleet does not retire all at once."""


class Limits:
    """Limits as they hold for one worker. A frozen value.

    Args:
        max_tasks: Runs; ``None`` for any number.
        max_rss: Bytes of resident memory; ``None`` for any.
        luck: This worker's own number between 0 and 1, which says by how much its limits are lowered.
        size: Bytes that it has before its first job. Its limit is not lowered below that.
    """

    __slots__ = ("_max_rss", "_max_tasks")

    def __init__(self, max_tasks: int | None, max_rss: int | None, luck: float, size: int = 0) -> None:
        self._max_tasks = None if max_tasks is None else max_tasks - int(max_tasks * JITTER * luck)
        self._max_rss = None if max_rss is None else max_rss - int((max_rss - size) * JITTER * luck)

    @property
    def need_memory(self) -> bool:
        """There is a limit of memory, so it has to be looked at."""
        return self._max_rss is not None

    def exceeded(self, runs: int, memory: int) -> str | None:
        """Why a worker with so many ended runs and so many bytes is to retire; ``None``: it is not."""
        if self._max_tasks is not None and runs >= self._max_tasks:
            return f"{runs} jobs done, of at most {self._max_tasks}"
        if self._max_rss is not None and memory > self._max_rss:
            return f"{_mib(memory)} of memory, of at most {_mib(self._max_rss)}"
        return None


def too_small(max_rss: int, size: int) -> str | None:
    """Why a worker that has so many bytes before its first job cannot keep a limit; ``None``: it can."""
    if size <= max_rss:
        return None
    return (
        f"a worker has {_mib(size)} of memory before its first job, more than max_rss allows "
        f"({_mib(max_rss)}), so it would be replaced again and again; give it more than it needs for its jobs"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
