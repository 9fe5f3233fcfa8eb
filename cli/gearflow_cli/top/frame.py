"""What ``gearflow top`` draws: as many lines as the terminal has rows, and none is too wide. Pure.

Colours only repeat what the words say. The selected row has a mark in front of it and is inverted.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from gearflow_cli.output import briefly, shortened
from gearflow_cli.text import printable
from gearflow_cli.top.columns import COLUMNS, Seen, TopColumn, count, rate, span
from gearflow_cli.top.model import PAGES, Choices, ListChoice, TopPage
from gearflow_cli.top.rows import RowItem, Rows, rows_of

_GAP: Final = 2
_APART: Final = "   "
_MARK: Final = "> "
_AROUND: Final = 8
"""Lines that are no rows of the list."""

_NAME: Final = 32
"""Letters of a name for which columns are left out that have a ``drop`` of ``_LESS`` or more."""

_LESS: Final = 4

_BROAD: Final = 64
"""Columns from which on the names of the lists are whole."""

_WRAPPER: Final = Console(width=80)
"""Breaks lines. It prints nothing."""

_KEYS: Final = {
    TopPage.FUNCTIONS: "enter jobs  p pause/resume  x purge",
    TopPage.WORKERS: "enter more  p quiet/resume",
    TopPage.JOBS: "enter more  c cancel",
    TopPage.DEAD: "enter more  r replay  R replay all  x purge",
    TopPage.SERVERS: "enter more",
}

_HELP: Final = """\
1 to 5, tab     the lists: functions, workers, jobs, dead letters, servers
up, down        select a row, also k, j, page up, page down, home, end, g, G
enter           the jobs of a function, or all about the row
esc             back: close a text, drop the filter, show jobs of all functions
/               show only rows with a text, for jobs also in payload and error
s, S            sort by the next or the previous column
i               the other way round
space           look at the servers now

p               pause or resume a function, make a worker quiet or resume it
x               cancel the waiting jobs of a function, purge a dead letter
c               cancel a job
r, R            replay a dead letter; replay all that match the filter
q               quit

Rates are those since the look before. P50 and P99 are times of runs. FAILED/S
counts jobs that failed, expired or are dead letters, and repeated runs. Only
gearflow's servers have counts. A - stands for what a server does not tell."""

_EMPTY: Final = {
    TopPage.FUNCTIONS: "No function is known here. A worker makes its functions known, and so does a job.",
    TopPage.WORKERS: "No worker is connected. Start one with 'gearflow worker MODULE'.",
    TopPage.JOBS: "No job waits, runs or is delayed.",
    TopPage.DEAD: "No dead letters. Jobs that fail for good are here.",
    TopPage.SERVERS: "No servers.",
}


def frame(choices: Choices, shown: Seen | None, width: int, height: int) -> list[Text]:
    """The lines of the screen. Notes in the choices which rows are visible."""
    choices.rows = max(1, height - _AROUND)
    lines = [_head(choices, shown, width), _sums(shown, width), _tabs(choices, width)]
    if choices.help:
        lines += _covering("Keys", _HELP.splitlines(), 0, choices.rows + 3)
    elif choices.opened is not None:
        opened = choices.opened
        text = [piece for line in opened.lines for piece in _wrapped(printable(line), width)]
        opened.length = len(text)
        opened.offset = max(0, min(opened.offset, opened.length - choices.rows - 1))
        lines += _covering(opened.title, text or ["..."], opened.offset, choices.rows + 3)
    elif shown is None:
        lines += _covering("", ["Looking at the servers ..."], 0, choices.rows + 3)
    else:
        lines += _list(choices, shown, width)
    lines += [_message(choices, shown), _foot(choices)]
    lines += [Text()] * (height - len(lines))
    return [_fitted(line, width) for line in lines[: max(0, height - 2)] + lines[len(lines) - 2 :]][:height]


