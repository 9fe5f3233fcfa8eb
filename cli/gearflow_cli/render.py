"""Values -> what is shown: rich renderables for a terminal, plain text for a pipe. Never prints."""

import inspect
import json
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from gearflow.tasks import Task

    AnyTask: TypeAlias = Task[..., Any]

Cell: TypeAlias = str | int
Row: TypeAlias = tuple[str, str]
"""A name, and what is to be said of it."""


def as_json(value: Any) -> str:
    """Indented JSON, for a program or a person."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def as_line(value: Any) -> str:
    """JSON on one line, where there are many values to be read one after another."""
    return json.dumps(value, ensure_ascii=False)


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]], whole: Collection[str] = ()) -> "Table":
    """Rows for a terminal; numbers to the right, the columns in ``whole`` on one line."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, title in enumerate(header):
        numbers = bool(rows) and all(isinstance(row[place], int) for row in rows)
        justify: Literal["left", "right"] = "right" if numbers else "left"
        shown.add_column(title, justify=justify, overflow="fold", no_wrap=title in whole)
    for row in rows:
        shown.add_row(*(Text(printable(str(cell))) for cell in row))
    return shown


def columns(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Rows for a pipe: aligned columns below a header, nothing cut."""
    cells = [list(header), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
    return "\n".join(lines)


def labelled(rows: Sequence[Row]) -> str:
    """Names and what there is to say of each; further lines stand below the first one."""
    width = max((len(name) for name, _ in rows), default=0)
    gap = f"\n{'':{width}}  "
    return "\n".join(
        f"{name:{width}}  {gap.join(printable_lines(text).splitlines())}".rstrip() for name, text in rows
    )


def result(data: bytes) -> "RenderableType | None":
    """A result for a terminal: JSON indented and in colour; None if it is no JSON."""
    from rich.json import JSON

    try:
        return JSON(data.decode(), ensure_ascii=False)
    except (ValueError, RecursionError):
        return None


def printable(text: str) -> str:
    """Text from the network that cannot steer the terminal."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )


def printable_lines(text: str) -> str:
    """As ``printable``, with the line breaks kept."""
    return "\n".join(printable(line.replace("\t", "    ")) for line in text.splitlines())


def signature(task: "AnyTask") -> str:
    """What a caller of the task gives and gets: ``(a: int, b: int = 1) -> int``."""
    taken = task.payload.signature
    parameters = [
        parameter.replace(annotation=taken.annotations[name]) for name, parameter in taken.parameters.items()
    ]
    returned = None if taken.result is type(None) else taken.result
    return str(inspect.Signature(parameters, return_annotation=returned))


def payload_faults(errors: Sequence[dict[str, Any]], known: Sequence[str] = ()) -> str:
    """pydantic's list of errors, a line each."""
    return "\n".join(f"  {_fault(error, known)}" for error in errors)


def _fault(error: dict[str, Any], known: Sequence[str]) -> str:
    where = ".".join(str(part) for part in error.get("loc", ()))
    what = str(error.get("msg", "invalid"))
    given = error.get("input")
    match error.get("type"):
        case "extra_forbidden":
            names = f"; there are {', '.join(known)}" if known and "." not in where else ""
            what = f"there is no such parameter{names}"
        case "missing":
            what = "is missing"
        case _ if given is not None and not isinstance(given, dict | list):
            what += f", not {json.dumps(given, ensure_ascii=False)}"
        case _:
            pass
    return printable(f"{where}: {what}" if where else what)
