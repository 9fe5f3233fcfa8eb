"""The text protocol: lines -> commands, tables and answers byte for byte as gearmand's."""

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.errors import RemoteProtocolError, ServerError
from gearflow.protocol import admin
from gearflow.protocol.admin import (
    END,
    CancelJob,
    Command,
    CommandRefused,
    CreateFunction,
    DropFunction,
    FunctionPriorities,
    FunctionStatus,
    GetPid,
    JobRow,
    MaxQueue,
    PriorityStatus,
    ShowJobs,
    ShowUniqueJobs,
    ShowWorkers,
    Status,
    Verbose,
    Version,
    WorkerRow,
    parse_command,
    parse_jobs,
    parse_ok,
    parse_priority_status,
    parse_status,
    parse_workers,
)
from gearflow.protocol.constants import REQ
from gearflow.protocol.framing import TEXT, FrameBuffer
from tests import strategies

COMMANDS: dict[bytes, Command] = {
    b"status": Status(),
    b"prioritystatus": PriorityStatus(),
    b"workers": ShowWorkers(),
    b"version": Version(),
    b"getpid": GetPid(),
    b"verbose": Verbose(),
    b"show jobs": ShowJobs(),
    b"show unique jobs": ShowUniqueJobs(),
    b"cancel job H:host:1": CancelJob(b"H:host:1"),
    b"create function Resize": CreateFunction(b"Resize"),
    b"drop function Resize": DropFunction(b"Resize"),
    b"maxqueue f": MaxQueue(b"f", None, None, None),
    b"maxqueue f 5": MaxQueue(b"f", 5, 5, 5),
    b"maxqueue f 1 2": MaxQueue(b"f", 1, 2, None),
    b"maxqueue f 1 2 3": MaxQueue(b"f", 1, 2, 3),
    b"maxqueue f 0": MaxQueue(b"f", None, None, None),
    b"maxqueue f -1 4 none": MaxQueue(b"f", None, 4, None),
    b"maxqueue f 12abc": MaxQueue(b"f", 12, 12, 12),
}

UNKNOWN = b"ERR UNKNOWN_COMMAND Unknown+server+command"
INCOMPLETE = b"ERR INVALID_ARGUMENTS An+incomplete+set+of+arguments+was+sent+to+this+command+"

REFUSALS: dict[bytes, bytes] = {
    b"": UNKNOWN + b"\r\n",
    b" status": UNKNOWN + b"\r\n",
    b"FooBar x": UNKNOWN + b"FooBar\r\n",
    b"status\tx y": UNKNOWN + b"status\tx\r\n",
    b"stat": UNKNOWN + b"stat\r\n",
    b"show": UNKNOWN + b"show\r\n",
    b"show unique": b"ERR UNKNOWN_SHOW_ARGUMENTS\r\n",
    b"show jobs now": b"ERR UNKNOWN_SHOW_ARGUMENTS\r\n",
    b"cancel": UNKNOWN + b"cancel\r\n",
    b"cancel job": UNKNOWN + b"cancel\r\n",
    b"cancel task H:1": b"ERR UNKNOWN_ERROR\r\n",
    b"cancel job H:1 H:2": b"ERR UNKNOWN_ERROR\r\n",
    b"maxqueue": INCOMPLETE + b"maxqueue\r\n",
    b"create": INCOMPLETE + b"create\r\n",
    b"create function": INCOMPLETE + b"create\r\n",
    b"create task f": INCOMPLETE + b"create\r\n",
    b"DROP function": INCOMPLETE + b"drop\r\n",
    b"shutdown graceful": UNKNOWN + b"shutdown\r\n",
}

names = strategies.names.map(lambda name: name.translate(None, b"\r\n"))
words = names.map(lambda name: name.replace(b" ", b""))
numbers = st.integers(0, 0xFFFF_FFFF)
client_ids = names.filter(lambda name: b" :" not in b" " + name)


def lines_of(answer: bytes) -> list[bytes]:
    """The rows of a table as a client sees them."""
    frames = list(FrameBuffer(REQ).feed(answer))
    assert all(kind == TEXT for kind, _ in frames)
    *rows, end = [body for _, body in frames]
    assert end == END
    return rows


@pytest.mark.parametrize(("line", "command"), COMMANDS.items())
def test_a_command_is_known_in_any_case_and_with_blanks_behind_it(line: bytes, command: Command) -> None:
    assert parse_command(line) == command
    assert parse_command(line.replace(b" ", b"  ") + b"   ") == command
    word, blank, rest = line.partition(b" ")
    assert parse_command(word.upper() + blank + rest) == command


@pytest.mark.parametrize(("line", "answer"), REFUSALS.items())
def test_a_line_that_is_no_command_is_refused_as_by_gearmand(line: bytes, answer: bytes) -> None:
    assert parse_command(line) == CommandRefused(answer)


def test_words_behind_a_command_without_arguments_are_ignored() -> None:
    assert parse_command(b"status of all the jobs") == Status()


@pytest.mark.parametrize("line", [b"status a b c d e", b"nonsense a b c d e", b"maxqueue f 1 2 3 4"])
def test_a_sixth_word_is_the_peers_fault(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="more than 5 words"):
        parse_command(line)


@given(st.binary() | st.lists(st.sampled_from([*COMMANDS, b"", b"\t", b"-1"]), max_size=3).map(b" ".join))
def test_garbage_is_refused_or_is_the_peers_fault(line: bytes) -> None:
    try:
        command = parse_command(line)
    except RemoteProtocolError:
        return
    if isinstance(command, CommandRefused):
        assert command.answer.startswith(b"ERR ")
        assert command.answer.endswith(b"\r\n")


