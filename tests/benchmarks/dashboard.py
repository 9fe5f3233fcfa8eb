"""How long the pages of the dashboard take at a server with a million jobs.

    python -m tests.benchmarks.dashboard [--jobs 1000000] [--times 20]

A durable server gets so many background jobs that no worker takes. ``gearflow web`` is asked for each page,
again and again. The figures are milliseconds from the request to the last byte, without a browser. Pages that
search or count are asked for with another text each time, so that they do not show what they know already,
and then until they are complete.
"""

import argparse
import time
import urllib.request
from collections.abc import Sequence
from statistics import median
from typing import Final

from tests.benchmarks.load import Load, generator, run
from tests.benchmarks.observers import dashboard
from tests.benchmarks.report import Table, busy, conditions, shown
from tests.benchmarks.servers import durable

PAGES: Final = (
    "/",
    "/functions",
    "/functions/load",
    "/jobs",
    "/jobs?state=waiting&function=load",
    "/jobs?text=no-such-text-N",
    "/jobs/cancel?text=no-such-text-N",
    "/jobs/cancel?state=waiting",
    "/dead",
    "/workers",
    "/servers",
)


def ask(url: str) -> str:
    """The page at a URL."""
    with urllib.request.urlopen(url) as answer:
        return str(answer.read(), "utf-8")


def measure(url: str, times: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each of so many requests: to the first answer, and until the page is complete."""
    first: list[float] = []
    whole: list[float] = []
    for number in range(times):
        asked = url.replace("-N", f"-{number}")
        begin = time.perf_counter()
        page = ask(asked)
        first.append((time.perf_counter() - begin) * 1000)
        while "Searching" in page or "Counting" in page:
            page = ask(asked)
        whole.append((time.perf_counter() - begin) * 1000)
    return first, whole


def table(pages: Sequence[str], jobs: int, times: int) -> Table:
    """Each page, from a server with so many jobs."""
    columns = "page", "median, ms", "longest, ms", "until it is complete, ms"
    result = Table(f"Pages of the dashboard, {jobs:,} jobs", columns)
    with durable() as server:
        run(generator(None), server, Load("enqueue", jobs, 8, 256))
        with dashboard(server) as url:
            measure(url, 1)
            for page in pages:
                first, whole = measure(url + page, times)
                result.add(f"`{page}`", shown(median(first)), shown(max(first)), shown(median(whole)))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=20)
    options = parser.parse_args()
    print(table(PAGES, options.jobs, options.times))
    print(f"{conditions()}\n{busy()} at the end")


if __name__ == "__main__":
    main()
