"""``gearflow dead``: what failed for good, from the shell."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gearflow.client import JobFailed, SubmitOptions, SyncClient
from gearflow.server import JobServer
from gearflow_cli.app import app
from tests.cli.shell import Shell, outcome


def bury(address: str, function: str, workload: bytes = b"x") -> str:
    """The handle of a job that has expired."""
    with SyncClient([address]) as client:
        handle = client.submit_background(function, workload, options=SubmitOptions(expires=0))
        with pytest.raises(JobFailed):
            client.result(handle, timeout=30)
        return handle.handle


@pytest.fixture
def address(own: Shell) -> str:
    return own.environment["GEARMAN_SERVERS"]


def run(*arguments: str) -> tuple[int, str, str]:
    """In this process, which is faster."""
    ended = CliRunner().invoke(app, list(arguments))
    return ended.exit_code, ended.stdout, ended.stderr


def listed(address: str) -> list[str]:
    return [letter["handle"] for letter in json.loads(run("dead", "list", "--json", "-s", address)[1])]


def test_a_job_that_raised_is_listed_with_why(served: Shell, module: str) -> None:
    handle = served.run("submit", "--bg", "divide", "a=1", "b=0").stdout.decode().strip()
    served.run("result", handle)
    header, *rows = served.run("dead", "list", "--function", "divide").stdout.decode().splitlines()
    assert header.split() == ["handle", "function", "state", "attempts", "ended", "error"]
    (row,) = [row for row in rows if row.startswith(f"{handle} ")]
    assert row.split()[1:4] == [f"{module}.divide", "raised", "1"]
    assert row.endswith("ZeroDivisionError: float division by zero")


def test_a_letter_is_shown_with_payload_and_traceback(served: Shell, module: str) -> None:
    handle = served.run("submit", "--bg", "divide", '{"a": 1, "b": 0}').stdout.decode().strip()
    served.run("result", handle)
    code, stdout, stderr = outcome(served.run("dead", "show", handle))
    assert (code, stderr) == (0, "")
    assert f"function    {module}.divide" in stdout
    assert "return a / b" in stdout
    assert stdout.endswith('payload:\n\n{"a": 1, "b": 0}\n')
    letter = json.loads(served.run("dead", "show", handle, "--json").stdout)
    assert json.loads(letter["text"]) == {"a": 1, "b": 0}
    assert letter["job"]["failure"]["type"] == "ZeroDivisionError"


def test_a_replayed_letter_runs_again(own: Shell, address: str, module: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    with own.start("worker", module) as worker:
        worker.until("registered")
        handle = own.run("submit", "--bg", "--unique", "k", "read", f"path={file}").stdout.decode().strip()
        assert own.run("result", handle).returncode == 1
        assert listed(address) == [handle]
        file.write_text("it is there now")
        assert outcome(own.run("dead", "replay", handle)) == (0, f"replayed {handle}\n", "")
        assert outcome(own.run("result", "--unique", "k", "read")) == (0, "it is there now\n", "")
    assert listed(address) == []


def test_payloads_that_are_no_text_are_shown_as_python_writes_them(address: str) -> None:
    handle = bury(address, "img.resize", b"\0\xff\x1b[31m")
    assert run("dead", "show", handle, "-s", address)[1].endswith("payload:\n\nb'\\x00\\xff\\x1b[31m'\n")


def test_letters_are_chosen_by_function(address: str) -> None:
    resize, crop = bury(address, "img.resize"), bury(address, "img.crop")
    shown = json.loads(run("dead", "list", "--function", "resize", "--json", "-s", address)[1])
    assert [(letter["server"], letter["handle"], letter["state"]) for letter in shown] == [
        (address, resize, "expired")
    ]
    assert run("dead", "purge", "--yes", "--function", "img.resize", "-s", address) == (
        0,
        f"{address}: purged 1 dead letter\n",
        "",
    )
    assert listed(address) == [crop]
    code, stdout, _ = run("dead", "replay", "--function", "resize", "-s", address)
    assert (code, stdout) == (0, f"{address}: replayed 0 dead letters\n")
    code, stdout, _ = run("dead", "replay", "--function", "crop", "-s", address)
    assert (code, stdout) == (0, f"{address}: replayed 1 dead letter\n")


def test_more_letters_than_one_answer_holds_are_all_there(address: str) -> None:
    with SyncClient([address]) as client:
        handles = [
            client.submit_background("img.resize", b"", options=SubmitOptions(expires=0)) for _ in range(201)
        ]
        for handle in handles:
            with pytest.raises(JobFailed):
                client.result(handle, timeout=30)
    assert sorted(listed(address)) == sorted(handle.handle for handle in handles)
    assert run("dead", "purge", "--all", "--yes", "-s", address)[1] == f"{address}: purged 201 dead letters\n"
    assert listed(address) == []


def test_letters_of_several_servers_are_listed_with_their_server(address: str) -> None:
    with JobServer(port=0) as other:
        here, there = bury(address, "img.resize"), bury(other.address, "img.resize")
        code, stdout, _ = run("dead", "list", "-s", address, "-s", other.address)
        assert code == 0
        assert [line.split()[:2] for line in stdout.splitlines()[1:]] == [
            [address, here],
            [other.address, there],
        ]
        # it is found wherever it is
        assert run("dead", "purge", there, "--yes", "-s", address, "-s", other.address)[0] == 0
        assert listed(other.address) == []
        assert listed(address) == [here]


@pytest.mark.parametrize("act", ["show", "replay", "purge"])
def test_a_letter_that_is_not_there_is_66(address: str, act: str) -> None:
    with SyncClient([address]) as client:
        waiting = client.submit_background("img.resize", b"").handle
    more = ["--yes"] if act == "purge" else []
    code, stdout, stderr = run("dead", act, waiting, *more, "-s", address)
    assert (code, stdout) == (66, "")
    assert f"there is no dead letter {waiting}" in stderr


def test_of_several_servers_the_one_that_might_have_it_decides(address: str, gearmand: str) -> None:
    """gearmand has no letters, so nothing is missed there; a server that is away may have this one."""
    with SyncClient([address]) as client:
        handle = client.submit_background("img.resize", b"").handle
    for servers, code in (
        ([gearmand, address], 66),
        ([address, gearmand], 66),
        ([address, "127.0.0.1:1"], 69),
    ):
        where = [part for server in servers for part in ("-s", server)]
        assert run("dead", "show", handle, *where)[0] == code


@pytest.mark.parametrize("act", ["replay", "purge"])
@pytest.mark.parametrize(
    "which", [[], ["H:x:1", "--all"], ["--all", "--function", "f"], ["H:x:1", "--function", "f"]]
)
def test_which_letters_are_meant_has_to_be_said(act: str, which: list[str]) -> None:
    code, _, stderr = run("dead", act, *which)
    assert code == 2
    assert "say which dead letters" in stderr


@pytest.mark.parametrize("which", ["handle", "--all"])
def test_purging_letters_is_refused_where_nobody_can_be_asked(address: str, which: str) -> None:
    handle = bury(address, "img.resize")
    code, stdout, stderr = run("dead", "purge", handle if which == "handle" else which, "-s", address)
    assert (code, stdout) == (2, "")
    assert "add --yes" in stderr
    assert listed(address) == [handle]


def test_a_function_that_the_server_has_forgotten_has_letters_all_the_same(
    address: str, fresh: Callable[..., str]
) -> None:
    handle = bury(address, "resize")  # no dot in it
    code, stdout, _ = run("dead", "list", "--function", "resize", "-s", address)
    assert code == 0
    assert handle in stdout
    assert run("dead", "list", "--function", fresh(), "-s", address)[0] == 0
