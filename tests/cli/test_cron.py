"""``gearflow cron`` with a real server in a process of its own, and ``gearflow dev``, which applies too."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gearflow import Every
from gearflow.client import SyncClient
from tests.cli.shell import Shell, outcome

TASKS = """
from gearflow import Context, Cron, Every, task


@task(schedule=Cron("30 2 * * *", tz="Europe/Berlin"))
def nightly() -> str:
    return "done"


@task(schedule=[Every(hours=1, args={"pages": 3}), Cron("*/30 2 * * *", tz="Europe/Berlin")], keep=60)
def report(pages: int = 1) -> int:
    return pages
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The user's module."""
    (tmp_path / "shop.py").write_text(TASKS)
    return tmp_path / "shop.py"


@pytest.fixture
def shell(shop: Path, free_ports: tuple[int, int]) -> Iterator[Shell]:
    """A shell beside the module, with a server in a process of its own that stores its jobs."""
    port = str(free_ports[0])
    shell = Shell(shop.parent, {"GEARMAN_SERVERS": f"127.0.0.1:{port}"})
    with shell.start("server", "-p", port, "--data", str(shop.parent / "jobs")) as server:
        server.until("listens on")
        server.drain()
        yield shell


def good(shell: Shell, *arguments: str) -> str:
    """What a command says on stdout."""
    code, stdout, stderr = outcome(shell.run("cron", *arguments))
    assert code == 0, stderr
    return stdout


def bad(shell: Shell, *arguments: str) -> str:
    """What a command says on stderr that is used in a wrong way."""
    code, _, stderr = outcome(shell.run("cron", *arguments))
    assert code == 2, stderr
    return stderr


def states(shell: Shell) -> dict[str, str]:
    """The states of the schedules by name."""
    _, *rows = good(shell, "list").splitlines()
    return {row.split("  ")[0]: row.rpartition("  ")[2] for row in rows}


def test_what_tasks_declare_is_applied_once_and_shown_as_a_difference(shell: Shell, shop: Path) -> None:
    expected = """\
+ shop.nightly  30 2 * * * Europe/Berlin
+ shop.report  every 1h
+ shop.report#2  */30 2 * * * Europe/Berlin
"""
    assert good(shell, "apply", "shop", "--dry-run") == f"{expected}would set 3, delete 0, 0 unchanged\n"
    assert states(shell) == {}
    code, stdout, stderr = outcome(shell.run("cron", "apply", "shop"))
    assert (code, stdout) == (0, f"{expected}set 3, deleted 0, 0 unchanged\n")
    about, again = stderr.splitlines()
    assert "shop.report#2 (*/30 2 * * * Europe/Berlin): daylight saving time: it does not run at 20" in about
    assert "it runs twice at 20" in again
    assert good(shell, "apply", "shop") == "set 0, deleted 0, 3 unchanged\n"

    shop.write_text(TASKS.replace('"30 2 *', '"30 3 *').replace("keep=60", "keep=90"))
    assert good(shell, "apply", "shop").splitlines() == [
        "~ shop.nightly  30 2 * * * Europe/Berlin -> 30 3 * * * Europe/Berlin",
        "~ shop.report  keep: 60.0 -> 90.0",
        "~ shop.report#2  keep: 60.0 -> 90.0",
        "set 3, deleted 0, 0 unchanged",
    ]


def test_prune_deletes_only_what_these_modules_declared_before(shell: Shell, shop: Path) -> None:
    (shop.parent / "blog.py").write_text(
        "from gearflow import Every, task\n\n@task(schedule=Every(days=1))\ndef weekly() -> None: ...\n"
    )
    good(shell, "apply", "shop")
    good(shell, "apply", "blog")
    with SyncClient([shell.environment["GEARMAN_SERVERS"]]) as client:
        client.schedules.put("by-hand", "f", Every(hours=1))
    shop.write_text(TASKS.replace('@task(schedule=Cron("30 2 * * *", tz="Europe/Berlin"))', "@task"))
    assert good(shell, "apply", "shop") == "set 0, deleted 0, 2 unchanged\n"
    assert good(shell, "apply", "shop", "--prune", "--dry-run").splitlines() == [
        "- shop.nightly  30 2 * * * Europe/Berlin",
        "would set 0, delete 1, 2 unchanged",
    ]
    line = json.loads(good(shell, "apply", "shop", "--prune", "--json"))
    assert line["removed"] == ["shop.nightly"]
    assert states(shell).keys() == {"blog.weekly", "by-hand", "shop.report", "shop.report#2"}


