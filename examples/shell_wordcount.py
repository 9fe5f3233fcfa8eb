"""Map-reduce from the shell: the words of Python's standard library, in one pipe.

    python examples/shell_wordcount.py [DIRECTORY]

A server and a worker with two slots are started as one would start them in a shell. Then the pipe below runs.
Each line of ``find`` is the path of a file, ``count`` makes the words of it, twenty files share a job, and
``add_up`` joins what comes back. In the end one process counts the same files by itself, by calling the same
functions plainly. The results must be equal.
"""

import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from gearflow import JobServer
from gearflow.client import SyncAdmin

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from examples.wordcount.tasks import add_up, count  # noqa: E402  (found only now, as this is a script)

PIPE = """
gearflow() { "$PYTHON" -m gearflow_cli "$@"; }

find "$DIRECTORY" -maxdepth 1 -name '*.py' | gearflow map count --chunk 20 --reduce add_up
"""


@contextmanager
def worker(environment: dict[str, str], server: str) -> Generator[None]:
    """A worker for the time of the block, from the moment on that the server knows it."""
    command = [sys.executable, "-m", "gearflow_cli", "worker", "-c", "2", "--log-level", "error"]
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            while not any(row.workers for row in SyncAdmin(server).status()):
                if process.poll() is not None:
                    sys.exit("the worker has ended")
                time.sleep(0.05)
            yield
        finally:
            process.terminate()


def main(directory: Path) -> None:
    """Count in the shell, count here, and compare."""
    with JobServer(port=0) as server:
        environment = os.environ | {
            "GEARMAN_SERVERS": server.address,
            "GEARFLOW_TASKS": "examples.wordcount.tasks",
            "PYTHON": sys.executable,
            "DIRECTORY": str(directory),
        }
        with worker(environment, server.address):
            counted = subprocess.run(
                ["/bin/sh", "-c", PIPE], cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True
            )
    words: dict[str, int] = json.loads(counted.stdout)
    here = add_up([count(os.fsencode(path)) for path in sorted(directory.glob("*.py"))])
    for word, times in sorted(words.items(), key=lambda item: (-item[1], item[0]))[:3]:
        print(f"{times:7,}  {word}")
    print(f"{sum(words.values()):,} words, {len(words):,} of them distinct")
    print(f"a plain count gives the same: {words == here}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else sysconfig.get_path("stdlib")))
