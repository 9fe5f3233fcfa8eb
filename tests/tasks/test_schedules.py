"""``@task(schedule=...)``: what it takes, what it refuses, and what a server is given."""

from typing import Any

import pytest
from pydantic import BaseModel

from gearflow import Concurrency, Context, Cron, Every, Retry, TaskDefinitionError, task
from gearflow.client.schedules import schedule_of
from gearflow.tasks.schedules import schedule_specs


class Report(BaseModel):
    id: int
    pages: list[int] = [1]


def test_a_task_may_have_one_schedule_or_several() -> None:
    nightly = Cron("0 3 * * *", tz="Europe/Berlin")

    @task(schedule=nightly)
    def once() -> None: ...

    @task(schedule=[nightly, Every(minutes=5, args={"full": True}), Every(hours=1)])
    def often(ctx: Context, full: bool = False) -> None: ...

    @task
    def never() -> None: ...

    assert once.schedules == (nightly,)
    assert never.schedules == ()
    specs = list(schedule_specs([once, never, often]))
    assert [spec.name for spec in specs] == [once.name, often.name, f"{often.name}#2", f"{often.name}#3"]
    assert [spec.function for spec in specs] == [once.name, *[often.name] * 3]
    assert [spec.payload for spec in specs] == ["{}", '{"full":false}', '{"full":true}', '{"full":false}']
    assert specs[0].when.model_dump(exclude_defaults=True) == {"cron": "0 3 * * *", "tz": "Europe/Berlin"}
    assert specs[2].when.every == 300


def test_the_options_of_the_task_are_those_of_its_jobs() -> None:
    @task(schedule=Every(minutes=5), priority="low", keep=60, expires=30, retries=Retry(3), unique=True)
    def report() -> None: ...

    (spec,) = schedule_specs([report])
    assert (spec.priority, spec.keep, spec.expires) == ("low", 60, 30)
    assert spec.retries is None  # the worker knows the task's own
    changed = schedule_of("x", report.options(retries=1, timeout=5), Every(minutes=5))
    assert changed.retries is not None
    assert len(changed.retries.delays) == 1
    assert changed.timeout == 5


def test_arguments_travel_as_those_of_a_call() -> None:
    @task(schedule=Every(minutes=5, args={"report": Report(id=1)}))
    def model(report: Report) -> None: ...

    @task(schedule=Every(minutes=5, args={"data": b"\xff\x00"}))
    def raw(data: bytes) -> None: ...

    specs = list(schedule_specs([model, raw]))
    assert [(spec.payload, spec.encoding) for spec in specs] == [
        ('{"id":1,"pages":[1]}', "utf-8"),
        ("/wA=", "base64"),
    ]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "missing a required argument: 'number'"),
        ({"number": "many"}, "number: Input should be a valid integer"),
        ({"number": 1, "color": "red"}, "unexpected keyword argument 'color'"),
    ],
)
def test_arguments_that_make_no_call_are_refused_at_the_declaration(args: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskDefinitionError, match="cannot have the schedule Every") as caught:

        @task(schedule=Every(minutes=5, args=args))
        def count(number: int) -> None: ...

    assert said in str(caught.value)


BELOW = """
from pydantic import BaseModel

from gearflow import Every, task


@task(schedule=Every(minutes=5, args={"later": {"id": "one"}}))
def early(later: "Later") -> None: ...


class Later(BaseModel):
    id: int
"""


def test_a_type_that_is_defined_below_is_checked_later() -> None:
    names: dict[str, Any] = {"__name__": "below"}
    exec(BELOW, names)
    with pytest.raises(TaskDefinitionError, match="id: Input should be a valid integer"):
        names["early"].check()


@pytest.mark.parametrize("value", ["0 3 * * *", ["0 3 * * *"], 300, [Every(minutes=5), None]])
def test_something_else_is_no_schedule(value: Any) -> None:
    with pytest.raises(ValueError, match=r"schedule=.*Every\(minutes=5\)"):
        task(schedule=value)


def test_a_schedule_has_no_start_time_and_no_large_payload() -> None:
    @task(name="tests.large")
    def large(text: str) -> None: ...

    with pytest.raises(ValueError, match="delay= is not for jobs that a server makes"):
        schedule_of("x", large.options(delay=5), Every(minutes=5, args={"text": "a"}))
    with pytest.raises(ValueError, match="65536 is the most"):
        schedule_of("x", large, Every(minutes=5), {"text": "a" * 65_537})


def test_the_keys_of_limits_that_a_caller_sends_are_those_of_the_arguments() -> None:
    def key_of(customer: str) -> str:
        return f"c-{customer}"

    @task(
        schedule=Every(minutes=5, args={"customer": "a"}),
        limits=[Concurrency(1, key=key_of, name="shop")],
        fair=key_of,
    )
    def sync(customer: str) -> None: ...

    (spec,) = schedule_specs([sync])
    assert (spec.keys, spec.group) == ({"shop": "c-a"}, "c-a")


def test_a_payload_that_is_too_large_is_reported_as_the_fault_of_the_task() -> None:
    @task(schedule=Every(minutes=5, args={"text": "a" * 70_000}))
    def large(text: str) -> None: ...

    with pytest.raises(TaskDefinitionError, match="65536 is the most"):
        list(schedule_specs([large]))


def test_a_function_of_another_program_gets_json() -> None:
    spec = schedule_of("x", "php.resize", Every(minutes=5, args={"a": 1}), {"b": "ü"})
    assert (spec.function, spec.payload) == ("php.resize", '{"a": 1, "b": "ü"}')
