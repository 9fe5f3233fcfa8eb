"""The rows of the lists of ``gearflow top``: filtered and sorted. Pure."""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from gearflow.protocol.workers import WorkerInfo
from gearflow_cli.top.columns import COLUMNS, ListedWorker, Seen, TopColumn
from gearflow_cli.top.model import Choices, TopPage

RowItem: TypeAlias = Any
"""A function, a worker, a job or a server. The columns of a page know which."""

_FIRST_ORDER: Final = {
    TopPage.FUNCTIONS: "WAITING",
    TopPage.WORKERS: "NAME",
    TopPage.DEAD: "AGO",
    TopPage.SERVERS: "SERVER",
}
"""The column by which a page is sorted at first. Jobs come in the order of the server."""


class Rows(NamedTuple):
    """The rows of a page in their order."""

    items: Sequence[RowItem]
    keys: Sequence[str]
    """What distinguishes each row from the others."""

    total: int
    """The number of rows without the filter."""

    sorted_by: str
    """The title of the column, or empty."""


def rows_of(choices: Choices, shown: Seen) -> Rows:
    """The rows of the page that is shown, filtered and sorted."""
    page, listing = choices.page, choices.listing
    items, key = _items(page, shown)
    total = len(items)
    if listing.filter and page not in (TopPage.JOBS, TopPage.DEAD):  # the server filters those
        text = listing.filter.lower()
        items = [item for item in items if text in _text(page, item).lower()]
    orders = _orders(page)
    column = orders[listing.sort % len(orders)] if orders else None
    if column is not None and column.sort is not None:
        sort = column.sort
        items = sorted(items, key=lambda item: (sort(item, shown), key(item)), reverse=listing.inverted)
    elif listing.inverted:
        items = list(reversed(items))
    return Rows(items, [key(item) for item in items], total, column.title if column is not None else "")


def _orders(page: TopPage) -> list[TopColumn[Any] | None]:
    """The columns that can be sorted by, the one of the first order first. None: as the server has them."""
    sortable: list[TopColumn[Any] | None] = [column for column in COLUMNS[page] if column.sort is not None]
    first = _FIRST_ORDER.get(page)
    if first is None:
        return [None, *sortable]
    begin = next(place for place, column in enumerate(sortable) if column and column.title == first)
    return [*sortable[begin:], *sortable[:begin]]


def _items(page: TopPage, shown: Seen) -> tuple[Sequence[RowItem], Callable[[RowItem], str]]:
    match page:
        case TopPage.FUNCTIONS:
            return shown.fleet.functions, lambda f: f.function
        case TopPage.WORKERS:
            found = [ListedWorker(view, worker) for view in shown.fleet.distinct for worker in view.workers]
            return (
                found,
                lambda w: f"{w.server.address} {w.worker.id or w.worker.address + w.worker.client_id}",
            )
        case TopPage.JOBS | TopPage.DEAD:
            is_dead = page is TopPage.DEAD  # the list of the page before may be there still
            jobs = [each for each in shown.jobs if each.is_dead is is_dead]
            return jobs, lambda j: f"{j.server.address} {j.handle}"
        case TopPage.SERVERS:
            return shown.fleet.servers, lambda v: v.address


def _text(page: TopPage, item: RowItem) -> str:
    """The text in which a filter is looked for."""
    match page:
        case TopPage.WORKERS:
            worker: WorkerInfo = item.worker
            return " ".join((worker.client_id, worker.id, worker.address, *worker.functions))
        case TopPage.SERVERS:
            return f"{item.address} {item.kind} {item.version}"
        case _:
            return str(item.function)
