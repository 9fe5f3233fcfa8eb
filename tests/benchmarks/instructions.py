"""Instructions of the server for each job, which valgrind counts.

The same sources give the same figure within 0.1 %, on a busy machine, too. It leaves out the kernel, and says
less about time than a clock: a load from memory may take as long as a hundred instructions.
"""

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.benchmarks.load import Load, generator, run
from tests.benchmarks.servers import free_port, running

FEW: Final = 2_000
MANY: Final = 8_000


def instructions(load: Load) -> float:
    """Instructions of the server in memory for each job of a load. Its start and its end are left out."""
    return (_of_all(replace(load, jobs=MANY)) - _of_all(replace(load, jobs=FEW))) / (MANY - FEW)


def _of_all(load: Load) -> int:
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed (Debian: valgrind)")
    with tempfile.TemporaryDirectory() as folder:
        counts, port = Path(folder, "counts"), free_port()
        valgrind = ("valgrind", "--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={counts}")
        server = (sys.executable, "-m", "gearflow_cli", "server", "--memory", "-p", str(port))
        command = ("env", "PYTHONHASHSEED=0", *valgrind, *server)
        with running("gearflow", command, port) as process:
            run(generator(), process, load)
        return int(counts.read_text().rpartition("summary:")[2])
