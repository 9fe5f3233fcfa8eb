"""Limits and policies hold at the next server, too, however this one ends."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol.limits import (
    LIMIT,
    LIMITS,
    POLICY,
    FunctionLimits,
    LimitOverride,
    LimitRequest,
    LimitsRequest,
    LimitUse,
    LimitValue,
    Policy,
    PolicyRequest,
)
from gearflow.protocol.server_calls import INFO, InfoRequest, RetryPlan
from tests.crash.caller import Caller
from tests.crash.faults import Fault
from tests.crash.ledger import Ledger
from tests.crash.nest import Nest
from tests.crash.test_full_disk import answer
from tests.crash.test_pauses import end
from tests.server.wire import Wire

DECLARED = LimitRequest(
    action="apply",
    origin="shop",
    limits={"shopify": LimitValue(count=1)},
    functions={"sync": FunctionLimits(limits=(LimitUse(limit="shopify"),))},
)


def limits(caller: Caller) -> list[tuple[str, str, bool]]:
    found = caller.ask(LIMITS, LimitsRequest())
    return [
        (each["name"], each.get("text", ""), each.get("paused", False)) for each in found.get("limits", ())
    ]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_set_holds_for_the_next_server(nest: Nest, tmp_path: Path, how: signal.Signals) -> None:
    data, ledger = tmp_path / "data", Ledger(tmp_path / "runs")
    server = nest.start(data)
    with Caller(server.port, ledger) as caller:
        assert len(caller.ask(LIMIT, DECLARED)["changes"]) == 2
        override = LimitOverride(count=2)
        caller.ask(LIMIT, LimitRequest(action="set", name="shopify", value=override))
        policy = Policy(retries=RetryPlan(delays=(3600.0,)), limit=1)
        caller.ask(POLICY, PolicyRequest(action="set", function="mail", policy=policy))
        assert limits(caller) == [("mail:policy", "1", False), ("shopify", "2", False)]
    end(server, how)
    server = nest.start(data)
    with Caller(server.port, ledger) as caller, Wire(server.port) as client, Wire(server.port) as worker:
        assert limits(caller) == [("mail:policy", "1", False), ("shopify", "2", False)]
        client.send(*[p.SubmitJobBg(b"sync", b"", b"x")] * 3)
        handles = [client.handle() for _ in range(3)]
        worker.send(p.CanDo(b"sync"))
        assert answer(worker, p.GrabJob()) == p.JobAssign(handles[0], b"sync", b"x")
        assert answer(worker, p.GrabJob()) == p.JobAssign(handles[1], b"sync", b"x")
        assert answer(worker, p.GrabJob()) == p.NoJob()  # the operator's limit of two
        worker.send(p.CantDo(b"sync"), p.CanDo(b"mail"))
        client.send(p.SubmitJobBg(b"mail", b"", b"x"))
        handle = client.handle()
        assert answer(worker, p.GrabJob()) == p.JobAssign(handle, b"mail", b"x")
        worker.send(p.WorkFail(handle))
        assert answer(worker, p.GrabJob()) == p.NoJob()
        info = caller.ask(INFO, InfoRequest(handle=handle.decode()))
        assert info["state"] == "delayed"  # the retries of the policy
        caller.ask(LIMIT, LimitRequest(action="unset", name="shopify"))
        caller.ask(POLICY, PolicyRequest(action="unset", function="mail"))
    end(server, how)
    server = nest.start(data)
    with Caller(server.port, ledger) as caller:
        assert limits(caller) == [("shopify", "1", False)]
    end(server, how)


def test_slots_are_counted_from_the_jobs_that_run(nest: Nest, tmp_path: Path) -> None:
    """A server that was killed leaves no slot behind."""
    data, ledger = tmp_path / "data", Ledger(tmp_path / "runs")
    server = nest.start(data)
    with Caller(server.port, ledger) as caller, Wire(server.port) as worker:
        caller.ask(LIMIT, DECLARED)
        worker.send(p.SubmitJobBg(b"sync", b"", b"x"))
        handle = worker.handle()
        worker.send(p.CanDo(b"sync"))
        assert answer(worker, p.GrabJob()) == p.JobAssign(handle, b"sync", b"x")
        server.kill()
    server = nest.start(data)
    with Wire(server.port) as worker:
        worker.send(p.CanDo(b"sync"))
        assert answer(worker, p.GrabJob()) == p.JobAssign(handle, b"sync", b"x")
        assert answer(worker, p.GrabJob()) == p.NoJob()
    server.stop()


def test_a_limit_that_could_not_be_written_is_written_when_it_is_applied_again(
    nest: Nest, tmp_path: Path
) -> None:
    server = nest.start(tmp_path / "data", Fault("write", 2, "refused", 2))  # the group, and each of it
    with Caller(server.port, Ledger(tmp_path / "runs")) as caller:
        fault = caller.ask(LIMIT, DECLARED)
        assert fault["type"] == "gearflow:store"
        assert "a part is missing, so send it again" in str(fault["message"])
        assert limits(caller) == [("shopify", "", False)]  # the function uses it, and it is not there
        (change,) = caller.ask(LIMIT, DECLARED)["changes"]
        assert change["name"] == "shopify"
        assert limits(caller) == [("shopify", "1", False)]
    server.stop()
