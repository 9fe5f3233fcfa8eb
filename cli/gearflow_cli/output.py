"""Output: results on stdout, everything else on stderr. Colours and bars appear only on a terminal.

Nothing that comes from elsewhere can steer the terminal. See ``text``.
"""

import inspect
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from gearflow_cli.errors import CliError, ExitCode
from gearflow_cli.text import as_json, as_line, indented, printable, printable_lines

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from gearflow.errors import TaskFailed
    from gearflow.protocol.server_calls import JobInfo
    from gearflow.tasks.definition import TaskDefinition

    AnyTask: TypeAlias = TaskDefinition


def is_terminal() -> bool:
    """Whether results go to a terminal."""
    return sys.stdout.isatty()


def show(renderable: "RenderableType") -> None:
    """Print something on the terminal."""
    _require_stdout()
    output_console().print(renderable, soft_wrap=True)


def write(text: str) -> None:
    """Print lines of text and a line break."""
    _require_stdout()
    sys.stdout.write(f"{printable_lines(text)}\n")


def write_sentence(text: str) -> None:
    """Print a text that may contain names from elsewhere, as one line."""
    write(printable(text))


def write_json(value: Any) -> None:
    """Print indented JSON."""
    write_bytes(f"{as_json(value)}\n".encode())


def write_json_line(value: Any) -> None:
    """Print JSON on one line."""
    write_bytes(f"{as_line(value)}\n".encode())


def write_bytes(data: bytes) -> None:
    """Print bytes as they are, at once."""
    _require_stdout()
    sys.stdout.flush()
    rest = memoryview(data)
    while rest:  # with PYTHONUNBUFFERED this is the file itself, which may write only a part
        rest = rest[sys.stdout.buffer.write(rest) :]
    sys.stdout.buffer.flush()


def confirm(question: str) -> None:
    """Ask the user whether to go on.

    Raises:
        CliError: The answer is no, or there is no terminal to ask on.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise CliError(
            ExitCode.USAGE, f"{question} Nobody can answer, as standard input is no terminal: add --yes"
        )
    sys.stderr.write(f"{printable(question)} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CliError(ExitCode.INTERRUPTED, "nothing was done")


def _require_stdout() -> None:
    """Raise OSError if the shell closed stdout. No result may vanish without a message."""
    if sys.__stdout__ is None:
        raise OSError("standard output is closed")


def error_console() -> "Console":
    """A console on stderr, for progress bars."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def output_console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


Cell: TypeAlias = str | int
Row: TypeAlias = tuple[str, str]
"""A name and its text."""


_STATES: Final = {
    **dict.fromkeys(("raised", "failed", "workers_died", "expired", "damaged", "dead"), "red"),
    **dict.fromkeys(("cancelled", "delayed", "paused", "quiet", "no worker"), "yellow"),
    **dict.fromkeys(("running", "completed", "succeeded", "active"), "green"),
}
"""The colours of states on a terminal."""


def _colour(title: str, cell: Cell) -> str:
    match title, cell:
        case "state", str():
            return _STATES.get(cell, "")
        case ("paused", "yes") | ("workers", 0):
            return "yellow"
        case "overdue", int() if cell:
            return "red"
        case _:
            return ""


def write_table(
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    cut: Mapping[str, int],
    optional: Collection[str],
    wide: bool,
    empty: str,
) -> None:
    """Print rows, on a terminal as ``show_table`` does, or ``empty`` if there are none."""
    if not is_terminal():
        write(columns(header, rows))
    elif rows:
        show_table(header, rows, cut=cut, optional=optional, wide=wide)
    else:
        write(empty)


class GrowingTable:
    """A table of what several servers have. It prints rows as they come, so it never holds all of them.

    Args:
        header: The titles. With ``with_server``, the address of the server comes first.
        cut: As for ``show_table``.
        optional: As for ``show_table``.
        wide: As for ``show_table``.
        empty: What a person reads if there are no rows.
        with_server: Whether there are several servers.
    """

    def __init__(
        self,
        header: Sequence[str],
        *,
        cut: Mapping[str, int],
        optional: Collection[str],
        wide: bool,
        empty: str,
        with_server: bool,
    ) -> None:
        self._header = ["server", *header] if with_server else header
        self._cut, self._optional, self._wide = cut, optional, wide
        self._empty = empty
        self._with_server = with_server
        self._is_empty = True

    def add(self, server: str, rows: Sequence[Sequence[Cell]]) -> None:
        """Print rows."""
        if not rows:
            return
        cells = [[server, *row] for row in rows] if self._with_server else rows
        if is_terminal():
            show_table(self._header, cells, cut=self._cut, optional=self._optional, wide=self._wide)
        else:
            header, _, lines = columns(self._header, cells).partition("\n")
            write(f"{header}\n{lines}" if self._is_empty else lines)
        self._is_empty = False

    def end(self) -> None:
        """Print a message if there were no rows. In a pipe that is the header."""
        if self._is_empty:
            write(self._empty if is_terminal() else columns(self._header, []))


