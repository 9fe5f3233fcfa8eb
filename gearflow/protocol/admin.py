"""The text protocol, which shares the port with the packets: lines -> commands, rows <-> lines.

A server reads a line with ``parse_command``, which gives a command, or the answer to a line that is none,
and answers with one of ``render_*`` or a constant. A client reads the answer with ``parse_*``: one row
class for each table serves both directions.

The bytes are gearmand's, with its mixture of line ends: LF behind tables, ``version``, ``getpid`` and
``verbose``; CRLF behind every other OK and every ERR. A line here never has its end (``FrameBuffer``
takes it off); an answer always does.

The protocol cannot quote. A line end inside a name is rendered as ``\\n`` or ``\\r``, so that a row stays
a row. gearmand writes it as it is: the row falls apart, and a reader skips the pieces that are no rows. In
``workers`` a blank inside a function's name makes two names of it, and an id that contains `` :`` ends there.

Source: gearman-protocol, section 10 (admin text protocol).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from gearflow.errors import RemoteProtocolError, ServerError

Row = TypeVar("Row")

MAX_WORDS: Final = 5
"""Words in a command: gearmand closes the connection on a sixth."""

END: Final = b"."
"""The line behind the last row of a table."""

OK: Final = b"OK\r\n"
UNKNOWN_JOB: Final = b"ERR UNKNOWN_JOB\r\n"
UNKNOWN_FUNCTION: Final = b"ERR function not found\r\n"
FUNCTION_IN_USE: Final = b"ERR there are still connected workers or executing clients\r\n"

# ------------------------------------------------------------------------------------------ commands


@dataclass(frozen=True, slots=True)
class Status:
    """The functions, with their jobs and workers."""


@dataclass(frozen=True, slots=True)
class PriorityStatus:
    """The functions, with their queued jobs by priority."""


@dataclass(frozen=True, slots=True)
class ShowWorkers:
    """The connections, with the functions they offer."""


@dataclass(frozen=True, slots=True)
class Version:
    """The server's version."""


@dataclass(frozen=True, slots=True)
class GetPid:
    """The server's process id."""


@dataclass(frozen=True, slots=True)
class Verbose:
    """The server's log level."""


@dataclass(frozen=True, slots=True)
class ShowJobs:
    """The jobs, with their handles."""


@dataclass(frozen=True, slots=True)
class ShowUniqueJobs:
    """The jobs' uniques."""


@dataclass(frozen=True, slots=True)
class MaxQueue:
    """Limit a function's jobs, by the priority of the one that wants to come in; None is no limit."""

    function: bytes
    high: int | None
    normal: int | None
    low: int | None


@dataclass(frozen=True, slots=True)
class CancelJob:
    """End a job that has not been run."""

    handle: bytes


@dataclass(frozen=True, slots=True)
class CreateFunction:
    """Make a function known, so that ``status`` lists it."""

    function: bytes


@dataclass(frozen=True, slots=True)
class DropFunction:
    """Forget a function."""

    function: bytes


@dataclass(frozen=True, slots=True)
class CommandRefused:
    """The line is no command; ``answer`` says why."""

    answer: bytes


Command: TypeAlias = (
    Status
    | PriorityStatus
    | ShowWorkers
    | Version
    | GetPid
    | Verbose
    | ShowJobs
    | ShowUniqueJobs
    | MaxQueue
    | CancelJob
    | CreateFunction
    | DropFunction
    | CommandRefused
)

_PLAIN: Final[dict[bytes, Command]] = {
    b"status": Status(),
    b"prioritystatus": PriorityStatus(),
    b"workers": ShowWorkers(),
    b"version": Version(),
    b"getpid": GetPid(),
    b"verbose": Verbose(),
}