def test_a_schedule_is_listed_shown_paused_and_deleted(shell: Shell) -> None:
    good(shell, "apply", "shop")
    assert states(shell) == {
        "shop.nightly": "no worker",
        "shop.report": "no worker",
        "shop.report#2": "no worker",
    }
    with shell.start("worker", "shop") as worker:
        worker.until("registered with a server")
        assert states(shell)["shop.nightly"] == "active"
    assert good(shell, "pause", "nightly") == "paused shop.nightly\n"
    assert states(shell)["shop.nightly"] == "paused"
    assert good(shell, "resume", "nightly").startswith("resumed shop.nightly; the next time is 20")
    shown = good(shell, "show", "report")
    assert "shop.report, which no worker offers" in shown
    assert '{"pages":3}' in shown
    assert json.loads(good(shell, "show", "report", "--json"))["schedule"]["when"]["every"] == 3600
    rows = [json.loads(line) for line in good(shell, "list", "--json").splitlines()]
    assert [row["schedule"]["name"] for row in rows] == ["shop.nightly", "shop.report", "shop.report#2"]
    assert good(shell, "delete", "report#2") == "deleted report#2\n"
    assert states(shell).keys() == {"shop.nightly", "shop.report"}
    assert "did you mean 'shop.nightly'" in bad(shell, "show", "nihgtly")


def test_next_shows_local_and_utc_times_with_what_clocks_do(shell: Shell) -> None:
    good(shell, "apply", "shop")
    header, *rows = good(shell, "next", "nightly", "-n", "400").splitlines()
    assert header.split() == ["Europe/Berlin", "UTC", "note"]
    assert len(rows) == 400
    moved, *_ = [row for row in rows if row.endswith("clocks skip 02:30: it runs at 03:00")]
    assert " 03:00:00+02:00  " in moved
    assert " 01:00:00  " in moved
    times = [
        json.loads(line) for line in good(shell, "next", "report#2", "-n", "1000", "--json").splitlines()
    ]
    assert {time["mark"] for time in times} == {"", "dropped", "first", "second"}
    assert all((time["unix"] is None) == (time["mark"] == "dropped") for time in times)
    header, *rows = good(shell, "next", "report").splitlines()
    assert header.split() == ["local", "UTC"]
    assert len(rows) == 5


def test_jobs_are_made_now_and_for_the_past(shell: Shell) -> None:
    good(shell, "apply", "shop")
    handle = good(shell, "trigger", "report").strip()
    made = good(shell, "backfill", "nightly", "--from", "2026-11-01T00:00Z", "--to", "2026-11-03T12:00Z")
    assert made == "made 3 jobs of nightly\n"
    again = good(
        shell, "backfill", "nightly", "--from", "2026-11-01T00:00Z", "--to", "2026-11-04T12:00Z", "--json"
    )
    assert json.loads(again)["jobs"] == 1
    assert json.loads(again)["joined"] == 3
    with shell.start("worker", "shop") as worker:
        worker.until("registered with a server")
        assert outcome(shell.run("result", handle))[:2] == (0, "3\n")


def test_a_tick_runs_on_a_worker(shell: Shell, shop: Path) -> None:
    shop.write_text(
        TASKS
        + """

@task(schedule=Every(seconds=1))
def tick(ctx: Context) -> None:
    print("tick of", ctx.scheduled_at, flush=True)
"""
    )
    good(shell, "apply", "shop")
    with shell.start("worker", "shop") as worker:
        first, second = worker.output(), worker.output()
    assert first.startswith("tick of 20")
    assert first.endswith("+00:00")
    assert first != second


def test_a_schedule_that_makes_no_call_is_refused(shell: Shell, shop: Path) -> None:
    shop.write_text(TASKS.replace("pages: int = 1", "pages: int"))
    code, _, stderr = outcome(shell.run("cron", "apply", "shop"))
    assert code != 0
    assert "missing a required argument: 'pages'" in stderr
    shop.write_text(TASKS.replace("Europe/Berlin", "Europe/Berln"))
    code, _, stderr = outcome(shell.run("cron", "apply", "shop"))
    assert code != 0
    assert "no such time zone" in stderr


def test_dev_applies_by_itself(shop: Path, free_ports: tuple[int, int]) -> None:
    shell = Shell(shop.parent)
    address = f"127.0.0.1:{free_ports[0]}"
    with shell.start("dev", "shop", "-p", str(free_ports[0])) as dev:
        dev.until("schedule + shop.nightly  30 2 * * * Europe/Berlin")
        dev.until("registered with a server")
        beside = Shell(shop.parent, {"GEARMAN_SERVERS": address})
        assert states(beside)["shop.nightly"] == "active"
        shop.write_text(TASKS.replace('@task(schedule=Cron("30 2 * * *", tz="Europe/Berlin"))', "@task"))
        dev.until("schedule - shop.nightly")
        dev.drain()
        dev.signal(signal.SIGINT)
        dev.process.wait(20)


def test_a_worker_does_not_apply(shell: Shell) -> None:
    with shell.start("worker", "shop") as worker:
        worker.until("registered with a server")
        assert states(shell) == {}


def test_gearmand_has_no_schedules(shop: Path, gearmand: str) -> None:
    shell = Shell(shop.parent, {"GEARMAN_SERVERS": gearmand})
    for command in (["apply", "shop"], ["list"], ["pause", "x"]):
        code, _, stderr = outcome(shell.run("cron", *command))
        assert code != 0
        assert "gearflow server" in stderr
