"""Items of several arguments, items that fail, options of each item, and a batch as one call."""

import os
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from typing import Any, TypeAlias

import anyio
import pytest

from gearflow import CallOptions, FailedItem, amap_reduce, map_reduce
from gearflow.client import Client, SyncClient
from gearflow.errors import PayloadInvalid, TaskFailed, TaskTimeout
from gearflow.tasks import Context, task

Serve: TypeAlias = Callable[..., AbstractAsyncContextManager[Client]]
ServeSync: TypeAlias = Callable[..., AbstractContextManager[SyncClient]]
Fresh: TypeAlias = Callable[..., str]


@task
async def power(base: int, exponent: int, offset: int = 0) -> int:
    return int(base**exponent) + offset


@task
async def odd(n: int) -> int:
    if n % 2 == 0:
        raise LookupError(n)
    return n


@task
async def spell(n: int) -> str:
    if n % 3 == 0:
        raise LookupError(n)
    return f"{n} "


@task
async def join(parts: list[str]) -> str:
    return "".join(parts)


def spelled(size: int) -> str:
    return "".join(f"{n} " for n in range(size) if n % 3)


# ----------------------------------------------------------------------------------------------- starmap


async def test_starmap_calls_a_task_with_the_arguments_of_each_item(serve: Serve) -> None:
    async with serve(power):
        assert await power.astarmap([(2, 3), (3, 2)]) == [8, 9]
        assert await power.astarmap([(2, 3, 1)]) == [9]
        assert await power.astarmap([]) == []


def test_starmap_has_a_blocking_face(serve_sync: ServeSync) -> None:
    with serve_sync(power):
        assert list(power.starmap((n, 2) for n in range(40))) == [n * n for n in range(40)]


async def test_an_item_with_too_few_arguments_is_a_type_error(serve: Serve) -> None:
    wrong: Any = [(2,)]
    async with serve(power):
        with pytest.raises(TypeError, match=r"power\(\): missing a required argument: 'exponent'"):
            await power.astarmap(wrong, errors="skip")


async def test_starmap_of_a_task_that_takes_a_context_leaves_the_context_out(
    serve: Serve, fresh: Fresh
) -> None:
    @task(name=fresh())
    async def numbered(ctx: Context, a: int, b: int) -> int:
        return ctx.attempt * (a + b)

    async with serve(numbered):
        assert await numbered.astarmap([(1, 2), (3, 4)]) == [3, 7]


# ----------------------------------------------------------------------------------------- items that fail


@pytest.mark.parametrize("ordered", [True, False])
async def test_items_that_fail_may_be_left_out(serve: Serve, ordered: bool) -> None:
    async with serve(odd):
        results = odd.amap(range(50), errors="skip", ordered=ordered, window=7)
        assert sorted(await results) == list(range(1, 50, 2))
        assert (results.failed, len(results.errors)) == (25, 25)
        assert {failed.index for failed in results.errors} == set(range(0, 50, 2))
        assert all(isinstance(failed.error, LookupError) for failed in results.errors)


async def test_a_batch_of_which_all_fail_has_no_results(serve: Serve) -> None:
    async with serve(odd):
        results = odd.amap([2, 4], errors="skip")
        assert await results == []
        assert [failed.item for failed in results.errors] == [2, 4]


async def test_an_item_that_does_not_fit_is_left_out_like_one_that_the_worker_refuses(serve: Serve) -> None:
    items: Any = [1, "two", 3]
    async with serve(odd):
        results = odd.amap(items, errors="skip")
        assert await results == [1, 3]
        with pytest.raises(PayloadInvalid):
            await odd.amap(items, errors="collect")
    (failed,) = results.errors
    assert (failed.index, failed.item) == (1, "two")
    assert isinstance(failed.error, TaskFailed)
    assert isinstance(failed.error, PayloadInvalid)
    assert failed.error.errors[0]["loc"] == ["n"]


