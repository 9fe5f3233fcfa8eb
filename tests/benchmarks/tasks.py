"""What the benchmark's worker runs."""

from collections.abc import AsyncIterator

from gearflow import task


@task
async def echo(data: bytes) -> bytes:
    """Raw bytes there and back."""
    return data


@task
async def add(a: int, b: int) -> int:
    """A JSON object there, a number back, validated on both ends."""
    return a + b


@task
async def nothing(number: int) -> None:
    """As little as a task can do."""


@task
async def count(to: int) -> AsyncIterator[int]:
    """Small values."""
    for number in range(to):
        yield number


@task
async def blocks(many: int, size: int) -> AsyncIterator[bytes]:
    """Large values, as they are."""
    block = bytes(size)
    for _ in range(many):
        yield block
