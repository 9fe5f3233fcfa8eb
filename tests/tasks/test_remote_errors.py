"""Exceptions across the wire, and that the wire cannot do harm with them."""

import asyncio
import builtins
import concurrent.futures
import copy
import importlib
import json
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn, Self

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from gearflow.errors import NoServer, PayloadInvalid, TaskFailed, TaskTimeout
from gearflow.tasks.remote_errors import (
    MAX_MESSAGE,
    MAX_TRACEBACK,
    decode_failure,
    encode_failure,
    summary_of,
)
from gearflow.worker import Worker

SEEN: list[str] = []


class OutOfInk(Exception):
    def __init__(self, colour: str, page: int) -> None:
        super().__init__(f"no {colour} on page {page}")
        self.colour = colour
        self.page = page

    class Entirely(Exception):
        pass


class Touchy(Exception):
    """Everything in it goes wrong, or is noticed."""

    def __new__(cls, *_args: object) -> Self:
        SEEN.append("new")
        return super().__new__(cls)

    def __init__(self, *_args: object) -> None:
        SEEN.append("init")
        raise RuntimeError

    def __init_subclass__(cls) -> None:
        SEEN.append("subclass")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        SEEN.append("setattr")
        raise RuntimeError

    def __str__(self) -> NoReturn:
        SEEN.append("str")
        raise RuntimeError

    @property
    def message(self) -> NoReturn:
        SEEN.append("property")
        raise RuntimeError

    @property
    def handle(self) -> NoReturn:
        SEEN.append("property")
        raise RuntimeError


class Registering(type):
    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
        SEEN.append("metaclass")
        super().__init__(name, bases, namespace)


class WithMetaclass(Exception, metaclass=Registering):
    pass


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001
        return caught


def across(error: BaseException) -> TaskFailed:
    return decode_failure(encode_failure(raised(error)), "H:test:1")


def named(name: object, message: object = "boom", **more: object) -> TaskFailed:
    return decode_failure(json.dumps({"type": name, "message": message, **more}).encode(), "H:test:1")


# ----------------------------------------------------------------------------------------------- there


def test_the_wire_has_type_message_traceback_and_errors() -> None:
    said = json.loads(encode_failure(raised(OutOfInk("red", 7))))
    assert said.keys() == {"type", "message", "traceback", "errors"}
    assert said["type"] == f"{__name__}.OutOfInk"
    assert said["message"] == "no red on page 7"
    assert "raise error" in said["traceback"]
    assert said["errors"] == []


def test_builtins_go_by_their_bare_name() -> None:
    assert json.loads(encode_failure(KeyError("x")))["type"] == "KeyError"
    assert json.loads(encode_failure(OutOfInk.Entirely()))["type"].endswith(".OutOfInk.Entirely")


def test_an_exception_that_cannot_be_shown_travels_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise SystemExit

    said = json.loads(encode_failure(raised(Mute())))
    assert "Mute" in said["message"]


def test_lone_surrogates_are_written_out() -> None:
    assert across(ValueError("\ud800")).message == "\\ud800"


def test_a_long_message_and_a_long_traceback_are_cut() -> None:
    error = ValueError("x" * 1_000_000)
    said = json.loads(encode_failure(raised(error)))
    assert len(said["message"]) == MAX_MESSAGE
    assert len(said["traceback"]) <= MAX_TRACEBACK + 3


def test_validation_errors_bring_their_list_without_the_input() -> None:
    class Strict(BaseModel):
        a: int

    with pytest.raises(ValidationError) as caught:
        Strict.model_validate({"a": "secret"})
    failure = across(caught.value)
    assert failure.type == "pydantic_core._pydantic_core.ValidationError"
    assert [error["loc"] for error in failure.errors] == [["a"]]
    assert "secret" not in str(failure.errors)


def test_a_failure_of_a_task_that_was_called_by_the_task_keeps_its_type() -> None:
    failure = across(across(KeyError("x")))
    assert isinstance(failure, KeyError)
    assert failure.type == "KeyError"


def test_a_failure_of_a_class_unknown_in_between_arrives_as_it_was_raised() -> None:
    said = {"type": "shopmain.OutOfStock", "message": "pear"}
    failure = across(decode_failure(json.dumps(said).encode(), "H:test:1"))
    assert (failure.type, failure.message) == ("shopmain.OutOfStock", "pear")


# ------------------------------------------------------------------------------------------------ here


@pytest.mark.parametrize(
    ("kind", "message", "text"),
    [
        ("shopmain.OutOfStock", "pear", "shopmain.OutOfStock: pear"),
        ("shopmain.OutOfStock", "", "shopmain.OutOfStock"),
        ("SystemExit", "3", "SystemExit: 3"),
        ("gearflow.errors.TaskFailed", "no", "no"),
        ("KeyError", "pear", "pear"),  # it is one, which Python tells
        (None, "pear", "pear"),
    ],
)
def test_a_class_that_is_unknown_here_is_named_before_the_message(
    kind: str | None, message: str, text: str
) -> None:
    failure = named(kind, message)
    assert str(failure) == text
    assert failure.message == message


