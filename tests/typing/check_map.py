"""What type checkers say of ``map``, ``starmap`` and ``map_reduce``: this file is checked, not run.

Wrong uses are marked as in ``check_tasks.py``.
"""

from collections.abc import AsyncIterator
from typing import Any, assert_type

from gearflow import (
    AsyncResults,
    CallOptions,
    Context,
    FailedItem,
    Results,
    TaskFailed,
    amap_reduce,
    map_reduce,
    task,
)


@task
def length(text: str, factor: int = 1) -> int:
    return len(text) * factor


@task
def add(a: int, b: int) -> int:
    return a + b


@task
async def scale(ctx: Context, image: bytes, width: int, height: int = 0, *, fast: bool = False) -> bytes:
    return image


@task
def of_four(a: int, b: str, c: bytes, d: float) -> str:
    return b


@task
async def of_five(a: int, b: str, c: bytes, d: float, e: list[int]) -> list[int]:
    return e


@task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@task
def longest(texts: list[str]) -> str:
    return max(texts)


pairs = [(1, 2), (3, 4)]


def urgent(item: str) -> CallOptions:
    return {"priority": "high", "unique": item}


def of_a_pair(item: tuple[int, int]) -> CallOptions:
    return {"expires": item[0]}


async def streamed() -> AsyncIterator[tuple[int, int]]:
    yield 1, 2


def blocking() -> None:
    assert_type(length.map(["a"], errors="skip"), Results[int])
    assert_type(length.map(["a"], progress=True, ordered=False, window=3), Results[int])
    assert_type(length.map(["a"], options=urgent), Results[int])
    assert_type(length.map(["a"], options=lambda item: {"unique": item}), Results[int])
    assert_type(length.map(["a"]).errors, tuple[FailedItem, ...])
    assert_type(length.map(["a"]).failed, int)
    for failed in length.map(["a"]).errors:
        assert_type(failed.index, int)
        assert_type(failed.item, Any)
        assert_type(failed.error, TaskFailed)

    assert_type(add.starmap(pairs), Results[int])
    assert_type(add.starmap(pairs, errors="skip", options=of_a_pair), Results[int])
    assert_type(add.starmap(pairs, errors="collect"), Results[int | TaskFailed])
    assert_type(add.starmap(pairs).reduce(total).result(), int)
    assert_type(length.starmap([("a", 2)]), Results[int])
    assert_type(scale.starmap([(b"", 1)]), Results[bytes])
    assert_type(scale.starmap([(b"", 1, 2)]), Results[bytes])
    assert_type(of_four.starmap([(1, "b", b"c", 1.0)]), Results[str])
    assert_type(of_four.starmap([(1, "b", b"c", 1.0)], errors="collect"), Results[str | TaskFailed])
    assert_type(of_five.starmap([(1, "b", b"c", 1.0, [1])], progress=print), Results[list[int]])
    assert_type(of_five.options(priority="low").starmap([(1, "b", b"c", 1.0, [1])]), Results[list[int]])

    assert_type(map_reduce(["a"], map=length, reduce=total), int)
    assert_type(map_reduce(["a"], map=length, reduce=total, fan_in=4, errors="skip", window=2), int)


async def in_a_loop() -> None:
    assert_type(length.amap(["a"], errors="skip", progress=True), AsyncResults[int])
    assert_type(await length.amap(["a"], options=urgent), list[int])
    assert_type(add.astarmap(pairs), AsyncResults[int])
    assert_type(add.astarmap(streamed()), AsyncResults[int])
    assert_type(add.astarmap(streamed(), errors="collect"), AsyncResults[int | TaskFailed])
    assert_type(
        await scale.astarmap([(b"", 1, 2)], options=lambda item: {"unique": str(item[1])}), list[bytes]
    )
    assert_type(await of_four.astarmap([(1, "b", b"c", 1.0)]), list[str])
    assert_type(await of_five.astarmap([(1, "b", b"c", 1.0, [1])], errors="skip"), list[list[int]])
    assert_type(await amap_reduce(["a"], map=length, reduce=total, timeout=3), int)


def wrong() -> None:
    add.starmap([("a", 2)])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    add.starmap([(1, 2, 3)])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    add.starmap([1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    add.starmap(pairs, errors="ignore")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    add.starmap(pairs, options=urgent)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    length.map(["a"], progress=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    length.map(["a"], options=of_a_pair)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    length.map(["a"], options=lambda item: {"prioritiy": "high"})  # type: ignore[typeddict-unknown-key]  # pyright: ignore[reportArgumentType]
    add.starmap(streamed())  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    map_reduce(["a"], map=length, reduce=longest)  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
    map_reduce([1], map=length, reduce=total)  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
    map_reduce(["a"], map=length, reduce=sum)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
