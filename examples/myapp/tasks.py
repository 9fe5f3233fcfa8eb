"""Tasks to try: ``gearflow dev myapp.tasks`` in the directory ``examples``."""

import time

from gearflow import Context, task


@task
def add(a: int, b: int) -> int:
    return a + b


@task(timeout=60)
def brew(ctx: Context, cups: int, seconds: float = 0.5) -> str:
    """Something that takes its time, and tells how far it is."""
    for _ in ctx.track(range(cups)):
        time.sleep(seconds)
    return f"{cups} cups of tea"