def test_it_is_caught_as_its_own_class_and_as_task_failed() -> None:
    failure = across(OutOfInk("red", 7))
    assert isinstance(failure, OutOfInk)
    assert isinstance(failure, TaskFailed)
    assert str(failure) == failure.message == "no red on page 7"
    assert failure.handle == "H:test:1"
    with pytest.raises(KeyError):
        raise across(KeyError("x"))


def test_the_remote_traceback_is_printed_with_the_exception() -> None:
    failure = across(OutOfInk("red", 7))
    assert failure.traceback is not None
    assert failure.traceback.startswith("Traceback")
    printed = "".join(traceback.format_exception(failure))
    assert "On the worker (job H:test:1)" in printed
    assert "no red on page 7" in printed
    assert "in raised\n    raise error" in printed.replace("\r", "")


def test_a_class_within_a_class_is_found() -> None:
    assert isinstance(across(OutOfInk.Entirely()), OutOfInk.Entirely)


def test_a_class_is_made_once() -> None:
    assert type(across(KeyError("a"))) is type(across(KeyError("b")))


def test_every_builtin_exception_can_be_raised_and_printed() -> None:
    not_rebuilt = (
        StopIteration,
        StopAsyncIteration,
        BaseExceptionGroup,
    )
    for name, kind in vars(builtins).items():
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            continue
        failure = named(name)
        expected = issubclass(kind, Exception) and not issubclass(kind, not_rebuilt)
        assert isinstance(failure, kind) is expected or kind in (Exception, BaseException), name
        assert str(failure) == (f"{name}: boom" if type(failure) is TaskFailed else "boom")
        assert "boom" in repr(failure)
        assert "".join(traceback.format_exception(failure))


def test_what_steers_control_flow_stays_a_task_failed() -> None:
    for error in (
        StopIteration(),
        StopAsyncIteration(),
        GeneratorExit(),
        KeyboardInterrupt(),
        SystemExit(3),
        asyncio.CancelledError(),
        concurrent.futures.CancelledError(),
        ExceptionGroup("several", [ValueError()]),
    ):
        failure = across(error)
        assert type(failure) is TaskFailed
        assert failure.type is not None
        assert failure.type.endswith(type(error).__name__)


def test_trios_cancelled_stays_a_task_failed() -> None:
    import trio

    assert type(named(f"{trio.Cancelled.__module__}.{trio.Cancelled.__qualname__}")) is TaskFailed


def test_a_timeout_of_the_task_is_a_task_timeout() -> None:
    failure = across(TaskTimeout("too long"))
    assert type(failure) is TaskTimeout
    assert failure.message == "too long"
    assert not isinstance(across(TimeoutError()), TaskTimeout)


def test_a_payload_the_worker_refused_is_payload_invalid_with_its_list() -> None:
    failure = across(PayloadInvalid("no", [{"loc": ["a"], "msg": "m", "type": "t"}]))
    assert isinstance(failure, PayloadInvalid)
    assert isinstance(failure, TaskFailed)
    assert failure.errors == [{"loc": ["a"], "msg": "m", "type": "t"}]


def test_errors_about_servers_are_not_taken_for_the_callers_own() -> None:
    failure = across(NoServer({"a": "down"}))
    assert type(failure) is TaskFailed
    assert failure.type == "gearflow.errors.NoServer"


def test_nothing_of_the_users_class_is_run() -> None:
    SEEN.clear()
    failure = named(f"{__name__}.Touchy")
    assert isinstance(failure, Touchy)
    assert (str(failure), failure.message, failure.handle) == ("boom", "boom", "H:test:1")
    assert SEEN == []


def test_a_class_with_a_metaclass_stays_a_task_failed() -> None:
    SEEN.clear()
    assert type(named(f"{__name__}.WithMetaclass")) is TaskFailed
    assert SEEN == []


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.print",
        "builtins.KeyError.__init__",
        "sys.modules",
        "__main__",
        "",
        ".",
        "..",
        "KeyError.",
        ".KeyError",
        "object",
        "int",
        "gearflow.errors.TaskFailed",
        "x" * 1_000_000,
        ".".join("x" * 200),
        "a\0b",
        "\ud800",
        "os\n.error",
        None,
        7,
        ["KeyError"],
        {"KeyError": 1},
    ],
)
def test_a_hostile_type_is_a_plain_task_failed(name: object) -> None:
    failure = named(name)
    assert type(failure) is TaskFailed
    assert failure.message == "boom"
    assert str(failure).endswith("boom")
    assert (failure.type is None) is not isinstance(name, str) or name == ""


