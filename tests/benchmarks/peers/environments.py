"""A virtual environment for each peer, kept outside of the checkout for the next time."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.benchmarks.servers import cache

SIDES: Final = Path(__file__).parent / "sides"
PLACE: Final = cache() / "peers"
"""Where environments and programs are kept."""

_VERSIONS: Final = """\
import sys
from importlib.metadata import version

print(*(f"{name} {version(name)}" for name in sys.argv[1:]), sep=", ")
"""


class Missing(Exception):
    """A peer cannot take part; the text says why."""


def python(name: str, packages: tuple[str, ...]) -> Path:
    """The interpreter of a peer's environment, which is made if need be.

    Raises:
        Missing: Its packages cannot be installed.
    """
    if not packages:
        return Path(sys.executable)
    place = PLACE / name
    interpreter = place / "bin" / "python"
    made = place / "made-for"
    wanted = f"{sys.version} {packages}"
    if not made.exists() or made.read_text() != wanted:
        _run([sys.executable, "-m", "venv", "--clear", str(place)])
        _run([str(interpreter), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages])
        made.write_text(wanted)
    return interpreter


def versions(interpreter: Path, packages: tuple[str, ...]) -> str:
    """What is installed of these packages, for the record."""
    names = [package.partition("[")[0] for package in packages]
    return _run([str(interpreter), "-c", _VERSIONS, *names]).strip()


def compiled(source: str, *libraries: str) -> Path:
    """A program of a C source among the sides.

    Raises:
        Missing: There is no compiler, or a library is not there.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise Missing("there is no C compiler")
    PLACE.mkdir(exist_ok=True)
    program = PLACE / source.removesuffix(".c")
    _run([compiler, "-O2", "-o", str(program), str(SIDES / source), *(f"-l:{name}" for name in libraries)])
    return program


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise Missing(lines[-1] if lines else f"{command[0]} failed")
    return done.stdout
