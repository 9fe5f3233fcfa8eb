"""The screens in the reference are the ones that people see, at 80 and at 120 columns."""

import io
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from rich.console import Console
from typer.testing import CliRunner

from gearflow import Cron
from gearflow.client import JobFailed, SubmitOptions, SyncClient
from gearflow.server import JobServer
from gearflow.tasks.registry import AnyTask, Registry
from gearflow_cli import output
from gearflow_cli.app import app
from tests.cli.shell import Shell
from tests.conftest import ROOT

PAGE: Final = ROOT / "docs" / "reference" / "screens.md"
WRITE: Final = "WRITE_SCREENS"
HEAD: Final = f"""# Screens

The commands print this on a terminal with 80 or 120 columns. A table that is too wide loses columns, then
the ends of sentences and the starts of names. `--wide` shows all of it, and so does a pipe. Colours show the
state: red is failed, dead or overdue, yellow is paused, quiet or cancelled, and green runs or is done.

`{WRITE}=1 pytest tests/cli/test_screens.py` writes this page.
"""
ORDERS: Final = """
from gearflow import task


class NoAddress(Exception):
    pass


@task
def add_up(prices: list[float], discount: float = 0.0) -> float:
    return sum(prices) - discount


@task(timeout=60)
def send_invoice(order: int, copies: int = 1) -> None:
    raise NoAddress(f"order {order} has no address, so nobody has received its invoice")
"""


@pytest.fixture
def handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loggers_as_before: None) -> Iterator[str]:
    """A job that failed, on a server that has a worker, other jobs and a function that is paused."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "orders.py").write_text(ORDERS)
    monkeypatch.setattr(socket, "gethostname", lambda: "jobs")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.chdir(tmp_path)
    all_tasks = Registry.tasks

    def tasks_of_the_module(registry: Registry) -> dict[str, AnyTask]:  # and not those of other tests
        return {name: each for name, each in all_tasks(registry).items() if name.startswith("shop.orders.")}

    monkeypatch.setattr(Registry, "tasks", tasks_of_the_module)
    images = "shop.images.make_thumbnail"
    with JobServer(port=0) as server, SyncClient([server.address]) as client:
        monkeypatch.setenv("GEARMAN_SERVERS", server.address)
        shell = Shell(tmp_path, {"GEARMAN_SERVERS": server.address})
        expired = client.submit_background(images, b"{}", options=SubmitOptions(expires=0))
        with pytest.raises(JobFailed):
            client.result(expired, timeout=30)
        failed = client.submit_background("shop.orders.send_invoice", b'{"order": 4711}')
        with shell.start("worker", "shop.orders") as worker:
            worker.until("registered")
            worker.drain()
            with pytest.raises(JobFailed):
                client.result(failed, timeout=30)
            for _ in range(3):
                client.submit_background(images, b"{}")
            assert CliRunner().invoke(app, ["pause", images]).exit_code == 0
            client.schedules.put(images, images, Cron("30 2 * * *", tz="Europe/Berlin"))
            client.schedules.put(
                "month-end", "shop.orders.send_invoice", Cron("0 6 1 * *"), args={"order": 1}
            )
            client.schedules.pause("month-end")
            monkeypatch.setattr(output, "is_terminal", lambda: True)
            yield failed.handle


def screen(*arguments: str, columns: int) -> str:
    """What a terminal of that width shows, with the same times and names each time."""
    ended = CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(columns)})
    assert ended.exit_code == 0, ended.output
    lines = "\n".join(line.rstrip() for line in ended.stdout.splitlines()).strip("\n")
    for pattern, fixed in (
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", "2030-12-24 18:00:00+01:00"),
        (r"(?<![\d-])\d\d:\d\d:\d\d(?!\+)", "18:00:00"),
        (r"\d{4}-\d\d-\d\d (?=18:00:00)", "2030-12-24 "),
        (r"H:jobs-[0-9a-f]{8}:", "H:jobs-5f3a91c2:"),
        (re.escape(str(Path.cwd())), "/srv"),
        (r"(?m)^(size +)\d+", r"\g<1>412"),
        (r"(?m)^(worker +)\S+", r"\1jobs:4242"),
    ):
        lines = re.sub(pattern, fixed, lines)
    assert max(map(len, lines.splitlines())) <= columns or "Traceback" in lines, arguments
    return lines


def test_the_page_has_the_screens(handle: str) -> None:
    parts = [HEAD]
    for command in (
        "--help",
        "submit --help",
        "status",
        "dead list",
        "cron list",
        f"job {handle}",
        "tasks shop.orders",
    ):
        shown = re.sub(r"H:jobs-[0-9a-f]{8}:", "H:jobs-5f3a91c2:", command)
        parts.append(f"\n## gearflow {shown}\n")
        narrow, broad = (screen(*command.split(), columns=columns) for columns in (80, 120))
        if narrow != broad:
            parts.append(f"\nWith 80 columns:\n\n```text\n{narrow}\n```\n\nWith 120 columns:\n")
        parts.append(f"\n```text\n{broad}\n```\n")
    page = "".join(parts)
    if os.environ.get(WRITE):
        PAGE.write_text(page)
    assert PAGE.read_text() == page, f"{WRITE}=1 pytest tests/cli/test_screens.py writes the page"


HEADER: Final = ["function", "state", "waiting", "deaths", "error"]
ROWS: Final[list[list[str | int]]] = [
    ["shop.images.make_thumbnail", "failed", 7, 0, "NoAddress: order 4711 has no address, so nobody has it"],
    ["shop.accounting_and_taxes.month_end_closing", "running", 12, 1, ""],
    ["x" * 90, "expired", 1, 0, f"ValueError: {'y' * 90}"],
]


def drawn(
    monkeypatch: pytest.MonkeyPatch, columns: int, *, wide: bool = False, colours: bool = False
) -> list[str]:
    """The lines of a table."""
    file = io.StringIO()
    console = Console(
        width=columns, file=file, force_terminal=colours, color_system="standard" if colours else None
    )
    monkeypatch.setattr(output, "output_console", lambda: console)
    cut = {"error": 20, "function": 16}
    output.show_table(HEADER, ROWS, cut=cut, optional=["deaths"], wide=wide)
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("columns", [60, 70, 80, 100, 120])
def test_a_table_fits_and_breaks_no_word(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    header, *rows, hint = drawn(monkeypatch, columns)
    assert hint == "--wide shows all of it"
    assert max(map(len, [header, *rows])) <= columns
    assert len(rows) == len(ROWS)
    whole = {word for row in ROWS for cell in row for word in str(cell).split()}
    names = {".".join(name.split(".")[number:]) for name in whole for number in range(name.count(".") + 1)}
    for row in rows[:2]:
        for word in row.split():
            is_cut = word.startswith("…") and columns < 80
            assert word.strip("…") in whole | names or is_cut, row


def test_a_wide_table_has_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    header, *rows = drawn(monkeypatch, 80, wide=True)
    assert header.split() == HEADER
    assert [row.split() for row in rows] == [" ".join(map(str, row)).split() for row in ROWS]


def test_columns_that_may_be_left_out_go_before_something_is_cut_too_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "deaths" in drawn(monkeypatch, 80)[0]
    assert "deaths" not in drawn(monkeypatch, 56)[0]


def test_colours_show_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(drawn(monkeypatch, 100, colours=True))
    assert "\x1b[31mfailed" in text
    assert "\x1b[32mrunning" in text
    assert not re.search(r"\x1b\[3\dm(shop|NoAddress)", text)