def parse_command(line: bytes) -> Command:
    """The command in a line. Its words are separated by blanks; those of the command itself have no case.

    Words behind a command that takes none are ignored, and so are blanks at the end; a blank at the
    start makes the line no command.

    Raises:
        RemoteProtocolError: More than five words; gearmand closes the connection there.
    """
    words = line.split(b" ")
    name, arguments = words[0], [word for word in words[1:] if word]
    if 1 + len(arguments) > MAX_WORDS:
        raise RemoteProtocolError(f"the text command {line[:40]!r} has more than {MAX_WORDS} words")
    match name.lower(), arguments:
        case plain, _ if plain in _PLAIN:
            return _PLAIN[plain]
        case b"show", [_, *_]:
            return _parse_show(arguments)
        case b"cancel", [_, _, *_]:
            return _parse_cancel(arguments)
        case b"maxqueue", [function, *limits]:
            return _parse_maxqueue(function, limits)
        case b"create", [what, function] if what.lower() == b"function":
            return CreateFunction(function)
        case b"drop", [what, function] if what.lower() == b"function":
            return DropFunction(function)
        case (b"maxqueue" | b"create" | b"drop") as command, _:
            return CommandRefused(_incomplete(command))
        case _:
            return CommandRefused(_unknown_command(line))


def _parse_show(arguments: list[bytes]) -> Command:
    match [word.lower() for word in arguments]:
        case [b"jobs"]:
            return ShowJobs()
        case [b"unique", b"jobs"]:
            return ShowUniqueJobs()
        case _:
            return CommandRefused(b"ERR UNKNOWN_SHOW_ARGUMENTS\r\n")


def _parse_cancel(arguments: list[bytes]) -> Command:
    match arguments:
        case [what, handle] if what.lower() == b"job":
            return CancelJob(handle)
        case _:
            return CommandRefused(b"ERR UNKNOWN_ERROR\r\n")


def _parse_maxqueue(function: bytes, limits: list[bytes]) -> MaxQueue:
    high, normal, low, *_ = [*map(_limit, limits), None, None, None]
    if len(limits) == 1:
        normal = low = high
    return MaxQueue(function, high, normal, low)


def _limit(word: bytes) -> int | None:
    """Read as leniently as by C's atoi; 0, a negative number and what is no number are no limit."""
    digits = re.match(rb"[0-9]{1,20}", word)
    return int(digits[0]) or None if digits else None


def _unknown_command(line: bytes) -> bytes:
    return b"ERR UNKNOWN_COMMAND Unknown+server+command" + line.partition(b" ")[0] + b"\r\n"


def _incomplete(command: bytes) -> bytes:
    text = b"An+incomplete+set+of+arguments+was+sent+to+this+command+"
    return b"ERR INVALID_ARGUMENTS " + text + command + b"\r\n"


# ---------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True, slots=True)
class FunctionStatus:
    """A row of ``status``.

    Attributes:
        name: The function.
        total: The number of waiting and running jobs.
        running: The number of running jobs.
        workers: The number of workers that offer the function.
    """

    name: bytes
    total: int
    running: int
    workers: int


@dataclass(frozen=True, slots=True)
class FunctionPriorities:
    """A row of ``prioritystatus``.

    Attributes:
        name: The function.
        high: The number of waiting jobs of high priority.
        normal: The number of waiting jobs of normal priority.
        low: The number of waiting jobs of low priority.
        workers: The number of workers that offer the function.
    """

    name: bytes
    high: int
    normal: int
    low: int
    workers: int


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A row of ``workers``, for every connection, whether or not it offers functions.

    Attributes:
        fd: The file descriptor of the connection.
        address: The address of the peer.
        client_id: The name that the peer has set, or ``-``.
        functions: The functions that it offers.
    """

    fd: int
    address: str
    client_id: bytes
    functions: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class JobRow:
    """A row of ``show jobs``.

    Attributes:
        handle: The server's name for the job.
        retries: Always 0 on gearflow's server.
        ignored: Whether no client wants the job any more.
        background: Whether it is a background job.
    """

    handle: bytes
    retries: int
    ignored: bool
    background: bool


# ------------------------------------------------------------------------------------------- answers


def render_status(rows: Iterable[FunctionStatus]) -> bytes:
    """The answer to ``status``."""
    return _table(b"%b\t%d\t%d\t%d" % (row.name, row.total, row.running, row.workers) for row in rows)


def render_priority_status(rows: Iterable[FunctionPriorities]) -> bytes:
    """The answer to ``prioritystatus``."""
    return _table(
        b"%b\t%d\t%d\t%d\t%d" % (row.name, row.high, row.normal, row.low, row.workers) for row in rows
    )


def render_workers(rows: Iterable[WorkerRow]) -> bytes:
    """The answer to ``workers``."""
    return _table(
        b" ".join((b"%d" % row.fd, row.address.encode(), row.client_id, b":", *row.functions)) for row in rows
    )


def render_jobs(rows: Iterable[JobRow]) -> bytes:
    """The answer to ``show jobs``."""
    return _table(b"%b\t%d\t%d\t%d" % (row.handle, row.retries, row.ignored, row.background) for row in rows)


def render_uniques(uniques: Iterable[bytes]) -> bytes:
    """The answer to ``show unique jobs``."""
    return _table(uniques)


def render_version(version: str) -> bytes:
    """The answer to ``version``."""
    return b"OK %b\n" % version.encode()


def render_pid(pid: int) -> bytes:
    """The answer to ``getpid``."""
    return b"OK %d\n" % pid


def render_log_level(level: str) -> bytes:
    """The answer to ``verbose``; the level under gearmand's name for it."""
    return b"OK %b\n" % level.encode()


