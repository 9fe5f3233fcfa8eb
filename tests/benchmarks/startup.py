"""How long a user waits before anything happens: the command line's help, and the import.

    python -m tests.benchmarks.startup [--runs 11]

Whole processes, in turns with a bare interpreter, medians in milliseconds.
"""

import argparse
import subprocess
import sys
import time
from statistics import median
from typing import Final

COMMANDS: Final = {
    "python -c pass": ("-c", "pass"),
    "import gearflow": ("-c", "import gearflow"),
    "gearflow --help": ("-m", "gearflow_cli", "--help"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=11)
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.runs):
        for name, arguments in COMMANDS.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            times[name].append((time.perf_counter() - begin) * 1000)
    for name, values in times.items():
        print(f"{name:20} {median(values):6.0f} ms  ({min(values):.0f} .. {max(values):.0f})")


if __name__ == "__main__":
    main()
