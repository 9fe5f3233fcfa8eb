"""C's ``gearman`` tool calls the functions that gearflow's own server answers itself."""

import json
import subprocess
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from gearflow.client import SyncClient
from gearflow.client.operate import dead_letters
from tests.interop.conftest import Start

Gearman: TypeAlias = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def gearman(program: Callable[[str], str], bundled: str) -> Gearman:
    """``gearman("gearflow:info", '{"handle": ...}')``: the tool, to its end."""
    host, _, port = bundled.rpartition(":")

    def run(name: str, workload: str | bytes) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [program("gearman"), "-h", host, "-p", port, "-f", name],
            input=workload.encode() if isinstance(workload, str) else workload,
            capture_output=True,
            timeout=60,
            check=False,
        )

    return run


def answer(ended: "subprocess.CompletedProcess[bytes]") -> Any:
    """What the server said, which has to be JSON."""
    assert (ended.returncode, ended.stderr) == (0, b"")
    return json.loads(ended.stdout)


def test_the_server_says_what_it_is(gearman: Gearman) -> None:
    told = answer(gearman("gearflow:info", ""))
    assert told["version"].startswith("gearflow-")
    assert "gearflow:result" in told["functions"]


def test_a_kept_result_is_had_by_handle_and_by_unique(
    gearman: Gearman, start: Start, bundled: str, fresh: Callable[..., str]
) -> None:
    function, key = fresh(), fresh("key")
    host, _, port = bundled.rpartition(":")
    start("gearman", "-h", host, "-p", port, "-w", "-f", function, "--", "cat")
    with SyncClient([bundled]) as client:
        handle = client.submit_background(function, b"\0\xffmeow", unique=key).handle
    for job in ({"handle": handle}, {"function": function, "unique": key}):
        ended = gearman("gearflow:result", json.dumps(job))  # waits, if need be
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"\0\xffmeow", b"")
        told = answer(gearman("gearflow:info", json.dumps(job)))
        assert (told["handle"], told["function"], told["state"]) == (handle, function, "completed")


def test_a_failed_job_fails_the_tool(gearman: Gearman, start: Start, bundled: str, function: str) -> None:
    host, _, port = bundled.rpartition(":")
    start("gearman", "-h", host, "-p", port, "-w", "-f", function, "--", "false")
    with SyncClient([bundled]) as client:
        handle = client.submit_background(function, b"").handle
    ended = gearman("gearflow:result", json.dumps({"handle": handle}))
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert answer(gearman("gearflow:info", json.dumps({"handle": handle})))["state"] == "failed"


def test_a_job_can_be_submitted_with_options(gearman: Gearman, bundled: str, function: str) -> None:
    options = json.dumps({"function": function, "detached": True, "delay": 3600, "priority": "low"})
    handle = answer(gearman("gearflow:submit", options.encode() + b"\nany\0bytes"))["handle"]
    told = answer(gearman("gearflow:info", json.dumps({"handle": handle})))
    assert (told["state"], told["priority"], told["size"]) == ("delayed", "low", 9)
    assert answer(gearman("gearflow:cancel", json.dumps({"handle": handle}))) == {"jobs": 1}
    told = answer(gearman("gearflow:info", json.dumps({"handle": handle})))
    assert told["state"] == "cancelled"


def test_dead_letters_can_be_read_and_replayed(
    gearman: Gearman, start: Start, bundled: str, function: str
) -> None:
    host, _, port = bundled.rpartition(":")
    worker = start("gearman", "-h", host, "-p", port, "-w", "-c", "1", "-f", function, "--", "false")
    with SyncClient([bundled]) as client:
        handle = client.submit_background(function, b"cat.png").handle
        assert gearman("gearflow:result", json.dumps({"handle": handle})).returncode == 1
        worker.wait(timeout=60)  # it does one job
        (letter,) = answer(gearman("gearflow:dead", json.dumps({"action": "list", "function": function})))[
            "letters"
        ]
        assert (letter["handle"], letter["state"]) == (handle, "failed")
        shown = answer(gearman("gearflow:dead", json.dumps({"action": "show", "handle": handle})))
        assert shown["text"] == "cat.png"
        done = answer(gearman("gearflow:dead", json.dumps({"action": "replay", "handle": handle})))
        assert done == {"jobs": 1}
        assert client.run(lambda client: dead_letters(client, function)) == ()
        assert client.info(handle).state == "waiting"


@pytest.mark.parametrize(
    ("name", "workload", "said"),
    [
        ("gearflow:info", "{", "the request cannot be read: Invalid JSON"),
        ("gearflow:result", '{"handel": "H:x:1"}', "handel"),
        ("gearflow:result", '{"handle": "H:x:1"}', "H:x:1 is no handle of this server's"),
        ("gearflow:nothing", "{}", "there is no reserved function gearflow:nothing; there are gearflow:"),
    ],
)
def test_what_goes_wrong_is_told_in_words(gearman: Gearman, name: str, workload: str, said: str) -> None:
    ended = gearman(name, workload)
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert said in ended.stderr.decode()
