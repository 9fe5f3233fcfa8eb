"""Options of a call: what is taken, what is refused, and the unique that comes of it."""

import math
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.client import JobRequest, Priority, SubmitOptions
from gearflow.errors import PayloadInvalid
from gearflow.protocol.constants import MAX_UNIQUE
from gearflow.protocol.envelope import Envelope, unwrap
from gearflow.protocol.uniques import is_fresh
from gearflow.tasks.durations import LONGEST
from gearflow.tasks.options import Options
from gearflow.tasks.retry import MOST_ATTEMPTS, Retry
from gearflow.tasks.stream_task import StreamTask
from gearflow.tasks.submission import attached, detached
from gearflow.tasks.task import Task


def add(a: int, b: int = 2) -> int:
    return a + b


def echo(data: bytes) -> bytes:
    return data


def call(*args: Any, foreign: bool = False, **options: Any) -> JobRequest:
    task: Task[[int, int], int] = Task(
        add, name="app.add", foreign=foreign, options=Options().updated(options)
    )
    return attached(task, args or (1,), {})


def background(*, keeps: float | None = None, retried: bool = False, **options: Any) -> JobRequest:
    retries = Retry() if retried else None
    task: Task[[int, int], int] = Task(
        add, name="app.add", keep=keeps, retries=retries, options=Options().updated(options)
    )
    return detached(task, (1,), {})


def asked(**options: Any) -> SubmitOptions:
    return Options().updated(options).asked


# ------------------------------------------------------------------------------------------ what is taken


def test_an_option_that_does_not_exist_is_a_type_error_that_offers_the_nearest() -> None:
    with pytest.raises(TypeError, match="did you mean 'priority'"):
        Options().updated({"priorty": "high"})
    with pytest.raises(TypeError, match="there are priority, unique"):
        Options().updated({"xyz": 1})


def test_priorities_go_by_name_or_value() -> None:
    assert call(priority="high").priority is call(priority=Priority.HIGH).priority is Priority.HIGH
    assert call().priority is Priority.NORMAL


def test_durations_are_seconds_or_timedeltas() -> None:
    assert asked(timeout=timedelta(minutes=1)).timeout == 60
    assert asked(timeout=1.5).timeout == 1.5


def test_retries_are_further_runs_or_a_retry() -> None:
    assert asked(retries=2).retries == Retry(3).to_plan()
    assert asked(retries=Retry(7)).retries == Retry(7).to_plan()
    assert asked(retries=0).retries == Retry(1).to_plan()  # none, whatever the task has


