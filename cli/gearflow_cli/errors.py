"""The exit codes of commands, and the errors that lead to them.

A command raises an error, and this module finds the message and the exit code. If the user can fix the
problem, the message names the remedy and has no traceback.
"""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Final, TextIO

import typer

from gearflow_cli import logs
from gearflow_cli.text import printable, printable_lines
from gearflow_cli.tracebacks import own_lines


class ExitCode(IntEnum):
    """The codes from 64 on are those of BSD's sysexits.h."""

    DONE = 0
    TASK_FAILED = 1
    USAGE = 2
    PAYLOAD_INVALID = 65
    NO_SUCH_JOB = 66
    NO_SERVER = 69
    BUG = 70
    IO_ERROR = 74
    TIMED_OUT = 75
    OUTCOME_UNKNOWN = 76
    MISCONFIGURED = 78
    INTERRUPTED = 130  # 128 + SIGINT, as shells have it
    BROKEN_PIPE = 141  # 128 + SIGPIPE


_OF_WRITING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class CliError(Exception):
    """Ends the command. ``message`` says why, and what to do about it."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@contextmanager
def reporting() -> Generator[None, None, None]:
    """Turn the error of a command into a message on stderr and an exit code."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except BrokenPipeError:
        _forget(sys.stdout)
        raise typer.Exit(ExitCode.BROKEN_PIPE) from None
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich exits with 1 when it prints a help
            raise typer.Exit(ExitCode.BROKEN_PIPE) from None
        raise
    except OSError as error:  # the library translates its own
        _forget(sys.stdout)
        tell(_in_words(error), logging.ERROR)
        raise typer.Exit(ExitCode.IO_ERROR) from None
    except Exception as error:
        if hasattr(error, "exit_code"):  # typer's own error, which it reports itself
            if isinstance(message := getattr(error, "message", None), str):
                vars(error)["message"] = message.removeprefix("Value error, ")
            raise
        failure = explain(error)
        tell(failure.message, logging.ERROR)
        raise typer.Exit(failure.code) from None


def _in_words(error: OSError) -> str:
    """Return what the system says, without its number."""
    if error.strerror is None:
        return str(error)
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return f"cannot write: {error.strerror}" if error.errno in _OF_WRITING else error.strerror


def tell(message: str, level: int = logging.INFO) -> None:
    """Print a message on stderr, if it is still open. Its lines are escaped."""
    if logs.is_json():
        logs.write(message, level)
    else:
        logs.flush()  # the lines that came before
        with suppress(OSError):
            print(f"gearflow: {printable_lines(message)}", file=sys.stderr, flush=True)  # noqa: T201  (this is its purpose)


def forget_unread_stderr() -> None:
    """Drop unwritten output of stderr. A closed reader or terminal is no failure of the command."""
    try:
        sys.stderr.flush()
    except OSError:
        _forget(sys.stderr)


def _forget(stream: TextIO) -> None:
    """Replace a broken stream. Otherwise the interpreter exits with 120 when it flushes the stream."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def explain(error: Exception) -> CliError:
    """Return the failure for an error, with a traceback if it is a bug in gearflow."""
    from gearflow import errors

    text = str(error)
    match error:
        case CliError():
            return error
        case errors.PayloadInvalid():  # a worker's is also a TaskFailed
            code = ExitCode.PAYLOAD_INVALID
        case errors.TaskFailed():
            code = ExitCode.TASK_FAILED
        case errors.UnknownJob():
            code, text = ExitCode.NO_SUCH_JOB, printable(text)
        case errors.UnknownTask() | errors.UnknownSchedule():
            code, text = ExitCode.USAGE, printable(text)
        case errors.SubmitUnknown() | errors.ConnectionLost():
            code, text = ExitCode.OUTCOME_UNKNOWN, printable(text)
        case errors.NoServer() | errors.ServerError() | errors.RemoteProtocolError():
            code, text = ExitCode.NO_SERVER, printable(text)
        case errors.StoreError():
            from gearflow.stores.shared import Away  # loads the broker, as whatever raised the error did

            code = ExitCode.NO_SERVER if isinstance(error, Away) else ExitCode.MISCONFIGURED
        case errors.StartupFailed(__cause__=BaseException() as cause):
            said = "".join(traceback.format_exception_only(cause)).rstrip()
            where = own_lines(cause).removesuffix(said).rstrip()  # the first line has that already
            return CliError(ExitCode.MISCONFIGURED, f"{error}\n{where}".rstrip())
        case errors.StartupFailed() | errors.TaskDefinitionError() | errors.UnsupportedByServer():
            code = ExitCode.MISCONFIGURED
        case errors.LocalProtocolError():
            code = ExitCode.USAGE
        case _:
            trace = "".join(traceback.format_exception(error)).rstrip()
            return CliError(
                ExitCode.BUG, f"this is a bug in gearflow; please report it with what follows\n{trace}"
            )
    return CliError(code, text)
