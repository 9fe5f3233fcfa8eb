"""What the workers run: a short task that notes each of its runs."""

import os
import time

from gearflow import task

RUNS = "FLEET_RUNS"
"""The environment variable that names the file of runs."""


@task
def square(number: int) -> int:
    """The square of a number, after a moment. Adds a line to the file of runs."""
    time.sleep(0.005)
    # One write to a file that is opened for appending is whole, however many workers write.
    with open(os.environ[RUNS], "a", encoding="ascii") as runs:  # noqa: PTH123  (of a variable, not a Path)
        runs.write(f"{number}\n")
    return number * number