@pytest.mark.parametrize("size", [3, 3000])
async def test_items_of_which_none_can_be_sent_end_the_batch(serve: Serve, size: int) -> None:
    wrong: Any = ("x" for _ in range(size))
    async with serve(odd):
        results = odd.amap(wrong, errors="skip")
        assert await results == []
        assert (results.failed, len(results.errors)) == (size, min(size, 1000))


async def test_the_report_names_the_item_whose_failure_is_raised(serve: Serve) -> None:
    async with serve(odd):
        results = odd.amap([1, 3, 4], window=1)
        with pytest.raises(LookupError):
            await results
    assert [(failed.index, failed.item) for failed in results.errors] == [(2, 4)]


async def test_an_item_that_fails_and_then_succeeds_has_a_result(serve: Serve, fresh: Fresh) -> None:
    @task(name=fresh(), retries=2)
    async def second_time(ctx: Context, n: int) -> int:
        if ctx.attempt == 1:
            raise OSError("not yet")
        return n

    async with serve(second_time):
        results = second_time.amap(range(3), errors="skip")
        assert await results == [0, 1, 2]
        assert results.errors == ()


async def test_an_item_that_times_out_is_a_failure_of_that_item(serve: Serve, fresh: Fresh) -> None:
    @task(name=fresh(), timeout=0.5)
    async def sleepy(n: int) -> int:
        if n == 1:
            await anyio.sleep_forever()
        return n

    async with serve(sleepy):
        results = sleepy.amap(range(3), errors="skip")
        assert await results == [0, 2]
        assert isinstance(results.errors[0].error, TaskTimeout)


async def test_a_map_may_run_inside_a_map(serve: Serve, fresh: Fresh) -> None:
    name = fresh()

    @task(name=f"{name}_row")
    async def row(n: int) -> list[int]:
        return await odd.amap(range(n), errors="skip")

    async with serve(row, odd):
        assert await row.amap([0, 1, 4]) == [[], [], [1, 3]]


@pytest.mark.parametrize("ordered", [True, False])
async def test_a_reduction_of_what_is_left_keeps_the_order(serve: Serve, ordered: bool) -> None:
    async with serve(spell, join):
        for size in (0, 1, 2, 30):
            results = spell.amap(range(size), errors="skip", ordered=ordered)
            assert await results.reduce(join, fan_in=3) == spelled(size)
            assert results.failed == len(range(0, size, 3))


def test_the_blocking_face_leaves_out_the_same(serve_sync: ServeSync) -> None:
    with serve_sync(odd, spell, join):
        results = odd.map(range(10), errors="skip")
        assert results.results() == [1, 3, 5, 7, 9]
        assert [failed.index for failed in results.errors] == [0, 2, 4, 6, 8]
        wrong: Any = ["x"]
        assert odd.map(wrong, errors="skip").results() == []
        assert spell.map(range(30), errors="skip", ordered=False).reduce(join).result() == spelled(30)


# ------------------------------------------------------------------------------------ options of each item


async def test_each_item_may_have_options_of_its_own(serve: Serve, fresh: Fresh) -> None:
    runs: list[str] = []
    both_run = anyio.Event()

    @task(name=fresh())
    async def noted(text: str) -> str:
        runs.append(text)
        if len(runs) == 2:
            both_run.set()
        await both_run.wait()
        return text

    def keyed(text: str) -> CallOptions:
        return {"unique": text[0]}

    async with serve(noted):
        assert await noted.amap(["a1", "a2", "b1"], options=keyed) == ["a1", "a1", "b1"]
    assert runs == ["a1", "b1"]


async def test_options_that_an_item_cannot_have_are_refused(serve: Serve) -> None:
    def unknown(_: int) -> Any:
        return {"prioritiy": "high"}

    async with serve(odd):
        with pytest.raises(TypeError, match="did you mean 'priority'"):
            await odd.amap([1], options=unknown)
        with pytest.raises(ValueError, match="delay= is for background jobs"):
            await odd.amap([1], options=lambda _: {"delay": 3})
        same: Any = {"priority": "high"}
        with pytest.raises(ValueError, match=r"it is a function of an item; for all items, write \.options"):
            odd.amap([1], options=same)