def show_table(
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    cut: Mapping[str, int],
    optional: Collection[str],
    wide: bool,
) -> None:
    """Print rows on a terminal. Unless ``wide`` is set, leave out and cut columns until the rows fit.

    Args:
        cut: The columns to cut, and how many characters stay at least. The first is cut first.
        optional: The columns to leave out. The first goes first.
    """
    from rich.cells import cell_len
    from rich.text import Text

    console = output_console()
    cells = [list(map(printable, row)) for row in rows]
    widths = {
        title: max(map(cell_len, column))
        for title, column in zip(header, zip(header, *cells, strict=True), strict=True)
    }
    full = dict(widths)
    if not wide:
        _fit(widths, console.width, cut, optional)
    lines = [Text("  ").join(Text(title.ljust(width), "bold") for title, width in widths.items())]
    for row, texts in zip(rows, cells, strict=True):
        shown: list[Text] = []
        for title, cell, text in zip(header, row, texts, strict=True):
            if title in widths:
                part = Text(shortened(text, widths[title]), _colour(title, cell))
                part.align("right" if isinstance(cell, int) else "left", widths[title])
                shown.append(part)
        lines.append(Text("  ").join(shown))
    if widths != full:
        lines.append(Text("--wide shows all of it", "dim"))
    show(Text("\n").join(lines))


def _fit(widths: dict[str, int], most: int, cut: Mapping[str, int], optional: Collection[str]) -> None:
    """Make columns narrower until a row with gaps of two blanks fits."""

    def least(title: str) -> int:
        return min(widths[title], cut.get(title, widths[title]))

    for title in optional:
        if sum(map(least, widths)) + 2 * (len(widths) - 1) > most:
            widths.pop(title, None)
    for title in cut:
        if title in widths:
            over = sum(widths.values()) + 2 * (len(widths) - 1) - most
            widths[title] = max(least(title), widths[title] - max(over, 0))


def shortened(text: str, width: int) -> str:
    """A text that fits. A sentence loses its last words, and a name loses its first parts."""
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    words, parts = text.split(" "), text.split(".")
    ends = (f"{' '.join(words[:number])}…" for number in range(len(words) - 1, 0, -1))
    starts = (f"…{'.'.join(parts[number:])}" for number in range(1, len(parts)))
    shorter, last = (ends, f"{text[: width - 1]}…") if len(words) > 1 else (starts, f"…{text[1 - width :]}")
    return next((each for each in shorter if cell_len(each) <= width), last)


_ALIGNED: Final = 200
"""Characters of the widest column for a pipe."""


