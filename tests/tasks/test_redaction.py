"""Fields that a task hides from operators: which names it may give, and what the server then shows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, Field

from gearflow import Batch, task
from gearflow.client import connect
from gearflow.client.operate import jobs
from gearflow.errors import TaskDefinitionError
from gearflow.protocol.jobs import JobFilter
from gearflow.server import JobServer
from gearflow.tasks.redaction import reported_fields
from gearflow.worker import Worker


class Card(BaseModel):
    number: str
    holder: str = Field(default="", alias="name")


@dataclass
class Order:
    cards: list[Card]
    paid: bool = False


def reported(made: Any) -> list[str]:
    return reported_fields(made.redact, made.payload)


def test_a_field_is_a_parameter_or_one_of_a_model_at_any_depth() -> None:
    @task(redact={"number", "paid"})
    def pay(order: Order, number: int) -> None: ...

    assert pay.redact == frozenset({"number", "paid"})
    assert reported(pay) == ["number", "paid"]

    @task(redact=["number"], batch=Batch(3))
    def pay_all(cards: list[Card]) -> list[None]:
        return [None for _ in cards]

    assert reported(pay_all) == ["number"]


def test_a_parameter_that_is_the_payload_stands_for_all_of_it() -> None:
    @task(redact={"text"})
    def raw(text: str) -> None: ...

    @task(redact={"card"})
    def model(card: Card) -> None: ...

    @task(redact={"*"})
    def whole(a: int, b: int) -> None: ...

    @task(redact={"a"})
    def one(a: int) -> None: ...

    assert [reported(each) for each in (raw, model, whole, one)] == [["*"], ["*"], ["*"], ["a"]]


def test_a_field_that_no_payload_has_is_refused() -> None:
    with pytest.raises(
        TaskDefinitionError, match=r"'nmuber' that its payload does not have; did you mean 'number'"
    ):

        @task(redact={"nmuber"})
        def pay(order: Order) -> None: ...

    with pytest.raises(TaskDefinitionError, match="there are 'a', 'b'"):

        @task(redact={"password"})
        def add(a: int, b: int) -> None: ...

    with pytest.raises(TaskDefinitionError, match="there are none"):

        @task(redact={"a"})
        def nothing() -> None: ...


@pytest.mark.parametrize("kind", [dict[str, int], Any, dict[str, Any], list[dict[str, str]]])
def test_fields_of_objects_without_a_model_cannot_be_checked(kind: Any) -> None:
    def take(data: Any, count: int) -> None: ...

    take.__annotations__["data"] = kind
    assert task(redact={"password"})(take).redact == frozenset({"password"})


def test_a_field_has_the_name_that_it_has_in_payloads() -> None:
    with pytest.raises(TaskDefinitionError, match="'holder'"):

        @task(redact={"holder"})
        def pay(card: Card, count: int) -> None: ...

    @task(redact={"name"})
    def pay_by_name(card: Card, count: int) -> None: ...


@pytest.mark.parametrize("given", ["card", {""}, {1}, 5, {"a": "b"}])
def test_what_names_no_fields_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="the names of fields"):
        task(redact=given)


def test_a_foreign_function_has_none() -> None:
    with pytest.raises(TaskDefinitionError, match="foreign=True, redact"):
        task(foreign=True, redact={"a"})


@pytest.fixture
def server() -> Iterator[str]:
    with JobServer(port=0) as server:
        yield server.address


async def test_operators_do_not_see_them_also_when_the_worker_has_left(server: str, function: str) -> None:
    @task(name=function, redact={"number"})
    async def pay(card: Card, amount: int) -> None: ...

    async with connect(server) as client:
        async with Worker([pay], servers=[server]):
            await pay.acall(Card(number="4111", name="Ann"), 3)
        await pay.abackground(Card(number="4111", name="Ann"), 3)
        (found,) = (await jobs(client, JobFilter(function=function, states=("waiting",)), payload=1000)).jobs
    assert found.payload == '{"card": {"number": "(redacted)", "name": "Ann"}, "amount": 3}'