def _table(rows: Iterable[bytes]) -> bytes:
    lines = [row.replace(b"\n", b"\\n").replace(b"\r", b"\\r") for row in rows]
    return b"\n".join([*lines, END, b""])


def parse_ok(line: bytes) -> str:
    """What follows the OK of a one-line answer: a version, a process id, a level, or nothing.

    Raises:
        ServerError: The answer is an ERR.
        RemoteProtocolError: It is neither.
    """
    match line.decode(errors="replace").split(" ", 2):
        case ["OK", *rest]:
            return " ".join(rest)
        case ["ERR", code, *text]:
            raise ServerError(code, " ".join(text).replace("+", " "))
        case _:
            raise RemoteProtocolError(f"{line[:80]!r} is neither OK nor ERR")


def parse_status(lines: Iterable[bytes]) -> list[FunctionStatus]:
    """The rows of ``status``. This and the other tables skip lines that are no rows.

    Raises:
        RemoteProtocolError: There are lines, and none of them is a row.
    """
    return [FunctionStatus(name, *numbers) for name, numbers in _rows(lines, 3)]


def parse_priority_status(lines: Iterable[bytes]) -> list[FunctionPriorities]:
    """The rows of ``prioritystatus``."""
    return [FunctionPriorities(name, *numbers) for name, numbers in _rows(lines, 4)]


def parse_jobs(lines: Iterable[bytes]) -> list[JobRow]:
    """The rows of ``show jobs``."""
    return [
        JobRow(handle, retries, bool(ignored), bool(background))
        for handle, (retries, ignored, background) in _rows(lines, 3)
    ]


def parse_workers(lines: Iterable[bytes]) -> list[WorkerRow]:
    """The rows of ``workers``; ids may contain blanks."""
    return _readable(lines, _worker, "a row of workers")


def _rows(lines: Iterable[bytes], columns: int) -> list[tuple[bytes, list[int]]]:
    """Each row as the name in front, which may contain tabs, and the numbers in the columns behind it."""

    def row(line: bytes) -> tuple[bytes, list[int]] | None:
        name, *numbers = line.rsplit(b"\t", columns)
        if len(numbers) < columns or not all(map(_NUMBER.fullmatch, numbers)):
            return None
        return name, [int(number) for number in numbers]

    return _readable(lines, row, f"a row with {columns} numbers")


def _worker(line: bytes) -> WorkerRow | None:
    match = _WORKER.fullmatch(line)
    if match is None:
        return None
    fd, address, client_id, functions = match.groups()
    names = () if functions is None else tuple(functions.split(b" "))
    return WorkerRow(int(fd), address.decode(), client_id, names)


def _readable(lines: Iterable[bytes], read: Callable[[bytes], Row | None], kind: str) -> list[Row]:
    """The lines that can be read as rows of that kind."""
    rows: list[Row] = []
    skipped: bytes | None = None
    for line in lines:
        row = read(line)
        if row is not None:
            rows.append(row)
        elif skipped is None:
            skipped = line
    # The last piece of a row that fell apart can be read, and ``workers`` lists at least who asks: where
    # nothing can be read, another kind of server has answered.
    if skipped is not None and not rows:
        raise RemoteProtocolError(f"{skipped[:80]!r} is not {kind}")
    return rows


_NUMBER: Final = re.compile(rb"[0-9]{1,20}")
_WORKER: Final = re.compile(rb"([0-9]{1,20}) ([!-~]+) (.*?) :(?: (.*))?", re.DOTALL)
