"""``gearflow map`` over the bundled server and a real worker process, in pipes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import pytest

from gearflow.client import SyncAdmin, SyncClient
from tests.cli.shell import COMMAND, Shell, outcome


def lines(*values: object) -> bytes:
    return "".join(f"{json.dumps(value)}\n" for value in values).encode()


def sums(*numbers: int) -> bytes:
    return lines(*({"a": number} for number in numbers))


@contextmanager
def piped(shell: Shell, *arguments: str) -> Generator["subprocess.Popen[bytes]"]:
    """A command whose both ends are pipes of the test's."""
    with subprocess.Popen(
        [*COMMAND, "map", *arguments],
        cwd=shell.directory,
        env=os.environ | shell.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


# ------------------------------------------------------------------------------------------ what is written


def test_each_line_is_a_job_and_each_result_a_line(served: Shell) -> None:
    ended = served.run("map", "--ordered", "add", stdin=sums(*range(100)))
    assert outcome(ended) == (0, "".join(f"{n + 2}\n" for n in range(100)), "")


def test_results_come_as_jobs_end(served: Shell) -> None:
    code, stdout, _ = outcome(served.run("map", "add", stdin=sums(*range(50))))
    assert (code, sorted(map(int, stdout.split()))) == (0, list(range(2, 52)))


def test_no_lines_make_no_output(served: Shell) -> None:
    assert outcome(served.run("map", "add")) == (0, "", "")
    assert outcome(served.run("map", "add", stdin=b"\n  \n\n")) == (0, "", "")


def test_the_last_line_needs_no_end(served: Shell) -> None:
    assert outcome(served.run("map", "add", stdin=b'\n{"a": 1}\n\n{"a": 1}')) == (0, "3\n3\n", "")


def test_a_function_of_a_text_takes_lines_as_texts(served: Shell) -> None:
    code, stdout, _ = outcome(served.run("map", "--ordered", "shout", stdin=b'a "b"\n\nc'))
    assert (code, stdout) == (0, '"A \\"B\\""\n""\n"C"\n')


def test_raw_lines_go_and_come_as_they_are(served: Shell) -> None:
    ended = served.run("map", "--raw", "--ordered", "reverse", stdin=b"\xff\0b\n\nab\n")
    assert (ended.returncode, ended.stdout) == (0, b"b\0\xff\n\nba\n")


def test_a_text_that_looks_like_json_has_quotes_if_its_type_is_known(served: Shell, module: str) -> None:
    assert outcome(served.run("map", "-m", module, "shout", stdin=b"1\n")) == (0, '"1"\n', "")


def test_the_module_checks_a_line_before_it_is_sent(served: Shell, module: str) -> None:
    code, stdout, stderr = outcome(served.run("map", "-m", module, "add", stdin=b'{"a": 1}\n{"a": "x"}\n'))
    assert code == 65
    assert "line 2: " in stderr
    assert "a: Input should be a valid integer" in stderr
    assert stdout in ("", "3\n")


def test_a_line_without_a_module_has_to_be_json(served: Shell) -> None:
    code, _, stderr = outcome(served.run("map", "add", stdin=b'{"a": 1}\nnonsense\n'))
    assert code == 65
    assert "line 2: it is not JSON" in stderr
    assert "--raw" in stderr


def test_lines_may_share_jobs(served: Shell, module: str) -> None:
    ended = served.run("map", "-m", module, "--chunk", "7", "--ordered", "add", stdin=sums(*range(30)))
    assert outcome(ended) == (0, "".join(f"{n + 2}\n" for n in range(30)), "")


def test_results_are_joined_by_a_reducer(served: Shell, module: str) -> None:
    for types in ([], ["-m", module]):
        ended = served.run("map", *types, "--reduce", "sum_up", "add", stdin=sums(*range(100)))
        assert outcome(ended) == (0, f"{sum(range(2, 102))}\n", "")


def test_a_reducer_that_fails_is_named(served: Shell, module: str) -> None:
    code, stdout, stderr = outcome(
        served.run("map", "-m", module, "--reduce", "sum_up", "shout", stdin=b"a\nb\n")
    )
    assert (code, stdout) == (65, "")
    assert "numbers" in stderr


def test_handles_come_in_the_order_of_the_lines(own: Shell) -> None:
    code, stdout, _ = outcome(own.run("map", "--bg", "app.add", stdin=sums(*range(3000))))
    handles = stdout.split()
    assert (code, len(handles)) == (0, 3000)
    numbers = [int(handle.rpartition(":")[2]) for handle in handles]
    assert numbers == list(range(numbers[0], numbers[0] + 3000))
    with SyncClient([own.environment["GEARMAN_SERVERS"]]) as client:
        assert client.info(handles[-1]).state == "waiting"


def test_lines_that_cannot_be_submitted_are_reported(own: Shell, module: str) -> None:
    wrong = b'{"a": 1}\n{"a": "x"}\n{"a": 3}\n'
    code, stdout, stderr = outcome(own.run("map", "-m", module, "--bg", "add", stdin=wrong))
    assert (code, stdout.count("H:")) == (65, 1)
    assert "line 2: " in stderr
    code, stdout, stderr = outcome(
        own.run("map", "-m", module, "--bg", "--errors", "skip", "add", stdin=wrong)
    )
    assert (code, stdout.count("H:")) == (1, 2)
    assert "line 2: " in stderr
    assert "1 line was not submitted" in stderr


# ------------------------------------------------------------------------------------------ lines that fail


def test_the_first_line_that_fails_ends_it(served: Shell) -> None:
    code, _, stderr = outcome(served.run("map", "divide", stdin=lines({"a": 1, "b": 0})))
    assert code == 1
    assert "line 1: " in stderr
    assert "divide failed: ZeroDivisionError: float division by zero" in stderr
    assert "Traceback" not in stderr
    assert "Traceback" in outcome(served.run("map", "-v", "divide", stdin=lines({"a": 1, "b": 0})))[2]


@pytest.fixture
def divisions() -> bytes:
    return lines({"a": 1, "b": 1}, {"a": 1, "b": 0}, "no", {"a": 3, "b": 1})


def test_failures_may_stand_among_the_results(served: Shell, divisions: bytes) -> None:
    code, stdout, stderr = outcome(
        served.run("map", "--ordered", "--errors", "collect", "divide", stdin=divisions)
    )
    first, second, third, fourth = map(json.loads, stdout.splitlines())
    assert (code, first, fourth, stderr) == (1, 1.0, 3.0, "gearflow: 2 lines failed\n")
    assert second == {"error": {"line": 2, "type": "ZeroDivisionError", "message": "float division by zero"}}
    assert (third["error"]["line"], third["error"]["type"]) == (3, "gearflow.errors.PayloadInvalid")


def test_failures_may_be_left_out(served: Shell, divisions: bytes) -> None:
    code, stdout, stderr = outcome(
        served.run("map", "--ordered", "--errors", "skip", "divide", stdin=divisions)
    )
    assert (code, stdout) == (1, "1.0\n3.0\n")
    assert "line 2: " in stderr
    assert "line 3: " in stderr
    assert stderr.endswith("gearflow: 2 lines failed\n")


def test_many_failures_are_only_counted(served: Shell) -> None:
    code, stdout, stderr = outcome(
        served.run("map", "--errors", "skip", "divide", stdin=lines({"a": 1, "b": 0}) * 100)
    )
    assert (code, stdout) == (1, "")
    assert stderr.count("ZeroDivisionError") == 10
    assert stderr.endswith("gearflow: 100 lines failed\n")


# ------------------------------------------------------------------------------------------------- pipes


def test_a_result_is_written_before_the_next_line_comes(served: Shell) -> None:
    with piped(served, "add") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for n in range(3):
            process.stdin.write(sums(n))
            process.stdin.flush()
            assert process.stdout.readline() == b"%d\n" % (n + 2)
        process.stdin.close()
        assert process.wait(30) == 0


def test_a_reader_that_has_enough_ends_it(served: Shell) -> None:
    with piped(served, "add") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(sums(1))
        process.stdin.flush()
        assert process.stdout.readline() == b"3\n"
        process.stdout.close()
        process.stdin.write(sums(1) * 10)
        process.stdin.close()
        assert process.wait(30) == 141
        assert process.stderr.read() == b""


def test_a_stop_from_the_keyboard_cancels_what_is_in_flight(served: Shell) -> None:
    with piped(served, "until") as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(lines({"path": "/no/such/file"}))
        process.stdin.flush()
        admin = SyncAdmin(served.environment["GEARMAN_SERVERS"])
        _wait_for_runs(admin, 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == b"gearflow: stopped; jobs in flight are cancelled\n"
        _wait_for_runs(admin, 0)


def test_jobs_of_a_map_end_with_a_caller_that_is_killed(served: Shell) -> None:
    admin = SyncAdmin(served.environment["GEARMAN_SERVERS"])
    with piped(served, "until") as process:
        assert process.stdin is not None
        process.stdin.write(lines(*({"path": f"/no/such/file{n}"} for n in range(3))))
        process.stdin.flush()
        _wait_for_runs(admin, 3)
        process.kill()
        process.wait(30)
        _wait_for_runs(admin, 0)


def _wait_for_runs(client: SyncAdmin, number: int) -> None:
    """Ask until so many jobs of the task run: nothing of the killed caller is left that could say it."""
    deadline = time.monotonic() + 30
    while sum(row.running for row in client.status() if row.name.endswith(b".until")) != number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_wait_for_all_results_can_be_limited(served: Shell) -> None:
    code, stdout, stderr = outcome(
        served.run("map", "--timeout", "0.2", "until", stdin=lines({"path": "/no/such/file"}))
    )
    assert (code, stdout) == (75, "")
    assert stderr == "gearflow: not all results came within 0.2 s; jobs in flight are cancelled\n"


@pytest.mark.parametrize(("closed", "code"), [("<&-", 2), (">&-", 74), (">/dev/full", 74)])
def test_what_cannot_be_read_or_written_is_said(served: Shell, closed: str, code: int) -> None:
    command = f"echo '{{\"a\": 1}}' | {sys.executable} -m gearflow_cli map add {closed}"
    ended = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=served.directory,
        env=os.environ | served.environment,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == code
    assert ended.stderr.startswith(b"gearflow: ")


def test_workers_of_other_kinds_are_mapped_over(
    own: Shell, program: Callable[[str], str], module: str
) -> None:
    host, _, port = own.environment["GEARMAN_SERVERS"].partition(":")
    worker = [program("gearman"), "-h", host, "-p", port, "-w", "-f", "upper", "tr", "a-z", "A-Z"]
    with subprocess.Popen(worker, stderr=subprocess.DEVNULL) as process:
        try:
            ended = own.run("map", "--raw", "--ordered", "upper", stdin=b"a b\nc\n")
        finally:
            process.kill()
    assert outcome(ended) == (0, "A B\nC\n", "")


# ----------------------------------------------------------------------------------------------- misuse


def test_a_task_that_yields_is_refused_before_its_values_would_get_lost(served: Shell, module: str) -> None:
    said = "gearflow: {} yields values; gearflow submit runs it\n"
    name = f"{module}.count_up"
    for arguments in (("count_up",), ("--raw", "count_up"), ("-m", module, "count_up")):
        assert outcome(served.run("map", *arguments, stdin=b'{"to": 2}\n')) == (2, "", said.format(name))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--bg", "--ordered", "add"), "--ordered is about results"),
        (("--bg", "--reduce", "sum_up", "add"), "--reduce is about results"),
        (("--chunk", "3", "add"), "--chunk needs the task's module"),
        (("--delay", "3s", "add"), "--delay is for jobs that nobody waits for"),
        (("--errors", "collect", "--reduce", "sum_up", "add"), "take skip"),
        (("--errors", "ignore", "add"), "'ignore' is not one of"),
        (("",), "'' is no name of a task"),
        (("ad",), "did you mean"),
    ],
)
def test_options_that_make_no_sense_are_refused(served: Shell, arguments: tuple[str, ...], said: str) -> None:
    code, stdout, stderr = outcome(served.run("map", *arguments))
    assert (code, stdout) == (2, "")
    assert said in " ".join(stderr.split())


def test_the_command_line_decides_against_the_environment(served: Shell) -> None:
    ended = served.run("map", "--ordered", "add", stdin=sums(1), GEARFLOW_BG="1")
    assert outcome(ended) == (0, "3\n", "")
    ended = served.run("map", "--bg", "add", stdin=sums(1), GEARFLOW_WINDOW="3")
    assert ended.stdout.startswith(b"H:")
