"""Batch tasks as they are declared: what their callers send, and what cannot be one."""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, cast

import pytest
from pydantic import BaseModel

from gearflow import (
    AsyncBatchTask,
    Batch,
    BatchTask,
    Concurrency,
    Context,
    PayloadInvalid,
    Rate,
    TaskDefinitionError,
    task,
)
from gearflow.tasks.batch_call import BatchCall

BATCH = Batch(3, wait=0.2)


class Row(BaseModel):
    key: int


class Later(BaseModel):
    text: str


def embed(texts: list[str]) -> list[int | Exception]:
    return [len(text) for text in texts]


def with_context(ctx: Context, rows: list[Row]) -> list[Row]:
    assert len(ctx.items) == len(rows)
    for item in ctx.items:
        item.progress(1, 1)
    ctx.warn("to nobody")
    return rows


async def awaited(numbers: Sequence[int]) -> list[None]:
    return [None for _ in numbers]


def test_the_payload_and_the_result_are_those_of_one_item() -> None:
    of_texts = task(batch=BATCH, name="batch.texts")(embed)
    assert isinstance(of_texts, BatchTask)
    assert of_texts.batch == BATCH
    assert of_texts.payload.encode(("hi",), {}) == b"hi"
    assert of_texts.payload.encode_result(3) == b"3"
    assert of_texts.payload.decode_result(b"3") == 3
    assert of_texts.json_schema()["result"] == {"type": "integer"}
    of_models = task(batch=BATCH, name="batch.models")(with_context)
    assert of_models.payload.encode((Row(key=3),), {}) == b'{"key":3}'
    of_numbers = task(batch=BATCH, name="batch.numbers")(awaited)
    assert isinstance(of_numbers, AsyncBatchTask)
    assert of_numbers.payload.encode((3,), {}) == b'{"numbers":3}'
    assert of_numbers.json_schema()["payload"]["properties"]["numbers"]["type"] == "integer"
    with pytest.raises(PayloadInvalid, match="not fit its types"):
        of_numbers.payload.encode((["x"],), {})


async def test_a_plain_call_is_that_of_the_function() -> None:
    assert task(batch=BATCH, name="batch.here")(embed)(["a", "bc"]) == [1, 2]
    rows = [Row(key=1), Row(key=2)]
    assert task(batch=BATCH, name="batch.context")(with_context)(rows) == rows
    assert await task(batch=BATCH, name="batch.coroutine")(awaited)([1, 2]) == [None, None]


def test_options_of_calls_leave_the_batch_alone() -> None:
    made = task(batch=BATCH, name="batch.options", timeout=3)(embed).options(priority="high", unique=True)
    assert isinstance(made, BatchTask)
    assert (made.batch, made.timeout) == (BATCH, 3)


def test_a_type_may_be_defined_below_the_task() -> None:
    def forward(items: "list[Defined]") -> "list[Defined]":  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable, reportUnknownParameterType]
        return items  # pyright: ignore[reportUnknownVariableType]

    made = cast(Any, task(batch=BATCH, name="batch.forward"))(forward)
    forward.__globals__["Defined"] = Later
    try:
        assert made.payload.encode((Later(text="x"),), {}) == b'{"text":"x"}'
    finally:
        del forward.__globals__["Defined"]


def no_list(text: str) -> list[int]: ...  # type: ignore[empty-body]
def bare(texts: list) -> list[int]: ...  # type: ignore[type-arg, empty-body]  # pyright: ignore[reportMissingTypeArgument, reportUnknownParameterType]
def two(texts: list[str], more: int) -> list[int]: ...  # type: ignore[empty-body]
def none() -> list[int]: ...  # type: ignore[empty-body]
def default(texts: list[str] = []) -> list[int]: ...  # type: ignore[empty-body]  # noqa: B006
def keyword(*, texts: list[str]) -> list[int]: ...  # type: ignore[empty-body]
def returns_one(texts: list[str]) -> int: ...  # type: ignore[empty-body]
def only_errors(texts: list[str]) -> list[ValueError]: ...  # type: ignore[empty-body]
def yields(texts: list[str]) -> Iterator[int]: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("function", "remedy"),
    [
        (no_list, r"'text: list\[TYPE\]'"),
        (cast(Any, bare), r"'texts: list\[TYPE\]'"),
        (two, "take a list of tuples or models"),
        (none, "takes one list, and this has 0"),
        (default, "write 'texts' without a default"),
        (keyword, r"take the '\*' before 'texts' away"),
        (returns_one, r"'-> list\[TYPE\]'.*'-> list\[None\]'"),
        (only_errors, r"'-> list\[TYPE \| Exception\]'"),
        (yields, r"it yields.*return it, '-> list\[TYPE\]'"),
    ],
)
def test_what_cannot_be_a_batch_is_refused_where_it_is_declared(
    function: Callable[..., Any], remedy: str
) -> None:
    with pytest.raises(TaskDefinitionError, match=remedy):
        task(batch=BATCH, name="batch.refused")(function)


def test_another_program_collects_no_batch() -> None:
    with pytest.raises(TaskDefinitionError, match="write the signature of one item"):
        task(batch=BATCH, foreign=True)


def test_what_is_no_batch_is_refused() -> None:
    for wrong in (0, -1, True, 1.5, "3", 10_001):
        with pytest.raises(ValueError, match="from 1 to 10,000"):
            Batch(wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for wait in (-1, "x", 3601, timedelta(days=1)):
        with pytest.raises(ValueError, match="wait"):
            Batch(3, wait=wait)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"write batch=Batch\(100, wait=0.2\)"):
        task(batch=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    assert Batch(3, wait=timedelta(seconds=2)).seconds == 2.0


def test_the_keys_of_limits_are_those_of_an_item() -> None:
    def by_parity(numbers: int) -> str:
        return "even" if numbers % 2 == 0 else "odd"

    limits: list[Concurrency | Rate] = [Concurrency(1, key="/key"), Rate(10)]
    of_models = task(batch=BATCH, name="batch.limited", limits=limits, fair="/key")(with_context)
    of_models.check()
    with pytest.raises(TaskDefinitionError, match="customer"):
        task(batch=BATCH, name="batch.keyless", limits=[Concurrency(1, key="/customer")])(with_context)
    computed = task(batch=BATCH, name="batch.computed", limits=[Concurrency(1, key=by_parity)])(awaited)
    asked = computed.prepare_background((3,), {}).options
    assert asked is not None
    assert asked.keys == (("batch.computed:concurrency:*", "odd"),)


def test_the_contexts_of_items_stand_beside_those_that_are_valid() -> None:
    made = task(batch=BATCH, name="batch.aligned")(with_context)
    items = tuple(Context(handle=name, function="f", send=print) for name in "abc")
    context = Context(handle="a", function="f", send=print, items=items)
    call = BatchCall(made, [b'{"key": 1}', b"{}", b'{"key": 3}'], context)
    assert [item.handle for item in context.items] == ["a", "c"]
    first, second, third = call.outcomes([Row(key=1), ValueError("no")])
    assert first == b'{"key":1}'
    assert isinstance(second, PayloadInvalid)
    assert isinstance(third, ValueError)
