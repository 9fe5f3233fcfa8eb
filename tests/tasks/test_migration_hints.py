"""What users of other task queues write by habit is answered with what it is called here."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gearflow.client import ServerAddress
from gearflow.client.job import JobHandle
from gearflow.tasks import AsyncJob, Context, Job, Ref, StreamTask, Task, migration_hints, task
from gearflow.tasks.decorator import _OPTIONS  # pyright: ignore[reportPrivateUsage]
from gearflow.tasks.options import TaskOptions
from gearflow.worker import Worker

Fresh = Callable[..., str]


@pytest.fixture
def add(fresh: Fresh) -> Any:
    """A task, of which no type checker knows what it has."""

    @task(name=fresh("add"))
    def add(a: int, b: int) -> int:
        return a + b

    return add


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("delay", r"Task has no 'delay': put it on the queue with \.background\("),
        ("send", r"\.background\("),
        ("apply_async", r"\.options\(delay=\.\.\., priority=\.\.\.\)\.background\("),
        ("s", r"\.map\(items\)\.then\(task\)"),
        ("__or__", r"call one task after the other"),
        ("retry", r"raise TryAgain\(after=30\)"),
        ("chunks", r"\.map\(items, chunk=100\)"),
    ],
)
def test_a_verb_of_another_queue_is_answered_with_ours(add: Any, name: str, remedy: str) -> None:
    with pytest.raises(AttributeError, match=remedy):
        getattr(add, name)
    assert not hasattr(add, name)


def test_a_task_that_yields_and_one_that_returns_name_the_verb_of_the_other(add: Any, fresh: Fresh) -> None:
    @task(name=fresh("count"))
    def count(to: int) -> Iterator[int]:
        yield from range(to)

    for kind, name, remedy in (
        (count, "call", r"iterate over \.stream\("),
        (count, "amap", r"call \.stream\(\.\.\.\) for each item"),
        (add, "stream", r"with \.call\("),
    ):
        with pytest.raises(AttributeError, match=rf"has no '{name}': .*{remedy}"):
            getattr(kind, name)


def test_tasks_that_are_piped_say_what_to_write_instead(add: Any) -> None:
    with pytest.raises(AttributeError, match=r"or write \.map\(items\)\.then\(task\)"):
        _ = add | add
    assert isinstance(1, Task | int)  # the class is a type like any other


def test_a_worker_is_entered_with_async_with(add: Any) -> None:
    worker: Any = Worker([add])
    with pytest.raises(AttributeError, match=r"write 'async with', or .* 'gearflow worker MODULE'"), worker:
        pass


def test_other_names_are_answered_as_ever(add: Any) -> None:
    with pytest.raises(AttributeError, match="object has no attribute 'backgrund'"):
        add.backgrund  # noqa: B018
    assert copy.copy(add).name == add.name


def test_what_a_task_has_is_not_hidden() -> None:
    taught = (
        (Task, migration_hints.VERBS | migration_hints.RETURNING),
        (StreamTask, migration_hints.VERBS | migration_hints.YIELDING),
        (Job, migration_hints.RESULTS),
        (Ref, migration_hints.RESULTS),
        (Context, migration_hints.RUNS),
        (Worker, migration_hints.WORKERS),
    )
    for kind, names in taught:
        ours = {
            name for name, value in vars(kind).items() if not isinstance(value, migration_hints.Elsewhere)
        }
        assert not ours & names.keys()


@pytest.mark.parametrize("kind", [Ref, Job, AsyncJob])
def test_results_are_got_by_their_name_here(kind: Any) -> None:
    result: Any = kind.__new__(kind)
    with pytest.raises(AttributeError, match=rf"{kind.__name__} has no 'get': write \.result\(timeout="):
        result.get  # noqa: B018
    with pytest.raises(AttributeError, match=r"\.handle"):
        result.id  # noqa: B018


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("retry", r"raise TryAgain\(after=30\)"),
        ("request", r"ctx\.handle"),
        ("update_state", r"ctx\.progress\(done, total\)"),
    ],
)
def test_a_context_names_what_a_bound_self_has(name: str, remedy: str) -> None:
    context: Any = Context(handle="H:test:1", function="app.do", send=lambda packet: None)
    with pytest.raises(AttributeError, match=rf"Context has no '{name}': .*{remedy}"):
        getattr(context, name)


def test_a_reference_can_be_pickled_as_ever() -> None:
    ref = Ref[int](JobHandle("H:host-store:7", ServerAddress("host", 4730)), "shop.add")
    assert str(pickle.loads(pickle.dumps(ref))) == str(ref)


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("bind", r"@task: there is no option 'bind'; in the place of self, .*'ctx: Context'"),
        ("max_retries", r"retries=Retry\("),
        ("time_limit", r"timeout="),
        ("queue", r"gearflow worker -f"),
        ("cron", r"write schedule=Cron\("),
        ("interval", r"write schedule=Every\("),
        ("max_concurrency", r"write limits=\[Concurrency\(20\)\]"),
        ("tiemout", r"did you mean 'timeout'\?"),
        ("foo", r"there are name, timeout, "),
    ],
)
def test_an_option_of_another_queue_is_answered_with_ours(option: str, remedy: str) -> None:
    decorator: Any = task
    with pytest.raises(TypeError, match=remedy):
        decorator(**{option: True})


def test_the_options_that_are_offered_are_those_there_are() -> None:
    in_a_form_of_its_own = "batch"  # because the type of the task depends on it
    assert sorted([*TaskOptions.__annotations__, in_a_form_of_its_own]) == sorted(_OPTIONS)
    assert not migration_hints.OPTIONS.keys() & set(_OPTIONS)


@pytest.mark.parametrize(("option", "remedy"), [("countdown", r"delay="), ("task_id", r"unique=")])
def test_an_option_of_a_call_as_well(add: Any, option: str, remedy: str) -> None:
    with pytest.raises(TypeError, match=rf"there is no option '{option}'; .*{remedy}"):
        add.options(**{option: 5})
