"""Tasks that run in processes of their own, which import this module, and a hook of theirs.

How they are told to go on: ``gate`` is a FIFO, whose reading blocks until a test opens it.
"""

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import redirect_stderr
from contextvars import ContextVar
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import anyio
from pydantic import AfterValidator, BaseModel

from gearflow import Batch, Context, Discard, Fail, Retry, Snooze, TryAgain, lifespan, task

colour: ContextVar[str] = ContextVar("colour", default="none")


class Point(BaseModel):
    x: int
    y: int


class OutOfInk(Exception):
    pass


@lifespan
async def painted() -> AsyncIterator[None]:
    """Sets a variable; where a test has asked for it, tells when it is left."""
    colour.set("blue")
    yield
    if diary := os.environ.get("HEAVY_DIARY"):
        with open(diary, "a") as file:  # noqa: ASYNC230, PTH123  (it is short)
            file.write(f"left {os.getpid()}\n")


@task(executor="process")
def mirror(point: Point) -> Point:
    return Point(x=-point.x, y=point.y)


@task(executor="process")
def pid() -> int:
    return os.getpid()


@task(executor="process")
def surroundings() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "directory": str(Path.cwd()),
        "path": sys.path,
        "main thread": threading.current_thread() is threading.main_thread(),
        "stdin": sys.stdin.read(),
        "colour": colour.get(),
        "worker": "gearflow.worker.worker" in sys.modules,
    }


@task(executor="process")
def long(payload: bytes) -> bytes:
    return payload[::-1]


@task(executor="process")
def small(number: Annotated[int, AfterValidator(lambda number: number % 10)]) -> int:
    return "no number" if number == 7 else number  # type: ignore[return-value]  # pyright: ignore[reportReturnType]  # which is tested


@task(executor="process")
def reports(ctx: Context) -> list[Any]:
    for _ in ctx.track("abc"):
        pass
    ctx.warn("half")
    ctx.progress(7, 8)
    return [ctx.handle, ctx.function, ctx.attempt, ctx.deadline, ctx.cancelled]


@task(executor="process")
def hasty(ctx: Context) -> None:
    for step in range(10_000):
        ctx.progress(step + 1, 10_000)


@task(executor="process", batch=Batch(3, wait=3600), retries=2)
def in_batches(ctx: Context, words: list[str]) -> list[str | Exception]:
    """Each word says what becomes of it, or of all."""
    results: list[str | Exception] = []
    for word, item in zip(words, ctx.items, strict=True):
        item.progress(len(word), 10)
        endings: dict[str, Exception] = {
            "fail": OutOfInk(word),
            "discard": Discard(word),
            "again": TryAgain(0),
        }
        again = word == "again" and item.attempt > 1
        results.append(f"{word} {item.attempt} {os.getpid()}" if again else endings.get(word, word))
    ctx.warn("said to all")
    if "crash" in words:
        os._exit(3)
    if "short" in words:
        results.pop()
    if "cancelled" in words:
        item = ctx.items[words.index("cancelled")]
        while not item.cancelled:
            time.sleep(0.001)
    return results


# -------------------------------------------------------------------------------------------- streams
# The same in a process, in a thread and on the event loop. The diary is a file that says how it ended.


def counts(ctx: Context, diary: str, count: int, size: int = 0, fault: str = "") -> Iterator[str]:
    """Numbers as texts, from where the run before stopped; longer ones if there is a size."""
    try:
        for number in range(ctx.parts, count):
            yield f"{number}{'.' * size}"
        if fault == "raise":
            raise OutOfInk("at the end")
        if fault == "invalid":
            yield 7  # type: ignore[misc]  # pyright: ignore[reportReturnType]  # which is tested
    except GeneratorExit:
        Path(diary).write_text(f"closed, {ctx.cancelled}")
        raise


async def acounts(ctx: Context, diary: str, count: int, size: int = 0, fault: str = "") -> AsyncIterator[str]:
    try:
        for value in counts(ctx, diary, count, size, fault):
            yield value
    except (GeneratorExit, anyio.get_cancelled_exc_class()):
        Path(diary).write_text(f"closed, {ctx.cancelled}")  # noqa: ASYNC240  (it is short)
        raise


counts_in_process = task(name="heavy.counts.process", executor="process", resumable=True)(counts)
counts_in_thread = task(name="heavy.counts.thread", resumable=True)(counts)
counts_on_loop = task(name="heavy.counts.loop", resumable=True)(acounts)


@task(executor="process", retries=2)
def steps(ctx: Context) -> Iterator[str]:
    previous = ctx.previous
    yield f"{ctx.attempt} {ctx.parts} {previous and (previous.done, previous.total, previous.message)}"
    ctx.progress(ctx.attempt, 3, f"attempt {ctx.attempt}")
    if ctx.attempt < 3:
        raise OutOfInk("no red")


def scheduled(ctx: Context) -> str:
    """The time of the schedule."""
    return f"{ctx.scheduled_at} {ctx.scheduled_at and ctx.scheduled_at.tzinfo}"


scheduled_in_process = task(name="heavy.scheduled.process", executor="process")(scheduled)
scheduled_in_thread = task(name="heavy.scheduled.thread")(scheduled)


# ------------------------------------------------------------------------------------------- failures


KINDS = ("key", "own", "exit", "stop", "discard", "invalid", "unknown")


def raise_it(kind: str) -> None:
    """One of them."""
    match kind:
        case "key":
            raise KeyError("plum")
        case "own":
            raise OutOfInk("no red")
        case "exit":
            raise SystemExit("bye")
        case "stop":
            raise StopIteration(7)
        case "discard":
            raise Discard("the account is closed")
        case "fail":
            raise Fail("no such order")
        case "invalid":
            Point.model_validate({"x": "many"})
        case _:

            class Local(OSError):  # which nobody else can know
                pass

            raise Local("disk")