def _fitted(line: Text, width: int) -> Text:
    if line.cell_len > width:
        line = line.copy()
        line.truncate(width)
    return line


# ------------------------------------------------------------------------------------------ the top lines


def _head(choices: Choices, shown: Seen | None, width: int) -> Text:
    line = Text("gearflow top", "bold")
    if shown is None:
        return line
    views = shown.fleet.servers
    names = ", ".join(printable(view.address) for view in views)
    if len(names) > width // 2:
        names = f"{len(views)} servers"
    line.append(f"  {names}", "")
    away = len(shown.fleet.away)
    if away:
        line.append(f"  {away} away" if len(views) > 1 else "  away", "bold red")
    clock = datetime.fromtimestamp(shown.now).astimezone().strftime("%H:%M:%S")
    line.append(" " * max(2, width - line.cell_len - len(clock)))
    line.append(clock)
    return line


def _sums(shown: Seen | None, width: int) -> Text:
    """The sums over all servers. The least important ones are left out if there is no room."""
    if shown is None:
        return Text()
    functions = shown.fleet.functions
    waiting = sum(sum(function.waiting) for function in functions)
    running = sum(function.running for function in functions)
    parts: list[tuple[int, str, str]] = [  # in their order: how important it is (0: most), text, style
        (0, f"{count(waiting)} waiting", ""),
        (0, f"{count(running)} running", "green" if running else ""),
    ]
    if any(view.counted for view in shown.fleet.distinct):
        delayed, dead = sum(function.delayed for function in functions), shown.fleet.dead
        oldest = max((each.oldest for each in functions if each.oldest is not None), default=None)
        parts.append((3, f"{count(delayed)} delayed", ""))
        parts.append((2, f"{count(dead)} dead", "red" if dead else ""))
        if oldest is not None:
            parts.append((5, f"oldest {span(oldest)}", ""))
        if shown.activities is not None:
            each = shown.activities.values()
            failed = sum(one.lost + one.retried for one in each)
            parts.append((4, f"{rate(sum(one.submitted for one in each))} in/s", ""))
            parts.append((1, f"{rate(sum(one.ended for one in each))} ended/s", ""))
            parts.append((1, f"{rate(failed)} failed/s", "red" if failed else ""))
    for importance in (5, 4, 3, 2, 1):
        if sum(len(text) + len(_APART) for _, text, _ in parts) - len(_APART) > width:
            parts = [part for part in parts if part[0] != importance]
    return Text(_APART).join(Text(text, style) for _, text, style in parts)


def _tabs(choices: Choices, width: int) -> Text:
    line = Text()
    for number, page in enumerate(PAGES, 1):
        name = str(page) if width >= _BROAD else page[:4]
        is_here = page is choices.page
        line.append(f"[{number} {name}]" if is_here else f" {number} {name} ", "bold" if is_here else "dim")
    return line


def _wrapped(line: str, width: int) -> list[str]:
    """A line in pieces that fit."""
    if cell_len(line) <= width:
        return [line]
    return [str(piece).rstrip() for piece in Text(line).wrap(_WRAPPER, max(1, width))]


def _covering(title: str, text: Sequence[str], offset: int, rows: int) -> list[Text]:
    """A text in the place of the list."""
    room = rows - 1 if len(text) - offset < rows else rows - 2  # without or with a line about the rest
    visible = text[offset : offset + room]
    below = len(text) - offset - len(visible)
    lines = [Text(printable(title), "bold"), *(Text(printable(line)) for line in visible)]
    if below > 0:
        lines.append(Text(f"{below} more lines below", "dim"))
    return lines + [Text()] * (rows - len(lines))


# ---------------------------------------------------------------------------------------------- the list


