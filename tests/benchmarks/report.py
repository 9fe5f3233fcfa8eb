"""How benchmarks print what they measured: Markdown tables as in docs/explanation/performance.md."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from tests.benchmarks.servers import GEARMAND, ROOT


@dataclass
class Table:
    """A table, under its heading in the docs."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list[Sequence[str]])

    def add(self, *cells: str) -> None:
        """Append a row. Cells that are missing at its end stay empty."""
        self.rows.append([*cells, *[""] * (len(self.columns) - len(cells))])

    def markdown(self) -> str:
        """As it stands in the docs."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines)

    def __str__(self) -> str:
        return f"\n## {self.title}\n\n{self.markdown()}\n"


def shown(figure: float) -> str:
    """Three digits that count."""
    if figure == 0:
        return "0"
    digits = max(2 - int(f"{abs(figure):e}".partition("e")[2]), 0)
    rounded = float(f"{figure:.3g}")
    return f"{rounded:,.{digits}f}"


def ratios(ours: Sequence[float], theirs: Sequence[float], *, more_is_better: bool = True) -> str:
    """How many times as good ours is, pair by pair: the median and the range."""
    pairs = zip(ours, theirs, strict=True)
    each = [mine / other if more_is_better else other / mine for mine, other in pairs]
    spread = f" ({min(each):.2f} .. {max(each):.2f})" if len(each) > 1 else ""
    return f"{median(each):.2f}{spread}"


def spread(values: Sequence[float], unit: str = "") -> str:
    """The median and the range."""
    return f"{shown(median(values))}{unit} ({shown(min(values))} .. {shown(max(values))})"


def machine() -> str:
    """What the figures depend on. An interpreter as distributions build it is a fifth faster than others."""
    return f"{os.cpu_count()} cores, Python {platform.python_version()} ({Path(sys.executable).resolve()})"


def conditions() -> str:
    """The machine, the interpreter, and the versions of the programs that are measured, a line for each."""
    python = f"Python {platform.python_version()} ({Path(sys.executable).resolve()})"
    lines = [
        f"processor: {_processor()}, {os.cpu_count()} cores, {_memory()} GiB",
        f"system: {_system()}, Linux {platform.release()}",
        f"interpreter: {python}, uvloop {_version('uvloop')}",
        f"gearflow: {_said('git', '-C', str(ROOT), 'describe', '--always', '--dirty')}",
        f"gearmand: {_said(GEARMAND or 'gearmand', '--version')}",
    ]
    return "\n".join(lines)


def busy() -> str:
    """How busy the machine is: the load average of the last minute."""
    return f"load average {os.getloadavg()[0]:.1f}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


def _memory() -> int:
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.system()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"


def _said(program: str, *arguments: str) -> str:
    if shutil.which(program) is None:
        return "is not installed"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    return " ".join(done.stdout.split()) or "unknown"
