"""@task: what becomes a task, under which name, and what cannot."""

import functools
import importlib
import inspect
import subprocess
import sys
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import BaseModel

from gearflow.errors import PayloadInvalid, TaskDefinitionError, UnknownTask
from gearflow.tasks import AsyncStreamTask, AsyncTask, Context, Registry, Retry, StreamTask, Task, task
from gearflow.tasks.registry import registry


@task
def add(a: int, b: int = 2) -> int:
    """The sum."""
    return a + b


@task
async def slowly(ctx: Context, a: int) -> int:
    ctx.progress(1, 1)
    return a


@task(timeout=30, unique=True, priority="low")
def tuned(ctx: Context, a: int) -> str:
    return f"{ctx.function} {a}"


def test_the_name_is_module_and_function() -> None:
    assert add.name == f"{__name__}.add"
    assert registry.get(add.name) is add


def test_a_function_within_a_function_goes_by_its_own_name() -> None:
    @task
    def inside() -> None: ...

    assert inside.name == f"{__name__}.inside"


def test_the_function_stays_a_function() -> None:
    assert add(1) == 3
    assert add.__name__ == "add"
    assert add.__doc__ == "The sum."
    assert add.function is add.__wrapped__


async def test_an_async_task_is_awaited_here_too_and_its_context_reports_to_nobody() -> None:
    assert isinstance(slowly, AsyncTask)
    assert slowly.is_async
    assert await slowly(3) == 3


def test_what_the_decorator_was_told_is_known() -> None:
    assert (tuned.timeout, tuned.takes_context, tuned.foreign, tuned.is_async) == (30, True, False, False)
    assert tuned(1) == f"{tuned.name} 1"
    assert tuned.prepare((1,), {}).priority.value == "low"
    assert len(tuned.prepare((1,), {}).unique) == 40