def _list(choices: Choices, shown: Seen, width: int) -> list[Text]:
    rows = rows_of(choices, shown)
    listing = choices.listing
    choices.total = len(rows.items)
    _follow(listing, rows, choices.rows)
    visible = range(listing.offset, min(listing.offset + choices.rows, len(rows.items)))
    columns = [
        column
        for column in COLUMNS[choices.page]
        if shown.several or column.title != "SERVER" or choices.page is TopPage.SERVERS
    ]
    cells = {
        place: [printable(column.cell(rows.items[place], shown)) for column in columns] for place in visible
    }
    widths = _widths(columns, list(cells.values()), width - len(_MARK))
    lines = [_header(columns, widths, rows, listing)]
    lines += [
        _row(
            rows.items[place],
            cells[place],
            columns,
            widths,
            shown,
            width,
            selected=place == listing.index,
        )
        for place in visible
    ]
    if not rows.items:
        lines.append(Text(_none(choices, rows), "dim"))
    lines += [Text()] * (choices.rows + 1 - len(lines))
    lines.append(_about(choices, rows, shown))
    lines.append(Text(_where(choices, rows, shown), "dim"))
    return lines


def _follow(listing: ListChoice, rows: Rows, room: int) -> None:
    """Find the selected row again, and scroll so that it is visible."""
    last = max(0, len(rows.items) - 1)
    if listing.key and listing.key in rows.keys:
        listing.index = rows.keys.index(listing.key)
    listing.index = max(0, min(listing.index, last))
    if listing.key is not None and rows.keys:
        listing.key = rows.keys[listing.index]
    listing.offset = max(
        min(listing.offset, listing.index, max(0, last + 1 - room)), listing.index - room + 1, 0
    )


def selected(choices: Choices, shown: Seen) -> RowItem | None:
    """The selected row."""
    rows = rows_of(choices, shown)
    return rows.items[min(choices.listing.index, len(rows.items) - 1)] if rows.items else None


