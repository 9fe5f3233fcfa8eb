"""``gearflow dead``: what failed for good, from the shell."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from typer.testing import CliRunner

from gearflow.client import JobFailed, SubmitOptions, SyncClient
from gearflow.protocol import packets as p
from gearflow.protocol.server_calls import DEAD, DeadRequest, JobInfo, Letters
from gearflow.server import JobServer
from gearflow.testing.peer import ScriptedServer
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
    lines = run("dead", "list", "--json", "-s", address)[1].splitlines()
    return [json.loads(line)["handle"] for line in lines]


def test_a_job_that_raised_is_listed_with_why(served: Shell, module: str) -> None:
    handle = served.run("submit", "--bg", "divide", "a=1", "b=0").stdout.decode().strip()
    served.run("result", handle)
    header, *rows = served.run("dead", "list", "--function", "divide").stdout.decode().splitlines()
    assert header.split() == ["handle", "function", "state", "attempt", "deaths", "ended", "error"]
    (row,) = [row for row in rows if row.startswith(f"{handle} ")]
    assert row.split()[1:5] == [f"{module}.divide", "raised", "1", "0"]
    assert row.endswith("ZeroDivisionError: float division by zero")


def test_the_environment_does_not_say_which_letters_are_meant(own: Shell, address: str) -> None:
    handle = bury(address, "a.b")
    own = Shell(own.directory, own.environment | {"GEARFLOW_FUNCTION": "c.*", "GEARFLOW_ALL": "1"})
    assert handle in own.run("dead", "list").stdout.decode()
    for command in ("replay", "purge"):
        code, _, stderr = outcome(own.run("dead", command))
        assert code == 2
        assert "say which dead letters" in stderr
    assert outcome(own.run("dead", "purge", handle, "--yes")) == (0, f"purged {handle}\n", "")


@pytest.mark.parametrize(
    ("name", "said"), [("", "it is empty"), ("a\udcff", "is not UTF-8")], ids=["empty", "not UTF-8"]
)
def test_a_name_that_is_none_is_a_usage_error(name: str, said: str) -> None:
    for command in (
        ["dead", "list", "-f", name],
        ["dead", "replay", "-f", name],
        ["dead", "show", name],
        ["job", name],
        ["pause", name],
    ):
        code, _, stderr = run(*command)
        assert code == 2
        assert said in stderr


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
    assert (shown["server"], shown["handle"], shown["state"]) == (address, resize, "expired")
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
    assert listed(address) == [handle.handle for handle in handles]  # the oldest first
    lines = run("dead", "list", "-s", address)[1].splitlines()
    assert [line.split()[0] for line in lines] == ["handle", *(handle.handle for handle in handles)]
    assert run("dead", "purge", "--all", "--yes", "-s", address)[1] == f"{address}: purged 201 dead letters\n"
    assert listed(address) == []


async def test_letters_are_printed_as_they_come(own: Shell) -> None:
    letters = [
        JobInfo(handle=f"H:a-0badcafe:{number}", function="f", state="raised", submitted=1.0)
        for number in range(1, 101)
    ]
    async with ScriptedServer(timeout=30) as server, anyio.create_task_group() as tasks:
        tasks.start_soon(_tell_some_and_die, server, letters)
        command = partial(own.run, "dead", "list", "--json", "-s", server.address)
        code, stdout, stderr = outcome(await anyio.to_thread.run_sync(command))
        printed = [json.loads(line)["handle"] for line in stdout.splitlines()]
        assert printed == [letter.handle for letter in letters]
        assert code != 0
        assert server.address in stderr


async def _tell_some_and_die(server: ScriptedServer, letters: list[JobInfo]) -> None:
    """Answer the first question for letters, and hang up when the next ones are asked for."""
    async with await server.accept() as peer:
        await peer.shake_hands(gearflow=True)
        await peer.expect(p.SubmitJob(DEAD, b"", DeadRequest(action="list").to_wire()))
        page = Letters(letters=tuple(letters)).to_wire()
        await peer.send(p.JobCreated(b"H:a:1"), p.WorkComplete(b"H:a:1", page))
        request = DeadRequest(action="list", after=letters[-1].handle)
        await peer.expect(p.SubmitJob(DEAD, b"", request.to_wire()))
        await server.stop_listening()


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


@pytest.mark.parametrize("act", [["show"], ["replay"], ["purge"], ["purge", "--yes"]], ids=" ".join)
def test_a_letter_that_is_not_there_is_66(address: str, act: list[str]) -> None:
    with SyncClient([address]) as client:
        waiting = client.submit_background("img.resize", b"").handle
    code, stdout, stderr = run("dead", *act, waiting, "-s", address)
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


@pytest.mark.parametrize("act", [["list"], ["replay"], ["purge"], ["purge", "--yes"]], ids=" ".join)
def test_the_name_of_no_function_is_told_with_those_like_it(address: str, act: list[str]) -> None:
    handle = bury(address, "img.resize")
    with SyncClient([address]) as client:
        client.submit_background("img.resize", b"")  # so the server knows of it
    for name in ("resise", "other"):
        code, stdout, stderr = run("dead", *act, "-f", name, "-s", address)
        assert (code, stdout) == (2, "")
        assert f"no function is named {name}, or ends in .{name}" in stderr
    code, stdout, stderr = run("dead", "replay", "-f", "img.resise", "-s", address)
    assert (code, stdout) == (0, f"{address}: replayed 0 dead letters\n")
    assert "no server knows img.resise; did you mean img.resize?" in stderr
    assert listed(address) == [handle]


def test_a_function_that_has_no_letters_is_no_mistake(address: str) -> None:
    with SyncClient([address]) as client:
        client.submit_background("img.resize", b"")
    assert run("dead", "replay", "-f", "resize", "-s", address) == (
        0,
        f"{address}: replayed 0 dead letters\n",
        "",
    )
