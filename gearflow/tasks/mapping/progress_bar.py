"""The bar that ``map(..., progress=True)`` shows on a terminal. It is on stderr, so results can go elsewhere.

It has no thread of its own, because the garbage collector may close it in any thread, in the middle of
anything. So it is drawn again when a job ends, and not more often than is worth it.
"""

import sys
import time
from typing import Final, Self

REDRAW_INTERVAL: Final = 0.1
"""Seconds between two drawings."""


class ProgressBar:
    """Shows how many items are done, how fast, and the time that is left. It is a callable for ``progress``.

    ``total`` is None if nobody knows it. Then the bar has no end, and there is no time left to show.
    """

    def __init__(self, title: str, total: int | None) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        last = (TimeElapsedColumn(),) if total is None else (TimeRemainingColumn(elapsed_when_finished=True),)
        self._bar: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(show_speed=True),
            *last,
            console=Console(stderr=True, highlight=False),
            auto_refresh=False,
        )
        self._row = self._bar.add_task(escape(title), total=total)
        self._drawn = 0.0  # when, by the monotonic clock
        self._bar.start()

    @classmethod
    def on_terminal(cls, title: str, total: int | None) -> Self | None:
        """A bar if stderr is a terminal, else None."""
        stderr = sys.stderr
        # Python sets it to None if the shell closed it.
        return cls(title, total) if stderr is not None and stderr.isatty() else None  # pyright: ignore[reportUnnecessaryComparison]

    def __call__(self, done: int, _total: int | None) -> None:
        """So many items are done."""
        self._bar.update(self._row, completed=done)
        now = time.monotonic()
        if now - self._drawn >= REDRAW_INTERVAL:
            self._drawn = now
            self._bar.refresh()

    def close(self) -> None:
        """Draw the last state, and give the terminal back."""
        if self._bar.live.is_started:
            self._bar.refresh()
            self._bar.stop()
