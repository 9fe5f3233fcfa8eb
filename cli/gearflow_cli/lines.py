"""Lines of standard input and standard output, for commands in a pipe. The event loop never waits for them.

A line is read as soon as it is there, so ``tail -f`` can be the other end. A line is written before the
command waits for anything else, and many that are ready at once are written together. Memory is bounded on
both sides, because what cannot be written stops the reading.
"""

import os
import sys
from collections.abc import AsyncGenerator
from typing import Final, NamedTuple

from gearflow_cli.errors import CliError, ExitCode, tell

_READ: Final = 65536
"""Bytes that are read at once, as much as a pipe holds."""

_WRITE: Final = 4096
"""Bytes that a pipe takes without waiting, once it can take any (PIPE_BUF)."""

_BUFFER: Final = 65536
"""Bytes of results that are kept back at most, so that they are written together."""


class Line(NamedTuple):
    """A line without its end, and its number from 1."""

    number: int
    data: bytes


async def read_blocks() -> AsyncGenerator[list[Line]]:
    """Yield the lines of standard input, as many at a time as are there.

    Raises:
        CliError: Standard input is closed, or cannot be read.
    """
    if sys.stdin is None:  # the shell closed it: <&-  # pyright: ignore[reportUnnecessaryComparison]
        raise CliError(ExitCode.USAGE, "cannot read standard input: it is closed")
    descriptor = sys.stdin.fileno()
    if os.isatty(descriptor):
        tell("reading lines from the terminal; Ctrl-D ends them")
    unfinished: list[bytes] = []
    number = 0
    while True:
        await _until_readable(descriptor)
        try:
            data = os.read(descriptor, _READ)
        except OSError as error:
            raise CliError(ExitCode.USAGE, f"cannot read standard input: {error.strerror}") from None
        if not data:
            break
        first, *others = data.split(b"\n")
        unfinished.append(first)
        if others:
            ended = [b"".join(unfinished), *others[:-1]]
            yield [Line(place, line) for place, line in enumerate(ended, number + 1)]
            number += len(ended)
            unfinished = [others[-1]]
    if last := b"".join(unfinished):
        yield [Line(number + 1, last)]


async def read_lines() -> AsyncGenerator[Line]:
    """Yield the lines of standard input. Raises as ``read_blocks``."""
    async for block in read_blocks():
        for line in block:
            yield line


class LineWriter:
    """Writes lines to standard output. Owns those that are not written yet."""

    def __init__(self) -> None:
        if sys.__stdout__ is None:
            raise OSError("standard output is closed")
        sys.stdout.flush()
        self._descriptor = sys.stdout.fileno()
        self._lines: list[bytes] = []
        self._size = 0

    async def write(self, line: bytes) -> None:
        """Write a line, which has no end yet. It may be kept back until ``flush``."""
        self._lines.append(line)
        self._size += len(line) + 1
        if self._size >= _BUFFER:
            await self.flush()

    async def flush(self) -> None:
        """Write what was kept back.

        Raises:
            BrokenPipeError: Nobody reads.
            OSError: It cannot be written.
        """
        if not self._lines:
            return
        rest = memoryview(b"\n".join([*self._lines, b""]))
        self._lines = []
        self._size = 0
        while rest:
            await _until_writable(self._descriptor)
            rest = rest[os.write(self._descriptor, rest[:_WRITE]) :]


async def _until_readable(descriptor: int) -> None:
    import anyio

    try:
        await anyio.wait_readable(descriptor)
    except PermissionError:  # a file, which is always ready
        await anyio.lowlevel.checkpoint()


async def _until_writable(descriptor: int) -> None:
    import anyio

    try:
        await anyio.wait_writable(descriptor)
    except PermissionError:
        await anyio.lowlevel.checkpoint()
