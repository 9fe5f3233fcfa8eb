"""@task: what becomes a task, under which name, and what cannot."""

import functools
import importlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gearflow.errors import TaskDefinitionError, UnknownTask
from gearflow.tasks import AsyncTask, Context, Registry, Retry, Task, task
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
    def reverse(text: str) -> str: ...  # type: ignore[empty-body]

    assert reverse.foreign
    assert reverse.name == "reverse"


def test_what_yields_is_refused_for_now() -> None:
    def plain() -> Iterator[int]:
        yield 1

    async def asynchronous() -> AsyncIterator[int]:
        yield 1

    for function in (plain, asynchronous):
        with pytest.raises(TaskDefinitionError, match="cannot yield yet"):
            task(function)


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
        made.add(Task(add.function, name="app.add"))


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
