"""``gearflow limit`` and ``policy``, and what ``worker``, ``dev``, ``status`` and ``job`` say of limits."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gearflow.client import SyncClient
from gearflow.server import JobServer
from tests.cli.shell import Shell, outcome

LIMITS = """
from pydantic import BaseModel

from gearflow import Concurrency, Rate, task


class Order(BaseModel):
    customer: str
    tenant: str = ""


@task(
    name="app.sync",
    limits=[Concurrency(20), Concurrency(1, key="/customer"), Rate(100, burst=10, name="shopify")],
    fair="/tenant",
)
def sync(order: Order) -> str:
    return order.customer
"""

USES = "app.sync:concurrency, app.sync:concurrency:/customer by /customer, shopify, fair by /tenant"

MORE = """

@task(name="app.mail", limits=[Concurrency(3)])
def mail(to: str) -> None: ...
"""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Shell]:
    """A shell beside a module with limits, with a server of its own."""
    (tmp_path / "limited.py").write_text(LIMITS + MORE)
    with JobServer(port=0) as server:
        yield Shell(tmp_path, {"GEARMAN_SERVERS": server.address})


def address_of(shell: Shell) -> str:
    return shell.environment["GEARMAN_SERVERS"]


def limits(shell: Shell) -> dict[str, dict[str, Any]]:
    """The limits of the server by name."""
    (found,) = json.loads(shell.run("limit", "list", "--json").stdout)
    return {limit["name"]: limit for limit in found["limits"]}


# ------------------------------------------------------------------------------------------------ apply


def test_apply_writes_what_code_declares_once(here: Shell) -> None:
    lines = [
        "  + limit app.mail:concurrency: 3",
        "  + limit app.sync:concurrency: 20",
        "  + limit app.sync:concurrency:/customer: 1",
        "  + limit shopify: 100/m, burst 10",
        "  + function app.mail: app.mail:concurrency",
        f"  + function app.sync: {USES}",
    ]
    address = address_of(here)
    code, stdout, stderr = outcome(here.run("limit", "apply", "limited", "--dry-run"))
    assert (code, stderr) == (0, "")
    assert stdout.splitlines()[0] == f"{address}: would change"
    assert sorted(stdout.splitlines()[1:]) == sorted(lines)
    assert limits(here) == {}
    assert outcome(here.run("limit", "apply", "limited"))[1].splitlines()[0] == f"{address}: changed"
    assert outcome(here.run("limit", "apply", "limited")) == (0, f"{address}: nothing to change\n", "")
    assert {name: limit["text"] for name, limit in limits(here).items()} == {
        "app.mail:concurrency": "3",
        "app.sync:concurrency": "20",
        "app.sync:concurrency:/customer": "1",
        "shopify": "100/m, burst 10",
    }


def test_prune_removes_what_the_same_modules_declared_before(here: Shell, tmp_path: Path) -> None:
    (tmp_path / "others.py").write_text(
        MORE.replace("app.mail", "other.mail").replace(
            "\n\n", "from gearflow import Concurrency, task\n\n", 1
        )
    )
    for module in ("limited", "others"):
        assert here.run("limit", "apply", module).returncode == 0
    (tmp_path / "limited.py").write_text(LIMITS.replace("Rate(100", "Rate(50"))
    code, stdout, _ = outcome(here.run("limit", "apply", "limited"))
    assert (code, stdout.splitlines()[1:]) == (0, ["  ~ limit shopify: 100/m, burst 10 -> 50/m, burst 10"])
    ended = here.run("limit", "apply", "limited", "--prune", "--json")
    (answer,) = json.loads(ended.stdout)
    assert answer["server"] == address_of(here)
    removed = {(change["kind"], change["name"], change["change"]) for change in answer["changes"]}
    assert removed == {("limit", "app.mail:concurrency", "removed"), ("function", "app.mail", "removed")}
    assert "other.mail:concurrency" in limits(here)


def test_limits_that_contradict_each_other_are_refused(here: Shell, tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(
        LIMITS + MORE.replace("Concurrency(3)", 'Concurrency(3, name="shopify")')
    )
    code, _, stderr = outcome(here.run("limit", "apply", "twice"))
    assert code == 78
    assert "'app.sync' and 'app.mail' declare different limits of the name 'shopify'" in stderr
    assert limits(here) == {}


def test_a_server_that_is_not_gearflows_is_78(here: Shell, gearmand: str) -> None:
    for arguments in (["apply", "limited"], ["set", "shopify", "50/m"], ["list"]):
        code, stdout, stderr = outcome(here.run("limit", *arguments, GEARMAN_SERVERS=gearmand))
        assert (code, stdout) == (78, "")
        assert "as only gearflow's own server does" in stderr


def test_tasks_shows_the_limits_that_code_declares(here: Shell) -> None:
    shown = here.run("tasks", "limited", "--explain").stdout.decode().splitlines()
    assert "  limits   20, 1 by /customer, shopify 100/m, burst 10" in shown
    assert "  fair     /tenant" in shown
    assert "  limits   3" in shown
    sync, _ = json.loads(here.run("tasks", "limited", "--json").stdout)
    assert sync["options"] == {
        "limits": "20, 1 by /customer, shopify 100/m, burst 10",
        "fair": "/tenant",
    }


# --------------------------------------------------------------------------------- without a deployment


def test_an_operator_changes_a_limit_until_it_is_unset(here: Shell) -> None:
    here.run("limit", "apply", "limited")
    changed = f"{address_of(here)}: changed\n"
    ended = here.run("limit", "set", "shopify", "50/m")
    assert outcome(ended) == (0, f"{changed}  ~ limit shopify: 100/m, burst 10 -> 50/m, burst 10\n", "")
    assert here.run("limit", "set", "sync:concurrency", "7").returncode == 0  # the start may be left out
    assert here.run("limit", "pause", "shopify").returncode == 0
    rows = {row.split()[0]: row for row in here.run("limit", "list").stdout.decode().splitlines()}
    assert rows["shopify"].split()[1:4] == ["50/m,", "burst", "10"]
    assert "yes" in rows["shopify"].split()
    assert rows["app.sync:concurrency"].split()[1:3] == ["7", "20"]
    applied = here.run("limit", "apply", "limited")
    assert outcome(applied)[1] == f"{address_of(here)}: nothing to change\n"
    assert limits(here)["shopify"]["text"] == "50/m, burst 10"
    for command in ("resume", "unset"):
        assert here.run("limit", command, "shopify").returncode == 0
    shopify = limits(here)["shopify"]
    assert (shopify["text"], shopify["paused"], shopify["override"]) == ("100/m, burst 10", False, None)


def test_a_limit_that_there_is_not_is_named_with_the_nearest(here: Shell) -> None:
    here.run("limit", "apply", "limited")
    code, _, stderr = outcome(here.run("limit", "set", "shopfy", "50/m"))
    assert code == 66
    assert "there is no limit shopfy; did you mean shopify?" in stderr
    code, _, stderr = outcome(here.run("limit", "set", "shopify", "fast"))
    assert code == 2
    assert "'fast' is no limit: write a number of jobs at once such as 20, or a rate" in stderr
    code, _, stderr = outcome(here.run("limit", "set", "shopify", "20"))
    assert code == 69
    assert "give a rate such as 50/m" in stderr


def test_what_was_set_survives_a_restart(tmp_path: Path) -> None:
    (tmp_path / "limited.py").write_text(LIMITS)
    for turn in range(2):
        with JobServer(port=0, data=tmp_path / "data") as server:
            shell = Shell(tmp_path, {"GEARMAN_SERVERS": server.address})
            if not turn:
                shell.run("limit", "apply", "limited")
                shell.run("limit", "set", "shopify", "50/m")
                shell.run("policy", "set", "resize", "--limit", "4")
            else:
                assert limits(shell)["shopify"]["text"] == "50/m, burst 10"
                assert limits(shell)["resize:policy"]["text"] == "4"
                assert b"resize" in shell.run("policy", "list").stdout


def test_code_changes_limits_too(here: Shell) -> None:
    here.run("limit", "apply", "limited")
    with SyncClient([address_of(here)]) as client:
        client.limits.set("shopify", "50/m", burst=2)
        client.limits.pause("app.sync:concurrency")
        assert {limit.name: limit.text for limit in client.limits.list(function="app.sync").limits} == {
            "app.sync:concurrency": "20",
            "app.sync:concurrency:/customer": "1",
            "shopify": "50/m, burst 2",
        }
        (paused,) = client.limits.list("app.sync:concurrency").limits
        assert paused.paused
        client.limits.resume("app.sync:concurrency")
        client.limits.unset("shopify")
    assert not any(limit["paused"] or limit["override"] for limit in limits(here).values())


# ----------------------------------------------------------------------------------------------- policies


def test_a_policy_is_set_shown_and_unset(here: Shell) -> None:
    address = address_of(here)
    arguments = ["--retries", "5", "--keep", "7d", "--limit", "20", "--timeout", "60s"]
    code, stdout, stderr = outcome(here.run("policy", "set", "img.resize", *arguments))
    assert (code, stdout) == (0, f"{address}: img.resize: retries 5, keep 7d, limit 20, timeout 1m\n")
    assert "no worker offers img.resize now" in stderr
    assert here.run("policy", "set", "img.resize", "--limit", "7").returncode == 0
    header, row = here.run("policy", "list").stdout.decode().splitlines()
    assert header.split() == ["function", "retries", "keep", "limit", "timeout", "workers"]
    assert row.split() == ["img.resize", "5", "7d", "7", "1m", "0"]
    (shown,) = json.loads(here.run("policy", "list", "--json").stdout)
    (policy,) = shown["policies"]
    assert (policy["function"], policy["policy"]["keep"]) == ("img.resize", 604800)
    assert limits(here)["img.resize:policy"]["text"] == "7"
    ended = here.run("policy", "unset", "img.resize")
    assert outcome(ended) == (0, f"{address}: removed the policy of img.resize\n", "")
    code, _, stderr = outcome(here.run("policy", "unset", "img.resize"))
    assert code == 66
    assert "there is no policy for img.resize" in stderr


def test_a_policy_of_nothing_is_a_usage_error(here: Shell) -> None:
    code, _, stderr = outcome(here.run("policy", "set", "img.resize"))
    assert code == 2
    assert "give at least one of --retries, --keep, --limit and --timeout" in stderr
    assert here.run("policy", "set", "img.resize", "--timeout", "0").returncode == 2


# -------------------------------------------------------------------------------------- worker, dev, status


DIFFER = "gearflow limit apply limited"


def test_a_worker_warns_of_limits_that_the_server_does_not_have(here: Shell) -> None:
    with here.start("worker", "limited") as worker:
        line = worker.until(DIFFER)
        assert "app.sync" in line
        assert address_of(here) in line
        worker.drain()
        assert (
            b"app.sync: a worker declares limits that the server does not have" in here.run("status").stderr
        )
        here.run("limit", "apply", "limited")
        ended = here.run("status")
        assert ended.stderr == b""
        here.run("limit", "set", "shopify", "50/m")  # the code still agrees
        assert here.run("status").stderr == b""
    (row,) = (line for line in ended.stdout.decode().splitlines() if line.startswith("app.sync"))
    assert "20, 1 by /customer, shopify 100/m, burst 10, fair by /tenant" in row


def test_a_worker_says_nothing_of_limits_that_are_applied(here: Shell) -> None:
    here.run("limit", "apply", "limited")
    with here.start("worker", "limited") as worker:
        worker.until("registered with a server")
        assert here.run("submit", "app.sync", "customer=ada").stdout == b"ada\n"
        worker.signal(15)
        _, stderr = worker.end()
    assert DIFFER not in stderr


def test_a_worker_warns_of_schedules_that_the_server_does_not_have(here: Shell, tmp_path: Path) -> None:
    text = "from gearflow import Every, task\n\n\n@task(schedule=Every(minutes=5))\ndef tidy() -> None: ...\n"
    (tmp_path / "clock.py").write_text(text)
    with here.start("worker", "clock") as worker:
        assert "clock.tidy" in worker.until("gearflow cron apply clock")
    assert here.run("cron", "apply", "clock").returncode == 0
    with here.start("worker", "clock") as worker:
        worker.until("registered with a server")
        assert here.run("submit", "clock.tidy").returncode == 0  # after the answer to what it asked before
        worker.signal(15)
        _, stderr = worker.end()
    assert "cron apply" not in stderr


def test_a_worker_warns_of_a_server_that_applies_no_limits(here: Shell, gearmand: str) -> None:
    with here.start("worker", "limited", GEARMAN_SERVERS=gearmand) as worker:
        assert gearmand in worker.until("applies no limits, as only gearflow's own server does")


def test_dev_applies_limits(here: Shell, free_ports: tuple[int, int]) -> None:
    with here.start("dev", "limited", "-p", str(free_ports[0]), "--no-reload") as dev:
        dev.until("limits: + limit shopify: 100/m, burst 10")
        dev.until("registered with a server")
        dev.drain()
        there = Shell(here.directory, {"GEARMAN_SERVERS": f"127.0.0.1:{free_ports[0]}"})
        assert limits(there)["shopify"]["text"] == "100/m, burst 10"


# ------------------------------------------------------------------------------------- why a job waits


def reasons(shell: Shell, handle: str) -> tuple[str, str]:
    """Why a job waits, as ``job`` and ``status`` say it."""
    rows = dict(row.split(maxsplit=1) for row in shell.run("job", handle).stdout.decode().splitlines())
    (server,) = json.loads(shell.run("status", "--json").stdout)
    (function,) = (each for each in server["functions"] if each["name"] == "app.sync")
    assert rows["state"].startswith("waiting; ")
    return rows["state"].removeprefix("waiting; "), function["waits_for"]


def test_job_and_status_say_why_a_job_waits(here: Shell) -> None:
    here.run("limit", "apply", "limited")
    one, two = (
        here.run("submit", "--bg", "app.sync", f"customer={name}").stdout.decode().strip() for name in "ab"
    )
    assert reasons(here, one) == ("no worker offers its function", "no worker")
    here.run("limit", "pause", "shopify")
    here.run("limit", "set", "shopify", "1/h", "--burst", "1")
    with here.start("worker", "limited") as worker:
        worker.until("registered with a server")
        worker.drain()
        assert reasons(here, one) == ("the limit shopify is paused", "shopify: paused")
        here.run("limit", "resume", "shopify")
        assert here.run("result", one).stdout == b"a\n"
        of_job, of_function = reasons(here, two)
        assert of_job.startswith(("shopify: 1/h, next in 59 min", "shopify: 1/h, next in 1 h"))
        assert of_function.startswith(("shopify: 1/h, next in 59 min", "shopify: 1/h, next in 1 h"))
        here.run("pause", "app.sync")
        assert reasons(here, two) == ("its function is paused", "paused")
        here.run("resume", "app.sync")
        here.run("limit", "unset", "shopify")
        assert here.run("result", two).stdout == b"b\n"
    table = here.run("status").stdout.decode().splitlines()
    assert "waits for" not in table[0]