# -------------------------------------------------------------------------------------------- map_reduce


async def test_map_and_reduce_may_be_one_call(serve: Serve) -> None:
    async with serve(spell, join):
        assert await amap_reduce([1, 2, 4], map=spell, reduce=join) == "1 2 4 "
        assert await amap_reduce(range(40), map=spell, reduce=join, errors="skip", fan_in=2) == spelled(40)
        assert await amap_reduce([], map=spell, reduce=join) == ""
        with pytest.raises(LookupError):
            await amap_reduce([1, 2, 3], map=spell, reduce=join)


def test_map_reduce_has_a_blocking_face(serve_sync: ServeSync) -> None:
    done: list[int] = []
    with serve_sync(spell, join):
        assert map_reduce([1, 2, 4], map=spell, reduce=join, timeout=30) == "1 2 4 "
        map_reduce(iter([1, 2]), map=spell, reduce=join, progress=lambda n, _: done.append(n))
    assert done == [1, 2]


def test_map_reduce_takes_tasks_alone() -> None:
    plain: Any = sum
    with pytest.raises(TypeError, match=r"is no task; put @task"):
        map_reduce([1], map=plain, reduce=plain)
    with pytest.raises(TypeError, match=r"is no task; put @task"):
        map_reduce([1], map=spell, reduce=plain)


# ---------------------------------------------------------------------------------------------- progress


class Screen:
    """A terminal as stderr. pytest has its own stderr in place before each test, so no fixture can do it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        try:
            self._ours, theirs = os.openpty()
        except OSError as error:
            pytest.skip(f"this machine has no terminal devices: {error}")
        self._stderr = os.fdopen(theirs, "w")
        monkeypatch.setattr(sys, "stderr", self._stderr)
        monkeypatch.setenv("TERM", "xterm")

    def shown(self) -> str:
        """All that was written. The terminal is gone then."""
        self._stderr.close()
        shown = bytearray()
        with suppress(OSError):  # the end of what a terminal shows
            while part := os.read(self._ours, 65536):
                shown += part
        os.close(self._ours)
        return shown.decode()


@pytest.mark.parametrize("sized", [True, False])
async def test_progress_is_a_bar_on_a_terminal(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, sized: bool
) -> None:
    async with serve(odd):
        screen = Screen(monkeypatch)
        await odd.amap([1, 3, 5] if sized else iter([1, 3, 5]), progress=True)
        shown = screen.shown()
    assert "odd" in shown
    assert ("3/3" if sized else "3/?") in shown
    assert shown.count("\x1b[?25h") == 1  # the cursor is shown again


async def test_a_failure_gives_the_terminal_back(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(odd):
        screen = Screen(monkeypatch)
        with pytest.raises(LookupError):
            await odd.amap([1, 2], progress=True)
        assert "\x1b[?25h" in screen.shown()


def test_a_blocking_batch_that_is_left_gives_the_terminal_back(
    serve_sync: ServeSync, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_sync(odd):
        screen = Screen(monkeypatch)
        for n in odd.map([1, 3, 5], progress=True):
            assert n == 1
            break
        assert "\x1b[?25h" in screen.shown()


async def test_without_a_terminal_there_is_no_bar(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    async with serve(odd):
        assert await odd.amap([1], progress=True) == [1]
    assert capfd.readouterr().err == ""


def test_progress_is_a_function_or_true() -> None:
    wrong: Any = "bar"
    with pytest.raises(ValueError, match="progress='bar'"):
        odd.amap([1], progress=wrong)


def test_a_failed_item_is_a_value() -> None:
    error = TaskFailed("no")
    assert FailedItem(1, "a", error) == FailedItem(1, "a", error)
