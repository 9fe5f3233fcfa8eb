"""What the benchmark's worker runs."""

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
