"""Run a soak by hand, and print its report.

    python -m tests.soak [--minutes 5] [--jobs 20000] [--pause 3] [--seed 1] [--hostile] [--keep DIR]

``--jobs`` is the number of background jobs, and that of attached ones; they are spread over the minutes.
``--pause`` is the average number of seconds from one kill to the next. ``--hostile`` lets hostile peers at
the servers. ``--keep`` names an empty folder for
the servers' files and the logs, which are thrown away otherwise.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.soak.soak import Plan, soak


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--pause", type=float, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hostile", action="store_true")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    plan = Plan(options.jobs, options.minutes * 60, options.pause, options.seed, options.hostile)
    with tempfile.TemporaryDirectory() as directory:
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
        report = soak(plan, options.keep or Path(directory))
    sys.stdout.write(f"{report}\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
