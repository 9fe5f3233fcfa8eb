"""``gearflow jobs``: lists of jobs and acts on all that match, from the shell."""

import json
import os
import re
import subprocess
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from gearflow.broker.calls import jobs
from gearflow.client import SubmitOptions, SyncClient
from gearflow.protocol.server_calls import JobInfo
from gearflow.server import JobServer
from gearflow_cli.app import app
from gearflow_cli.commands.jobs import PAGE
from tests.cli.shell import COMMAND, said_on
from tests.cli.test_dead import bury


@pytest.fixture
def address() -> Iterator[str]:
    with JobServer(port=0) as server:
        yield server.address


def run(address: str, *arguments: str, command: str = "jobs") -> tuple[int, str, str]:
    """In this process, which is faster."""
    ended = CliRunner().invoke(app, [*command.split(), *arguments, "-s", address])
    return ended.exit_code, ended.stdout, ended.stderr


def submit(address: str, function: str = "a.b", payload: bytes = b"x", delay: float | None = None) -> str:
    with SyncClient([address]) as client:
        return client.submit_background(function, payload, options=SubmitOptions(delay=delay)).handle


def listed(address: str, *arguments: str) -> list[str]:
    code, stdout, _ = run(address, "--json", *arguments)
    assert code == 0
    return [json.loads(line)["handle"] for line in stdout.splitlines()]


def state(address: str, handle: str) -> str:
    with SyncClient([address]) as client:
        info: JobInfo = client.info(handle)
        return info.state


def test_jobs_are_listed_with_their_states(address: str) -> None:
    dead, waiting, delayed = bury(address, "a.b"), submit(address), submit(address, "c.d", delay=3600)
    code, stdout, stderr = run(address)
    assert (code, stderr) == (0, "")
    header, *rows = stdout.splitlines()
    assert header.split() == ["handle", "function", "state", "attempt", "since", "about"]
    assert [row.split()[:3] for row in rows] == [
        [waiting, "a.b", "waiting"],
        [delayed, "c.d", "delayed"],
        [dead, "a.b", "expired"],
    ]
    assert rows[0].endswith("no worker offers its function")
    assert "starts in 1h" in rows[1] or "starts in 59m" in rows[1]
    assert rows[2].endswith("Expired: it had not started when its time was over")


def test_jobs_are_selected_by_options(address: str) -> None:
    dead, waiting, delayed = bury(address, "a.b"), submit(address), submit(address, "c.d", b"Meyer", 3600)
    assert listed(address, "--state", "waiting,delayed") == [waiting, delayed]
    assert listed(address, "-f", "c.d") == [delayed]
    assert listed(address, "--text", "meyer") == [delayed]
    assert listed(address, "--error", "Expired") == [dead]
    assert listed(address, "--since", "1h", "--until", "2100-01-01") == [waiting, delayed, dead]
    assert listed(address, "--until", "1h") == []
    assert run(address, "--state", "waiting", "-f", "a.b", "--text", "none")[1].split()[0] == "handle"


def test_a_list_goes_on_where_it_has_ended(address: str) -> None:
    handles = [submit(address) for _ in range(3)]
    code, stdout, stderr = run(address, "--limit", "2", "--json")
    assert code == 0
    assert [json.loads(line)["handle"] for line in stdout.splitlines()] == handles[:2]
    place = stderr.partition("--after ")[2].split()[0]
    assert listed(address, "--limit", "2", "--after", place) == handles[2:]
    assert listed(address, "--limit", "0") == handles
    assert run(address, "--after", place, "-s", "127.0.0.1:1")[0] == 2


def test_a_list_of_all_jobs_may_take_many_answers(address: str) -> None:
    with SyncClient([address]) as client:
        handles = [client.submit_background("a.b", b"").handle for _ in range(2 * PAGE + 1)]
    assert listed(address, "--limit", "0") == handles
    assert listed(address, "--limit", f"{PAGE + 7}") == handles[: PAGE + 7]