def test_a_number_of_a_thousand_digits_is_only_a_high_limit() -> None:
    command = parse_command(b"maxqueue f " + b"9" * 8000)
    assert isinstance(command, MaxQueue)
    assert command.high is not None


def test_the_tables_are_gearmands_byte_for_byte() -> None:
    assert admin.render_status([FunctionStatus(b"f", 3, 1, 2)]) == b"f\t3\t1\t2\n.\n"
    assert admin.render_priority_status([FunctionPriorities(b"f", 1, 2, 3, 4)]) == b"f\t1\t2\t3\t4\n.\n"
    assert (
        admin.render_workers(
            [
                WorkerRow(37, "127.0.0.1", b"-", ()),
                WorkerRow(38, "::1", b"an id", (b"new", b"old")),
                WorkerRow(39, "127.0.0.1", b"", (b"",)),
            ]
        )
        == b"37 127.0.0.1 - :\n38 ::1 an id : new old\n39 127.0.0.1  : \n.\n"
    )
    assert admin.render_jobs([JobRow(b"H:1", 2, True, False)]) == b"H:1\t2\t1\t0\n.\n"
    assert admin.render_uniques([b"u", b""]) == b"u\n\n.\n"
    assert admin.render_status([]) == b".\n"


def test_the_single_answers_are_gearmands_byte_for_byte() -> None:
    assert admin.render_version("1.2") == b"OK 1.2\n"
    assert admin.render_pid(17) == b"OK 17\n"
    assert admin.render_log_level("INFO") == b"OK INFO\n"
    assert admin.OK == b"OK\r\n"
    assert admin.UNKNOWN_JOB == b"ERR UNKNOWN_JOB\r\n"
    assert admin.UNKNOWN_FUNCTION == b"ERR function not found\r\n"
    assert admin.FUNCTION_IN_USE == b"ERR there are still connected workers or executing clients\r\n"


@given(st.lists(st.builds(FunctionStatus, names, numbers, numbers, numbers)))
def test_status_survives_render_and_parse(rows: list[FunctionStatus]) -> None:
    assert parse_status(lines_of(admin.render_status(rows))) == rows


@given(st.lists(st.builds(FunctionPriorities, names, numbers, numbers, numbers, numbers)))
def test_priority_status_survives_render_and_parse(rows: list[FunctionPriorities]) -> None:
    assert parse_priority_status(lines_of(admin.render_priority_status(rows))) == rows


@given(st.lists(st.builds(JobRow, names, numbers, st.booleans(), st.booleans())))
def test_show_jobs_survives_render_and_parse(rows: list[JobRow]) -> None:
    assert parse_jobs(lines_of(admin.render_jobs(rows))) == rows


@given(
    st.lists(
        st.builds(
            WorkerRow,
            numbers,
            st.sampled_from(["127.0.0.1", "::1", "-"]),
            client_ids,
            st.lists(words).map(tuple),
        )
    )
)
def test_workers_survives_render_and_parse_also_with_blanks_in_ids(rows: list[WorkerRow]) -> None:
    assert parse_workers(lines_of(admin.render_workers(rows))) == rows


def test_a_line_end_in_a_name_does_not_make_two_rows() -> None:
    rows = lines_of(admin.render_workers([WorkerRow(1, "::1", b"two\r\nlines", (b"f",))]))
    assert rows == [rb"1 ::1 two\r\nlines : f"]


def test_lines_that_are_no_rows_are_skipped() -> None:
    """gearmand writes the newline in a function's name as it is."""
    assert parse_status([b"two", b"lines\t1\t0\t2", b"f\t0\t0\t1"]) == [
        FunctionStatus(b"lines", 1, 0, 2),
        FunctionStatus(b"f", 0, 0, 1),
    ]
    assert parse_workers([b"37 127.0.0.1 - : two", b"lines", b"38 127.0.0.1 - :"]) == [
        WorkerRow(37, "127.0.0.1", b"-", (b"two",)),
        WorkerRow(38, "127.0.0.1", b"-", ()),
    ]


@pytest.mark.parametrize("parse", [parse_status, parse_priority_status, parse_jobs, parse_workers])
@given(line=st.binary(max_size=40) | st.just(b"f" + b"\t" + b"9" * 5000))
def test_an_answer_without_any_row_is_the_peers_fault(
    parse: Callable[[Iterable[bytes]], list[object]], line: bytes
) -> None:
    try:
        parse([line])
    except RemoteProtocolError as error:
        assert "is not a row" in str(error)  # noqa: PT017  (a line that happens to be a row is right)


def test_an_ok_gives_what_follows_it() -> None:
    assert parse_ok(b"OK 1.1.21+ds") == "1.1.21+ds"
    assert parse_ok(b"OK") == ""


def test_an_err_is_the_servers_error_with_its_text_unfolded() -> None:
    with pytest.raises(ServerError) as caught:
        parse_ok(REFUSALS[b"maxqueue"].rstrip())
    assert caught.value.code == "INVALID_ARGUMENTS"
    assert caught.value.text == "An incomplete set of arguments was sent to this command maxqueue"


@given(st.binary(max_size=40))
def test_any_other_answer_is_the_peers_fault(line: bytes) -> None:
    try:
        parse_ok(line)
    except (RemoteProtocolError, ServerError):
        pass
    else:
        assert line.startswith(b"OK")
