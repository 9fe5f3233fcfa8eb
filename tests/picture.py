"""``docs/terminal.svg``, the picture in README: the output of real commands, drawn.

    python -m tests.picture

Commands run in ``examples`` on a pseudo-terminal of 116 columns, with a server of their own.
"""

import os
import pty
import re
import subprocess
import sys
import time
from io import StringIO
from typing import Final

from rich.console import Console
from rich.text import Text

from tests.conftest import ROOT
from tests.ports import free_port

_COLUMNS: Final = 116
_DEADLINE: Final = 30.0
_PYTHON: Final = """\
from myapp.tasks import add, brew
print(">>> add.call(1, b=2)"); print(add.call(1, b=2))
print(">>> brew.map([1, 2, 3]).results()"); print(brew.map([1, 2, 3]).results())
"""


class Terminal:
    """A command on a pseudo-terminal, and what it has printed."""

    def __init__(self, *command: str, port: int) -> None:
        self._reader, writer = pty.openpty()
        environment = {
            **os.environ,
            "COLUMNS": str(_COLUMNS),
            "TERM": "xterm-256color",
            "GEARMAN_SERVERS": f"127.0.0.1:{port}",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'cli'}:{ROOT / 'examples'}",
        }
        self.process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT / "examples", env=environment, stdout=writer, stderr=writer
        )
        os.close(writer)
        self.printed = ""

    def read_until(self, text: str) -> None:
        """Read until a text has come, or the output ends."""
        until = time.monotonic() + _DEADLINE
        while text not in self.printed and time.monotonic() < until:
            try:
                self.printed += os.read(self._reader, 65536).decode()
            except OSError:  # the other side is closed
                return


def main() -> None:
    """Write the picture."""
    port = free_port()
    server = Terminal("-m", "gearflow_cli", "dev", "myapp.tasks", "-p", str(port), "--no-reload", port=port)
    try:
        server.read_until("try in another terminal")
        submit = Terminal("-m", "gearflow_cli", "submit", "brew", "cups=3", port=port)
        submit.read_until("\0")
        python = Terminal("-c", _PYTHON, port=port)
        python.read_until("\0")
        server.read_until("job done")
    finally:
        server.process.terminate()
        server.process.wait()
    parts = [
        ("$ gearflow dev myapp.tasks", server.printed),
        ("$ gearflow submit brew cups=3", submit.printed),
        ("$ python", python.printed),
    ]
    text = "\n\n".join(f"{command}\n{_last_of_each_line(output).strip()}" for command, output in parts)
    text = text.replace(f" -s 127.0.0.1:{port}", "").replace(str(port), "4730")
    console = Console(record=True, width=_COLUMNS, file=StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text))
    drawn = re.sub(
        r"<!--.*?-->|@font-face \{.*?\}\s*", "", console.export_svg(title="gearflow"), flags=re.DOTALL
    )
    (ROOT / "docs" / "terminal.svg").write_text(drawn)  # without fonts from elsewhere


def _last_of_each_line(output: str) -> str:
    """What stays on the terminal where a line was drawn again and again."""
    output = re.sub(r"\x1b\[\d*[A-HJKST]|\x1b\[\?25[hl]", "", output.replace("\r\n", "\n"))
    return "\n".join(line.rpartition("\r")[2] for line in output.split("\n"))


if __name__ == "__main__":
    main()