def columns(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Rows for a pipe: aligned columns below a header, and nothing is cut. A very long cell moves its row out
    of line, because otherwise one name of 60 KiB would make all lines as long."""
    cells = [list(header), *(list(map(printable, row)) for row in rows)]
    widths = [min(max(map(len, column)), _ALIGNED) for column in zip(*cells, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
    return "\n".join(lines)


def labelled(rows: Sequence[Row]) -> str:
    """Names and their texts. The further lines of a text are indented."""
    width = max((len(name) for name, _ in rows), default=0)
    gap = f"\n{'':{width}}  "
    return "\n".join(
        f"{name:{width}}  {gap.join(printable_lines(text).splitlines())}".rstrip() for name, text in rows
    )


def result(data: bytes) -> "RenderableType | None":
    """A result for a terminal, as JSON with indentation and colours. None if it is not JSON."""
    from rich.highlighter import JSONHighlighter
    from rich.text import Text

    try:
        shown = Text(as_json(json.loads(data.decode())), no_wrap=True)
    except (ValueError, RecursionError):
        return None
    JSONHighlighter().highlight(shown)
    return shown


def signature(task: "AnyTask") -> str:
    """The parameters and the result of a task: ``(a: int, b: int = 1) -> int``."""
    taken = task.payload.signature
    parameters = [
        parameter.replace(annotation=taken.annotations[name]) for name, parameter in taken.parameters.items()
    ]
    returned = None if taken.returns is type(None) else taken.returns
    return str(inspect.Signature(parameters, return_annotation=returned))


def payload_faults(errors: Sequence[dict[str, Any]], known: Sequence[str] = ()) -> str:
    """The errors of pydantic, one line each."""
    return "\n".join(f"  {_fault(error, known)}" for error in errors)


def _fault(error: dict[str, Any], known: Sequence[str]) -> str:
    place = error.get("loc", ())
    parts = cast("Sequence[object]", place) if isinstance(place, list | tuple) else [place]
    where = ".".join(map(str, parts))
    what = str(error.get("msg", "invalid"))
    given = error.get("input")
    match error.get("type"):
        case "extra_forbidden":
            names = f"; there are {', '.join(known)}" if known and "." not in where else ""
            what = f"there is no such parameter{names}"
        case "missing":
            what = "is missing"
        case "value_error" | "assertion_error":
            what = what.removeprefix("Value error, ").removeprefix("Assertion failed, ")
        case _ if given is not None and not isinstance(given, dict | list):
            what += f", not {json.dumps(given, ensure_ascii=False)}"
        case _:
            pass
    return printable(f"{where}: {what}" if where else what)


def write_job(job: "JobInfo") -> None:
    """Print all that is known about a job, with the traceback of its failure."""
    text = labelled(job_rows(job))
    if is_terminal():
        from rich.text import Text

        shown = Text(text)
        shown.highlight_regex(r"(?m)(?<=^state) +\w+", _STATES.get(job.state, ""))
        show(shown)
    else:
        write(text)
    if job.failure is not None and job.failure.traceback:
        write(f"\n{job.failure.traceback.rstrip()}")


def job_rows(job: "JobInfo") -> list[Row]:
    """The fields of a job that are not empty."""
    done, total = job.progress or (0, 0)
    known = {
        "handle": job.handle,
        "function": job.function,
        "unique": job.unique,
        "state": _state(job),
        "kind": "background" if job.background else "attached",
        "priority": job.priority,
        "submitted": when(job.submitted),
        "due": when(job.due),
        "started": when(job.started),
        "ended": when(job.ended),
        "kept until": when(job.kept_until),
        "attempt": job.attempt or None,
        "deaths": job.deaths or None,
        "worker": job.worker,
        "owner": job.owner,
        "progress": f"{done} of {total}" + (job.message and f": {job.message}") if job.progress else None,
        "parts": job.parts or None,
        "size": f"{job.size} bytes",
    }
    shown = [(name, str(value)) for name, value in known.items() if value not in (None, "")]
    shown.extend(("warning", warning) for warning in job.warnings)
    for run in job.runs:
        by = f" on {run.worker}" if run.worker else ""
        why = f": {run.reason}" if run.reason else ""
        shown.append((f"run {run.attempt}", f"{when(run.started)}, {run.ended - run.started:.3g} s{by}{why}"))
    if job.failure is not None:
        shown.append(("failure", failure_text(job)))
    if job.damage:
        shown.append(("damage", job.damage))
    return shown


def _state(job: "JobInfo") -> str:
    if job.dead:
        return f"{job.state}, a dead letter"
    return f"{job.state}; {job.why}" if job.why else job.state


def failure_text(job: "JobInfo") -> str:
    """Why a job failed, as one text. Empty if that is unknown."""
    said = job.failure
    if said is None:
        return ""
    return ": ".join(part for part in (said.type, said.message) if part)


def briefly(time: float | None) -> str:
    """The local time of day of a Unix time, or its date if that is not today."""
    date, _, clock = when(time).partition(" ")
    return clock[: len("18:00:00")] if date == datetime.now().astimezone().date().isoformat() else date


def counted(number: int, what: str) -> str:
    """``1 job``, ``2 jobs``."""
    from gearflow import quantities  # help does without the library

    return quantities.counted(number, what)


def duration(seconds: float) -> str:
    """A time as an option takes it, such as ``7d`` or ``1h30m``."""
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        number, seconds = divmod(seconds, size)
        parts += [f"{number:.0f}{unit}"] if number else []
    return "".join([*parts, *([f"{seconds:g}s"] if seconds or not parts else [])])


def when(time: float | None) -> str:
    """A Unix time as a local one. Empty for none."""
    if time is None:
        return ""
    try:
        return datetime.fromtimestamp(time).astimezone().isoformat(" ", "seconds")
    except (ValueError, OverflowError, OSError):  # a server accepts any number
        return "after the year 9999"


def write_result(data: bytes, kind: Any = None) -> None:
    """Print a result. On a terminal JSON is indented, and what could steer the terminal is escaped.

    Elsewhere the bytes stay as they are, and a text gets a line break.

    Args:
        data: The result.
        kind: Its type, if that is known.
    """
    if not is_terminal():
        write_bytes(data)
        if data and not data.endswith(b"\n") and kind is not bytes and _is_text(data):
            write_bytes(b"\n")
    elif kind not in (str, bytes) and (shown := result(data)) is not None:
        show(shown)
    elif data:
        write(data.decode("utf-8", "backslashreplace").removesuffix("\n"))


def write_failure(error: "TaskFailed", subject: str, *, verbose: bool) -> CliError:
    """The failure for a task that failed, with the worker's traceback if ``verbose`` is set."""
    from gearflow.errors import PayloadInvalid

    code = ExitCode.PAYLOAD_INVALID if isinstance(error, PayloadInvalid) else ExitCode.TASK_FAILED
    reason = indented(f"{error.type}: {error.message}" if error.type else error.message)
    if error.errors:
        head, fits, _ = error.message.removeprefix(f"task {subject!r}: ").partition(" fit its types: ")
        reason = f"{printable(head)}{fits.rstrip()}\n{payload_faults(error.errors)}" if fits else reason
    lines = [f"{printable(subject)} failed: {reason}"]
    if verbose and error.traceback:
        lines.append(f"\non the worker:\n\n{error.traceback.rstrip()}")
    return CliError(code, "\n".join(lines))


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
