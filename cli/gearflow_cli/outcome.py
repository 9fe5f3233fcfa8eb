"""How a job has ended, as it is told: the result on stdout, why there is none on stderr."""

from typing import TYPE_CHECKING, Any

from gearflow_cli import console, render
from gearflow_cli.exits import ExitCode, Failure

if TYPE_CHECKING:
    from gearflow.errors import TaskFailed


def write(data: bytes, kind: Any = None) -> None:
    """Print a result: JSON readably on a terminal, text with the end of its line, other bytes as they are.

    ``kind`` is its type, where that is known.
    """
    shown = render.result(data) if console.is_terminal() and kind not in (str, bytes) else None
    if shown is not None:
        console.show(shown)
        return
    console.write_bytes(data)
    if (
        data
        and not data.endswith(b"\n")
        and (console.is_terminal() or (kind is not bytes and _is_text(data)))
    ):
        console.write_bytes(b"\n")


def failure(error: "TaskFailed", subject: str, *, verbose: bool) -> Failure:
    """What the worker said of why a job failed; with its traceback if the user is so ``verbose``."""
    from gearflow.errors import PayloadInvalid

    code = ExitCode.PAYLOAD_INVALID if isinstance(error, PayloadInvalid) else ExitCode.TASK_FAILED
    reason = f"{error.type}: {error.message}" if error.type else error.message
    lines = [f"{subject} failed: {reason}"]
    if error.errors:
        lines.append(render.payload_faults(error.errors))
    if verbose and error.traceback:
        lines.append(f"\non the worker:\n\n{error.traceback.rstrip()}")
    return Failure(code, render.printable_lines("\n".join(lines)))


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