def test_options_leave_the_task_as_it_is() -> None:
    urgent = add.options(priority="high").options(unique="k")
    assert isinstance(urgent, Task)
    assert urgent.name == add.name
    assert (urgent.prepare((1,), {}).priority.value, urgent.prepare((1,), {}).unique) == ("high", "k")
    assert add.prepare((1,), {}).unique == ""
    assert isinstance(slowly.options(timeout=1), AsyncTask)
    with pytest.raises(TypeError, match="timeout"):
        add.options(timeot=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def test_retries_and_keep_are_the_tasks_own() -> None:
    @task(name="kept", retries=Retry(3, on=OSError), keep=60, expires=30)
    def kept() -> None: ...

    assert kept.retries == Retry(3, on=OSError)
    assert kept.keep == 60
    assert kept.call_options.asked.expires == 30
    assert kept.options(priority="high").retries == kept.retries
    assert (add.retries, add.keep) == (None, None)


def test_a_foreign_task_takes_no_retries() -> None:
    with pytest.raises(TaskDefinitionError, match="call it again"):
        task(foreign=True, retries=3)


def test_a_foreign_task_takes_no_timeout() -> None:
    with pytest.raises(TaskDefinitionError, match="limit the wait"):
        task(foreign=True, timeout=3)

    @task(name="reverse", foreign=True)
    def reverse(text: str) -> str: ...  # type: ignore[empty-body]  # never runs

    assert reverse.foreign
    assert reverse.name == "reverse"


# --------------------------------------------------------------------------------------- tasks that yield


@task
def words(text: str) -> Iterator[str]:
    yield from text.split()


@task(stream_keep="16MiB", resumable=True)
async def numbers(ctx: Context, count: int) -> AsyncIterator[int]:
    for number in range(ctx.parts, count):
        yield number


async def test_a_plain_call_of_what_yields_gives_the_functions_own_iterator() -> None:
    made = words("a b")
    assert inspect.isgenerator(made)
    assert list(made) == ["a", "b"]
    assert [number async for number in numbers(2)] == [0, 1]


def test_what_yields_is_a_task_of_its_own_kind() -> None:
    assert isinstance(words, StreamTask)
    assert (words.is_stream, words.is_async, words.resumable, words.stream_keep) == (True, False, False, None)
    assert isinstance(numbers, AsyncStreamTask)
    assert (numbers.is_async, numbers.resumable, numbers.stream_keep) == (True, True, 16 << 20)
    assert registry.get(words.name) is words
    assert not hasattr(words, "call")


def test_the_values_of_a_stream_have_the_type_that_it_yields() -> None:
    assert words.payload.signature.result is str
    assert words.payload.encode_result("Zoë") == "Zoë".encode()
    assert numbers.payload.encode_result(3) == b"3"
    with pytest.raises(PayloadInvalid, match="what it yielded does not fit its types"):
        numbers.payload.encode_result("x")
    assert words.json_schema()["result"]["type"] == "string"


def generator(count: int) -> Generator[int, None, str]:
    yield count
    return "done"


async def async_generator(count: int) -> AsyncGenerator[int, None]:
    yield count


def returned(count: int) -> typing.Iterator[int]:
    return iter(range(count))


def through_a_generator(count: int) -> AsyncIterator[int]:
    return async_generator(count)


def quoted(count: int) -> "Iterator[Later]":
    yield Later(number=count)


def aliased(count: int) -> "typing.AsyncIterator[int]":
    return async_generator(count)


class Later(BaseModel):
    number: int


@pytest.mark.parametrize(
    ("function", "is_async", "value"),
    [
        (generator, False, int),
        (async_generator, True, int),
        (returned, False, int),
        (through_a_generator, True, int),
        (quoted, False, Later),
        (aliased, True, int),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_annotation_decides_whether_it_is_a_stream(
    function: Callable[..., Any], is_async: bool, value: type
) -> None:
    made: Any = task(function)
    assert isinstance(made, StreamTask)
    assert made.is_async is is_async
    made.check()
    assert made.payload.signature.result is value


def test_a_foreign_stream_is_a_signature_without_a_body() -> None:
    @task(name="tail", foreign=True)
    def tail(path: str) -> Iterator[bytes]: ...  # type: ignore[empty-body]  # never runs

    assert isinstance(tail, StreamTask)
    assert tail.foreign


def unnamed() -> Iterable[int]:
    yield 1


async def unnamed_async() -> AsyncIterable[int]:
    yield 1


def untyped():  # type: ignore[no-untyped-def]
    yield 1


def wrong_kind() -> list[int]:  # type: ignore[misc]  # pyright: ignore[reportInvalidTypeForm]
    yield 1  # pyright: ignore[reportReturnType]


def bare() -> Iterator:  # type: ignore[type-arg]  # pyright: ignore[reportMissingTypeArgument, reportUnknownParameterType]
    yield 1


# The ignores above and below are for what the tests are about: definitions that are refused.
NOT_NAMED: list[tuple[Callable[..., Any], str]] = [
    (unnamed, r"annotate its result as '-> Iterator\[TYPE\]'"),
    (untyped, r"annotate its result as '-> Iterator\[TYPE\]'"),
    (wrong_kind, r"annotate its result as '-> Iterator\[TYPE\]'"),
    (bare, r"write '-> Iterator\[TYPE\]'"),
    (unnamed_async, r"annotate its result as '-> AsyncIterator\[TYPE\]'"),
]


async def coroutine() -> AsyncIterator[int]: ...  # type: ignore[empty-body]  # never runs


@pytest.mark.parametrize(
    ("function", "remedy"),
    [*NOT_NAMED, (coroutine, "returns a coroutine, and no AsyncIterator; write 'def'")],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_stream_with_another_annotation_is_refused_with_the_remedy(
    function: Callable[..., Any], remedy: str
) -> None:
    with pytest.raises(TaskDefinitionError, match=remedy):
        task(function)


def test_the_options_of_streams_are_refused_for_other_tasks() -> None:
    def plain() -> None: ...

    with pytest.raises(TaskDefinitionError, match="resumable= is for tasks that yield"):
        task(resumable=True)(plain)
    with pytest.raises(TaskDefinitionError, match="stream_keep= is for tasks that yield"):
        task(stream_keep=0)(plain)
    with pytest.raises(TypeError, match="lag= is for tasks that yield"):
        add.options(lag="skip")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with pytest.raises(TaskDefinitionError, match="only gearflow's workers know"):
        task(resumable=True, foreign=True)


def test_an_async_stream_runs_on_the_event_loop_alone() -> None:
    with pytest.raises(TaskDefinitionError, match="leave executor='process' out"):
        task(executor="process")(async_generator)


def test_what_is_no_function_is_refused() -> None:
    class Thing:
        def __call__(self, a: int) -> int:
            return a

    things: list[Any] = [Thing(), Thing, functools.partial(Thing()), 7]
    for thing in things:
        with pytest.raises(TaskDefinitionError, match="not a function"):
            task(thing)


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "a\0b", "gearflow:submit"])
def test_a_name_that_servers_cannot_show_is_refused(name: str) -> None:
    with pytest.raises(TaskDefinitionError, match="cannot be a task's name"):

        @task(name=name)
        def unnamed() -> None: ...


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(TaskDefinitionError, match="3 cannot be a task's name: take a str"):
        task(name=3)(lambda: None)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_nonsense_among_the_options_is_refused_at_decoration() -> None:
    with pytest.raises(ValueError, match="timeout"):
        task(timeout=-1)
    with pytest.raises(ValueError, match="priority"):
        task(priority="urgent")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


MAIN = """
from gearflow.tasks import task
@task
def f() -> None: ...
print(f.name)
"""


def test_main_is_named_as_it_would_be_imported(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(MAIN)
    package = tmp_path / "app"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tasks.py").write_text(MAIN)

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert run("jobs.py") == "jobs.f"
    assert run("-m", "app.tasks") == "app.tasks.f"
    assert run("-c", MAIN) == "__main__.f"


# --------------------------------------------------------------------------------------------- registry


def make(name: str) -> Task[[], None]:
    def function() -> None: ...

    function.__qualname__ = name
    return Task(function, name=name)


def registry_of(*names: str) -> Registry:
    made = Registry()
    for name in names:
        made.add(make(name))
    return made


def test_two_functions_cannot_have_one_name() -> None:
    made = registry_of("app.add")
    with pytest.raises(TaskDefinitionError, match=r"two functions.*@task\(name=\.\.\.\)"):
        made.add(cast("Task[..., Any]", Task(add.function, name="app.add")))


def test_the_same_function_defined_again_takes_its_place() -> None:
    made = registry_of("app.add")
    again = make("app.add")
    made.add(again)
    assert made.tasks() == {"app.add": again}


TWICE = """
from gearflow.tasks import task
@task
def send(x: int) -> int: ...
@task
def send(x: str) -> str: ...
"""

MOVED = """
from gearflow.tasks import task

@task
def send(x: int) -> int: ...
"""

REPEATED = """
from gearflow.tasks import task
for width in (1, 2):
    @task
    def send(x: int) -> int: ...
"""


def test_two_functions_of_one_name_in_one_module_are_an_error(fresh: Callable[[str], str]) -> None:
    names = {"__name__": fresh("app")}
    with pytest.raises(TaskDefinitionError, match=r"app\S*\.send in line 3 and app\S*\.send in line 5"):
        exec(compile(TWICE, "app.py", "exec"), names)


def test_a_module_that_is_executed_again_replaces_its_tasks(fresh: Callable[[str], str]) -> None:
    module = fresh("app")
    names: dict[str, Any] = {"__name__": module}
    code = compile(MOVED.replace("\n\n", "\n"), "app.py", "exec")
    for source in (code, code, compile(MOVED, "app.py", "exec"), compile(REPEATED, "app.py", "exec")):
        exec(source, names)
        assert registry.get(f"{module}.send") is names["send"]


def test_a_module_that_is_edited_and_reloaded_replaces_its_tasks(
    fresh: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fresh("app").replace(".", "_")
    file = tmp_path / f"{module}.py"
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file.write_text(MOVED.replace("\n\n", "\n"))
    loaded = importlib.import_module(module)
    before = loaded.send
    file.write_text(MOVED)
    assert importlib.reload(loaded).send is registry.get(f"{module}.send") is not before


def test_a_task_is_found_by_its_full_or_bare_name() -> None:
    made = registry_of("app.add", "app.images.resize")
    assert made.find("app.add") is made.find("add") is made.get("app.add")
    assert made.find("images.resize").name == "app.images.resize"
    assert made.get("add") is None


def test_a_full_name_wins_over_a_bare_one() -> None:
    made = registry_of("add", "app.add")
    assert made.find("add").name == "add"


def test_a_bare_name_that_several_have_is_no_name() -> None:
    with pytest.raises(UnknownTask, match=r"'app\.add' or 'other\.add'; give the full name"):
        registry_of("app.add", "other.add").find("add")


def test_an_unknown_name_offers_the_nearest() -> None:
    made = registry_of("app.images.resize", "app.add")
    for wrong in ("resiez", "app.images.reize", "app.image.resize"):
        with pytest.raises(UnknownTask, match=r"did you mean 'app\.images\.resize'"):
            made.find(wrong)
    with pytest.raises(UnknownTask, match=r"known: app\.images\.resize, app\.add"):
        made.find("qqqq")
    with pytest.raises(UnknownTask, match="no task is defined"):
        Registry().find("add")