def _widths(columns: Sequence[TopColumn[Any]], cells: Sequence[Sequence[str]], room: int) -> dict[str, int]:
    """The widths of the columns that are shown, by title."""
    longest = {
        column.title: max((cell_len(row[place]) for row in cells), default=0)
        for place, column in enumerate(columns)
    }
    kept = list(columns)

    def least() -> int:
        return sum(_least(column) for column in kept) + _GAP * (len(kept) - 1)

    for column in sorted((column for column in columns if column.drop), key=lambda column: -column.drop):
        # Whole names are worth more than the columns that are the first to go.
        wish = min(longest[columns[0].title], _NAME) - _least(columns[0]) if column.drop >= _LESS else 0
        if least() + max(0, wish) > room:
            kept.remove(column)
    widths = {column.title: _least(column) for column in kept}
    left = room - least()
    for column in kept:
        if not column.flexible:
            more = max(0, min(longest[column.title] - widths[column.title], left))
            widths[column.title] += more
            left -= more
    flexible = [column.title for column in kept if column.flexible]
    while left > 0 and (short := [title for title in flexible if widths[title] < longest[title]]):
        share = max(1, left // len(short))
        for title in short:
            more = min(share, left, longest[title] - widths[title])
            widths[title] += more
            left -= more
    if left > 0 and flexible:
        widths[flexible[0]] += left  # so that the columns do not move with the names
    return widths


def _least(column: TopColumn[Any]) -> int:
    return max(column.width, len(column.title))


def _header(
    columns: Sequence[TopColumn[Any]], widths: dict[str, int], rows: Rows, listing: ListChoice
) -> Text:
    line = Text(" " * len(_MARK))
    for place, column in enumerate(column for column in columns if column.title in widths):
        width = widths[column.title]
        title = column.title.rjust(width) if column.right else column.title.ljust(width)
        line.append(" " * _GAP if place else "")
        line.append(title, "bold underline" if column.title == rows.sorted_by else "bold")
    return line


def _row(
    item: RowItem,
    cells: Sequence[str],
    columns: Sequence[TopColumn[Any]],
    widths: dict[str, int],
    shown: Seen,
    width: int,
    *,
    selected: bool,
) -> Text:
    line = Text(_MARK if selected else " " * len(_MARK))
    first = True
    for column, cell in zip(columns, cells, strict=True):
        if column.title not in widths:
            continue
        line.append("" if first else " " * _GAP)
        first = False
        text = shortened(cell, widths[column.title])
        room = widths[column.title] - cell_len(text)
        padded = " " * room + text if column.right else set_cell_size(text, widths[column.title])
        line.append(padded, "" if selected else column.style(item, shown))
    if selected:
        line.append(" " * max(0, width - line.cell_len))
        line.stylize("reverse")
    return line


def _none(choices: Choices, rows: Rows) -> str:
    if choices.listing.filter:
        return f"  Nothing matches {choices.listing.filter!r}. esc shows all."
    return f"  {_EMPTY[choices.page]}"


def _about(choices: Choices, rows: Rows, shown: Seen) -> Text:
    """What else there is to say of the selected function."""
    if choices.page is not TopPage.FUNCTIONS or not rows.items:
        return Text()
    function = rows.items[choices.listing.index]
    views = shown.fleet.of(function.function)
    parts = [function.function]
    high, normal, low = function.waiting
    if high or low:
        parts.append(f"waiting {high:,} high, {normal:,} normal, {low:,} low")
    limits = list(
        dict.fromkeys(text for view in views for text in view.limit_texts.limits(function.function))
    )
    if limits:
        parts.append(f"limits {', '.join(limits)}")
    if shown.several:
        parts.append(f"on {', '.join(view.address for view in views)}")
    return Text(printable("   ".join(parts)))


def _where(choices: Choices, rows: Rows, shown: Seen) -> str:
    """Which rows are visible, of how many, and in what order."""
    listing = choices.listing
    number = len(rows.items)
    first, last = listing.offset + 1, min(listing.offset + choices.rows, number)
    more = " and more" if choices.page in (TopPage.JOBS, TopPage.DEAD) and shown.more else ""
    parts = [f"{first} to {last} of {number:,}{more}"] if number else []
    if choices.page in (TopPage.JOBS, TopPage.DEAD) and choices.function is not None:
        parts.append(f"of {choices.function}")
    if listing.filter and not choices.typing:
        parts.append(f"with {listing.filter!r}")
    if choices.page in (TopPage.JOBS, TopPage.DEAD) and shown.searched:
        parts.append(shown.searched)
    if rows.sorted_by:
        parts.append(f"by {rows.sorted_by.lower()}{', the other way round' if listing.inverted else ''}")
    return printable("  ".join(parts))


# --------------------------------------------------------------------------------------- the last lines


def _message(choices: Choices, shown: Seen | None) -> Text:
    if choices.question is not None:
        return Text(f"{printable(choices.question.text)} [y/N]", "bold yellow")
    if choices.typing:
        return Text(f"/{printable(choices.listing.filter)}_", "bold")
    if choices.message:
        return Text(printable(choices.message), "bold red" if choices.is_error else "bold")
    if shown is not None:
        for view in shown.fleet.away:
            since = f", since {briefly(view.away_since)}" if view.away_since is not None else ""
            return Text(printable(f"{view.address} {view.complaint}: {view.error}{since}"), "bold red")
        for view in shown.fleet.distinct:
            for reason in view.faults.values():
                return Text(printable(f"{view.address}: {reason}"), "bold yellow")
    return Text()


def _foot(choices: Choices) -> Text:
    if choices.question is not None:
        keys = "y yes  any other key no"
    elif choices.typing:
        keys = "enter keep the filter  esc drop it"
    elif choices.help:
        keys = "any key back"
    elif choices.opened is not None:
        keys = "esc back  up, down scroll  " + _KEYS[choices.page].partition("  ")[2]
    else:
        keys = f"? help  q quit  / filter  s sort  {_KEYS[choices.page]}"
    return Text(keys, "dim")