@task(executor="process")
def fails(kind: str) -> None:
    raise_it(kind)


@task(executor="thread")
def fails_in_thread(kind: str) -> None:
    raise_it(kind)


@task
def in_a_thread() -> int:
    return os.getpid()


@task(executor="process", retries=Retry(3, on=OSError, backoff=0))
def third_time_on_class(ctx: Context) -> int:
    if ctx.attempt < 3:
        raise_it("unknown")
    return ctx.attempt


@task(executor="process", retries=Retry(3, on="tests.worker.heavy.OutOfInk", backoff=0))
def third_time_on_name(ctx: Context) -> int:
    if ctx.attempt < 3:
        raise_it("own")
    return ctx.attempt


@task(executor="process", retries=Retry(3, on=OSError, backoff=0))
def not_worth_it(ctx: Context) -> int:
    if ctx.attempt < 3:
        raise_it("key")
    return ctx.attempt


@task(executor="process")
def again(ctx: Context) -> int:
    if ctx.attempt < 2:
        raise TryAgain(after=0)
    return ctx.attempt


@task(executor="process")
def always_again() -> None:
    try:
        raise_it("key")
    except KeyError as error:
        raise TryAgain(after=0) from error


@task(executor="process")
def early(flag: str) -> str:
    if not Path(flag).exists():
        Path(flag).touch()
        raise Snooze(0)
    return "in time"


# --------------------------------------------------------------------------------------------- crashes


CRASHES = {
    "exit": "exited with status 3",
    "signal": "was killed by SIGKILL",
    "fault": "was killed by SIGSEGV",
    "orphan": "exited with status 4",
}


@task(executor="process")
def crashes(how: str) -> int:
    sys.stdout.write("first words\n")
    sys.stderr.write("last words\n")
    match how:
        case "exit":
            os._exit(3)
        case "signal":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "orphan":  # holds its parent's output open
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3)"])
            os._exit(4)
        case "talk":
            for number in range(30):
                sys.stdout.write(f"line {number}\n")
            os._exit(5)
        case _:
            pass
    return os.getpid()


@task(executor="process", retries=Retry(2, backoff=0))
def crashes_once(ctx: Context) -> int:
    if ctx.attempt == 1:
        os._exit(9)
    return ctx.attempt


# ---------------------------------------------------------------------------------------- without end


@task(executor="process")
def watchful(ctx: Context, diary: str) -> None:
    ctx.warn(str(os.getpid()))
    while not ctx.cancelled:  # a task has nothing to wait for but this flag
        time.sleep(0.001)
    Path(diary).write_text("told")


@task(executor="process")
def stubborn(ctx: Context) -> None:
    """Holds the GIL in C for good, and tells its pid before."""
    ctx.warn(str(os.getpid()))
    re.match(r"(a+)+$", "a" * 64 + "b")


@task(executor="process")
def delegates(ctx: Context) -> None:
    """Has a program do it, and tells its pid before."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as program:
        ctx.warn(str(program.pid))


@task
def leaves_a_child(ctx: Context) -> None:
    """Forks a process that does nothing, tells its pid, and waits for it."""
    child = os.fork()
    if not child:
        time.sleep(600)
        os._exit(0)
    ctx.warn(str(child))
    os.waitpid(child, 0)


@task(executor="process")
def survives(gate: str) -> int:
    """Reads from a FIFO until that is closed. Its own stderr has no descriptor."""
    with redirect_stderr(StringIO()):
        Path(gate).read_text()
    return os.getpid()


# ---------------------------------------------------------------------------------------- and the rest


@task(executor="process")
def grows(size: int) -> int:
    grows.__dict__.setdefault("held", []).append(b"x" * size)
    return os.getpid()


@task(executor="process")
def forks(mark: str) -> str:
    """Two processes come back from this; the other one is the first to."""
    if child := os.fork():
        os.waitpid(child, 0)
        return "the parent returns"
    Path(mark).touch()
    return "the child returns"


@task
def forks_in_a_thread() -> str:
    """The same in a thread, where nobody waits for the other one to come back."""
    if child := os.fork():
        return f"the child ended with {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}"
    return "the child returns"


@task
async def forks_on_the_loop(goes_on: bool) -> str:
    """The same on the event loop, which the other one comes back to at its end, or before."""
    if child := os.fork():
        status = os.waitpid(child, 0)[1]  # noqa: ASYNC222  (for the moment in which it ends)
        return f"the child ended with {os.waitstatus_to_exitcode(status)}"
    if goes_on:
        await asyncio.sleep(0)
        await asyncio.sleep(600)
    return "the child returns"


@task
def forks_at_first(folder: str) -> None:
    """The first of its calls forks. Each call leaves a file with the number of its process."""
    is_first = not any(Path(folder).iterdir())
    (Path(folder) / str(os.getpid())).touch()
    if is_first and (child := os.fork()):
        os.waitpid(child, 0)


@task(executor="process")
def calls() -> int:
    return pid.call()


@task(executor="process")
def says() -> None:
    logging.getLogger("heavy").info("not wanted by %s", "anybody")
    logging.getLogger("heavy").warning("a warning of %s own", "its", extra={"of": Point(x=1, y=2)})
    try:
        raise_it("key")
    except KeyError:
        logging.getLogger("heavy").exception("a failure")
    sys.stdout.write("to stdout\n")
    sys.stderr.write("without an end")


def factory() -> Any:
    """A task that no import defines."""

    @task(executor="process")
    def hidden() -> None: ...

    return hidden