def test_json_has_the_payload_and_the_state_by_which_a_job_is_listed(address: str) -> None:
    submit(address, payload="für".encode())
    (line,) = run(address, "--json")[1].splitlines()
    shown = json.loads(line)
    assert (shown["server"], shown["listed"], shown["payload"]) == (address, "waiting", "für")


def test_all_live_jobs_that_match_are_cancelled(address: str) -> None:
    first, other, dead = submit(address), submit(address, "c.d"), bury(address, "a.b")
    code, _, stderr = run(address, "-f", "a.b", "--cancel")
    assert code == 2
    assert f"Cancel 1 job on {address}?" in stderr
    assert run(address, "-f", "a.b", "--cancel", "--yes") == (0, f"{address}: cancelled 1 job\n", "")
    assert [state(address, handle) for handle in (first, other, dead)] == ["cancelled", "waiting", "expired"]
    assert run(address, "-f", "a.b", "--cancel", "--yes")[1] == f"{address}: cancelled 0 jobs\n"
    assert run(address, "--text", "nothing", "--cancel") == (0, "no job matches\n", "")


def test_dead_letters_that_match_are_replayed_and_purged(address: str) -> None:
    one, two, three = (bury(address, "a.b", payload) for payload in (b"one", b"two", b"three"))
    assert run(address, "--text", "two", "--replay", "--yes")[1] == f"{address}: replayed 1 dead letter\n"
    assert state(address, two) == "waiting"
    assert run(address, "--text", "three", "--purge", "--yes")[1] == f"{address}: purged 1 dead letter\n"
    assert listed(address, "--state", "dead") == [one]
    assert three not in listed(address)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--state", "lost"], "'lost' is no state"),
        (["--cancel", "--purge"], "give one of --cancel, --replay and --purge"),
        (
            ["--cancel", "--state", "dead"],
            "is for jobs that are running or waiting or delayed, not dead",
        ),
        (["--replay", "--state", "waiting"], "--replay is for jobs that are dead or expired, not waiting"),
        (["--text", ""], "it is empty"),
        (["--since", "yesterday"], "is no time"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(address: str, arguments: list[str], said: str) -> None:
    code, _, stderr = run(address, *arguments)
    assert code == 2
    assert said in " ".join(stderr.replace("│", "").split())


def test_dead_letters_are_selected_by_the_same_options(address: str) -> None:
    one, two = bury(address, "a.b", b"one"), bury(address, "c.d", b"two")
    code, stdout, _ = run(address, "--text", "ONE", "--json", command="dead list")
    assert code == 0
    assert [json.loads(line)["handle"] for line in stdout.splitlines()] == [one]
    replayed = run(address, "--error", "Expired", "--text", "two", command="dead replay")
    assert replayed == (0, f"{address}: replayed 1 dead letter\n", "")
    assert state(address, two) == "waiting"
    for option, purged in (("--until", "0 dead letters"), ("--since", "1 dead letter")):
        stdout = run(address, option, "1h", "--yes", command="dead purge")[1]
        assert stdout == f"{address}: purged {purged}\n"
    assert run(address, one, "--text", "one", command="dead purge")[0] == 2


def test_a_long_search_shows_how_far_it_has_come(
    terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LOOKS", 200)
    ours, theirs = terminal
    with JobServer(port=0) as server:
        with SyncClient([server.address]) as client:
            payloads = [b"needle" if number == 700 else b"x" for number in range(900)]
            handles = [client.submit_background("a.b", payload).handle for payload in payloads]
        ended = subprocess.run(
            [*COMMAND, "jobs", "--text", "needle", "-s", server.address],
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            check=False,
        )
    said = said_on(ours, theirs)
    assert ended.returncode == 0, said
    assert handles[700] in ended.stdout.decode()
    assert re.search(rb"searched \d00 of 900 jobs", said)