@pytest.mark.parametrize(
    "option",
    [
        {"priority": "urgent"},
        {"priority": 1},
        {"unique": ""},
        {"unique": 7},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": "1"},
        {"timeout": True},
        {"delay": -1},
        {"delay": timedelta(seconds=-1)},
        {"at": datetime(2024, 1, 1)},
        {"at": 1e9},
        {"reuse": 1},
        {"resubmit": 1},
        {"retries": -1},
        {"retries": True},
        {"delay": 1, "at": datetime.now(UTC)},
        {"lag": "drop"},
        {"stream_keep": -1},
        {"stream_keep": "a lot"},
        {"stream_keep": 1.5},
        {"stream_keep": True},
        {"stream_keep": "1025GiB"},
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        Options().updated(option, streams=True)


def test_sizes_are_bytes_or_a_text_with_a_unit() -> None:
    texts: list[Any] = [512, "512", "64KiB", "16 MiB", "1G", 0]
    read = [Options().updated({"stream_keep": text}, streams=True).asked.stream_keep for text in texts]
    assert read == [512, 512, 64 << 10, 16 << 20, 1 << 30, 0]


def tokens(text: str) -> Iterator[str]:
    yield text


def test_what_is_kept_of_a_stream_is_an_option_of_background_jobs() -> None:
    stream: StreamTask[[str], str] = StreamTask(tokens, name="app.tokens", stream_keep=512)
    assert attached(stream, ("x",), {}).options is None
    assert detached(stream, ("x",), {}).options == SubmitOptions(stream_keep=512)
    assert detached(stream.options(stream_keep="1KiB"), ("x",), {}).options == SubmitOptions(stream_keep=1024)
    with pytest.raises(ValueError, match="stream_keep= is for background jobs"):
        attached(stream.options(stream_keep=1), ("x",), {})


@pytest.mark.parametrize("option", ["delay", "expires", "keep", "timeout"])
def test_a_duration_that_the_wire_does_not_take_is_refused_with_its_limit(option: str) -> None:
    Options().updated({option: LONGEST})
    for too_long in (1e10 + 1, 10**400, timedelta.max):
        with pytest.raises(ValueError, match=rf"{option}=.*: 10000000000 seconds \(300 years\) is the most"):
            Options().updated({option: too_long})


def test_a_time_that_is_past_means_now_and_one_too_far_off_is_refused() -> None:
    assert asked(at=datetime.min.replace(tzinfo=UTC)).at == 0
    assert asked(at=datetime(5138, 1, 1, tzinfo=UTC)).at
    with pytest.raises(ValueError, match=r"at=.*the year 5138 is the latest"):
        Options().updated({"at": datetime.max.replace(tzinfo=UTC)})


def test_more_runs_than_the_server_takes_are_refused_and_the_most_of_them_fit() -> None:
    for too_many in (MOST_ATTEMPTS, 10**6, Retry(MOST_ATTEMPTS + 1)):
        with pytest.raises(ValueError, match=r"retries=.*2000 is the most; take fewer, further apart"):
            Options().updated({"retries": too_many})
    wordy = Retry(MOST_ATTEMPTS, backoff=lambda failures: math.pi / 1e5 / failures)
    options = background(retries=wordy).options
    assert options is not None
    assert options.retries is not None
    assert len(options.retries.to_wire()) < 60_000  # of the 64 KiB that the server takes


# --------------------------------------------------------------------------------- what is asked beyond


def test_without_options_the_packets_say_it_all() -> None:
    for plain in (call(), call(unique=True, priority="high"), background(), background(unique="k")):
        assert plain.options is None
        assert plain.workload == b'{"a":1,"b":2}'


def test_what_the_server_does_goes_to_the_server() -> None:
    assert background(delay=1.5, keep=3, expires=9).options == SubmitOptions(delay=1.5, keep=3, expires=9)
    assert call(keep=3, reuse=True, unique="k").options == SubmitOptions(keep=3, reuse=True)


def test_what_the_client_does_needs_no_server_of_ours() -> None:
    for asked in (call(resubmit=True).options, background(resubmit=True, unique="k").options):
        assert asked == SubmitOptions(resubmit=True)
    assert SubmitOptions(resubmit=True).is_plain


def test_what_the_worker_does_goes_to_other_servers_in_an_envelope() -> None:
    options = call(timeout=3, retries=1).options
    assert options is not None
    assert (options.timeout, options.retries) == (3, Retry(2).to_plan())
    assert unwrap(options.envelope) == (Envelope(timeout=3, retries=Retry(2).to_plan()), b"")


def test_a_worker_is_told_that_nobody_waits_if_it_is_told_anything() -> None:
    options = background(timeout=3).options
    assert options is not None
    assert unwrap(options.envelope) == (Envelope(timeout=3, detached=True), b"")
    assert background(keep=3).options == SubmitOptions(keep=3)


def test_the_tasks_own_retries_are_known_to_the_worker() -> None:
    options = background(retried=True).options
    assert options is not None
    assert options.is_plain
    assert unwrap(options.envelope) == (Envelope(detached=True), b"")


def test_the_tasks_keep_is_for_background_calls_that_say_nothing() -> None:
    assert background(keeps=60).options == SubmitOptions(keep=60)
    assert background(keeps=60, keep=0).options == SubmitOptions(keep=0)


def test_reuse_needs_a_unique() -> None:
    for make in (call, background):
        with pytest.raises(ValueError, match="give unique="):
            make(reuse=True)


# ------------------------------------------------------------------------------------------- the workload


def test_a_raw_payload_that_looks_like_an_envelope_gets_one() -> None:
    raw: Task[[bytes], bytes] = Task(echo, name="app.echo")
    assert unwrap(attached(raw, (b"\0gf1x",), {}).workload) == (Envelope(), b"\0gf1x")
    timed = attached(raw.options(timeout=3), (b"\0gf1x",), {})
    assert timed.options is not None
    assert unwrap(timed.options.envelope + timed.workload) == (Envelope(timeout=3), b"\0gf1x")
    foreign: Task[[bytes], bytes] = Task(echo, name="app.echo", foreign=True)
    assert attached(foreign, (b"\0gf1x",), {}).workload == b"\0gf1x"


def test_a_foreign_function_takes_neither_run_limit_nor_retries() -> None:
    with pytest.raises(ValueError, match=r"result\(timeout="):
        call(foreign=True, timeout=3)
    with pytest.raises(ValueError, match="call it again"):
        call(foreign=True, retries=3)
    assert call(foreign=True).workload == b'{"a":1,"b":2}'


def test_a_bad_payload_is_found_before_a_unique_is_made() -> None:
    for unique in (True, "k", False):
        with pytest.raises(PayloadInvalid):
            call("x", unique=unique)


# ------------------------------------------------------------------------------------------------- start


def test_a_start_is_a_delay_or_a_time() -> None:
    assert background(delay=timedelta(minutes=1)).options == SubmitOptions(delay=60)
    assert background(at=datetime.fromtimestamp(2000.5, UTC)).options == SubmitOptions(at=2000.5)


def test_a_delay_is_for_background_jobs() -> None:
    with pytest.raises(ValueError, match=r"delay= .*background\(\)"):
        call(delay=1)
    with pytest.raises(ValueError, match=r"at= .*background\(\)"):
        call(at=datetime.now(UTC))


# ------------------------------------------------------------------------------------------------ unique


def test_no_unique_is_none_when_attached_and_a_fresh_one_in_the_background() -> None:
    assert call().unique == call(unique=False).unique == ""
    first, second = background().unique, background().unique
    assert first != second
    assert first.isascii()
    assert 0 < len(first) <= MAX_UNIQUE


def test_true_hashes_the_validated_payload() -> None:
    assert call(1, unique=True).unique == call("1", unique=True).unique == call(1, 2, unique=True).unique
    assert call(1, unique=True).unique != call(2, unique=True).unique
    assert call(1, unique=True, timeout=3).unique == call(1, unique=True).unique
    assert background(unique=True).unique == call(unique=True).unique


def test_the_hash_of_a_payload_is_the_same_in_every_process() -> None:
    program = (
        "from gearflow.tasks import task\n"
        "@task(name='t', unique=True)\n"
        "def t(a: set[str], b: dict[str, frozenset[str]]) -> None: ...\n"
        "words = [str(n) for n in range(50)]\n"
        "print(t.prepare((set(words), {w: frozenset(words) for w in words}), {}).unique)"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_a_function_of_the_arguments_gives_the_key() -> None:
    def by_first(a: int, b: int = 0) -> str:
        return f"add-{a}"

    assert call(7, unique=by_first).unique == "add-7"
    for nothing in ("", None):
        with pytest.raises(ValueError, match=f"{nothing!r}, not a key"):
            call(unique={1: nothing}.get)


def test_a_key_goes_as_it_is_if_the_wire_can_carry_it() -> None:
    for key in ("k", "x" * MAX_UNIQUE, "grüße", "-x"):
        assert call(unique=key).unique == key


@given(st.text(min_size=1))
def test_any_key_gets_within_the_wires_limits(key: str) -> None:
    on_the_wire = call(unique=key).unique.encode()
    assert 0 < len(on_the_wire) <= MAX_UNIQUE
    assert b"\0" not in on_the_wire
    assert on_the_wire != b"-"


def test_keys_that_are_alike_in_their_first_bytes_stay_different() -> None:
    assert call(unique="x" * 64).unique != call(unique="x" * 65).unique
    assert call(unique="ü" * 32).unique != call(unique="ü" * 33).unique
    assert call(unique="a\0b").unique != call(unique="a\0c").unique
    assert call(unique="-").unique not in ("-", "")


def test_a_background_call_without_a_key_has_one_that_no_other_job_has() -> None:
    first, second = background().unique, background().unique
    assert first != second
    assert is_fresh(first)
    assert is_fresh(second)
    assert background(unique="k").unique == "k"
    assert call().unique == ""


def test_no_key_has_the_form_of_those_that_no_other_job_has() -> None:
    key = "~" + "0" * 32
    with pytest.raises(ValueError, match="the form of the uniques that gearflow makes"):
        call(unique=key)

    def chosen(a: int, b: int = 2) -> str:
        return key

    with pytest.raises(ValueError, match="the form of the uniques that gearflow makes"):
        background(unique=chosen)