def test_nothing_is_imported() -> None:
    name = "this"  # a module that prints when it is imported
    sys.modules.pop(name, None)
    before = set(sys.modules)
    assert type(named(f"{name}.Zen")) is TaskFailed
    assert type(named("gearflow.nowhere.Error")) is TaskFailed
    assert set(sys.modules) == before


def test_a_modules_own_getattr_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = type(sys)("asked")

    def answer(name: str) -> NoReturn:
        pytest.fail(f"asked for {name}")

    module.__getattr__ = answer
    monkeypatch.setitem(sys.modules, "asked", module)
    assert type(named("asked.Error")) is TaskFailed


# ----------------------------------------------------------------------------------------- foreign text


def test_a_failure_without_a_reason_says_so() -> None:
    failure = decode_failure(None, "H:test:1")
    assert type(failure) is TaskFailed
    assert "no reason" in str(failure)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", ""),
        (b"it broke", "it broke"),
        (b"it broke\0", "it broke"),
        ("grüße".encode(), "grüße"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b'"text"', '"text"'),
        (b"{}", "{}"),
        (b'{"message": 7}', '{"message": 7}'),
        (b"[" * 100_000, "[" * 100_000),
    ],
)
def test_foreign_text_is_the_message(data: bytes, message: str) -> None:
    failure = decode_failure(data, "H:test:1")
    assert type(failure) is TaskFailed
    assert failure.message == message


def test_fields_of_the_wrong_type_are_left_out() -> None:
    failure = named("KeyError", traceback=7, errors="x")
    assert isinstance(failure, KeyError)
    assert failure.traceback is None
    assert failure.errors == []
    assert named("KeyError", errors=[1, {"loc": "a"}, None]).errors == [{"loc": "a"}]


@given(st.binary())
def test_any_bytes_can_be_raised(data: bytes) -> None:
    assert "".join(traceback.format_exception(decode_failure(data, "H:test:1")))


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
names = st.text() | st.sampled_from([*sys.modules]).flatmap(
    lambda module: st.sampled_from(
        [f"{module}.{name}" for name in vars(sys.modules.get(module, builtins))] or ["x"]
    )
)


@given(names, st.text(), json_values, json_values)
def test_any_object_can_be_raised(name: str, message: str, trace: object, errors: object) -> None:
    failure = named(name, message, traceback=trace, errors=errors)
    assert isinstance(failure, TaskFailed)
    assert "".join(traceback.format_exception(failure))


@pytest.mark.parametrize(
    "raised", [KeyError("k"), OutOfInk("red", 1), OSError(2, "gone"), TaskTimeout("late")]
)
def test_a_rebuilt_failure_can_be_copied_and_pickled(raised: Exception) -> None:
    failure = decode_failure(encode_failure(raised), "H:1")
    pickled: TaskFailed = pickle.loads(pickle.dumps(failure))
    for same in (copy.copy(failure), copy.deepcopy(failure), pickled):
        assert isinstance(same, type(raised))
        assert isinstance(same, TaskFailed)
        told = (str(same), same.type, same.handle, same.traceback, same.__notes__)
        assert told == (str(failure), failure.type, "H:1", failure.traceback, failure.__notes__)


# -------------------------------------------------------------------------------------- the program that runs

PROGRAM = """
import sys
from gearflow import Retry, configure, task

class OutOfStock(Exception): ...

@task
def order(item: str) -> None:
    raise OutOfStock(item)

if __name__ == "__main__":
    configure(sys.argv[1])
    try:
        order.options(retries=Retry(3, on=OutOfStock, backoff=0)).call("pear")
    except OutOfStock as error:
        print("caught", error)
"""


async def test_an_exception_of_the_program_that_runs_is_the_same_on_the_worker(
    bundled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "program_of_a_shop.py").write_text(PROGRAM)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    order = importlib.import_module("program_of_a_shop").order
    with anyio.fail_after(30):
        async with Worker([order], servers=[bundled]):
            command = [sys.executable, str(tmp_path / "program_of_a_shop.py"), bundled]
            ended = await anyio.run_process(command, stderr=None)
    assert ended.stdout == b"caught pear\n"
    assert caplog.messages.count("job retried") == 2


# ------------------------------------------------------------------------------------- what costs too much


def test_an_exception_that_is_raised_again_and_again_shows_its_last_frames() -> None:
    error = ValueError("the same")
    for _ in range(2500):
        raised(error)
    summary = summary_of(error, error.__traceback__)
    assert len(summary.stack) == 1000
    assert all(frame.name == "raised" for frame in summary.stack)


def test_a_long_chain_of_causes_shows_the_last_ones() -> None:
    error = ValueError("number 0")
    for number in range(1, 2500):
        following = ValueError(f"number {number}")
        following.__cause__, error = error, following
    shown = json.loads(encode_failure(error))["traceback"]
    assert shown.count("ValueError: number") == 100
    assert shown.rstrip().endswith("ValueError: number 2499")
