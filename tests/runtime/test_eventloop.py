"""Posting to an event loop from anywhere."""

import subprocess
import sys

import pytest

DROPPED_LATE = """
import sys
import anyio
from gearflow.runtime.eventloop import poster

class Dropped:
    def __init__(self):
        self.post = poster()

    def __del__(self):
        self.post(print)

async def main():
    global dropped
    dropped = Dropped()

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_nothing_is_said_of_what_is_dropped_when_the_interpreter_exits(backend: str) -> None:
    command = [sys.executable, "-c", DROPPED_LATE, backend]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("", "")
