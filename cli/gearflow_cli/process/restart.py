"""Running the same command again, in another process or in place of this one."""

import os
import signal
import sys
from contextlib import suppress
from typing import Final, NoReturn

from gearflow_cli import logs

HELD_BACK: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that stay blocked during a restart, until the new process handles them."""


def _here() -> str:
    try:
        return os.getcwd()  # noqa: PTH109  (for os.chdir)
    except FileNotFoundError:  # it was removed
        return os.curdir


_HOME: Final = _here()
"""The directory in which this process started. The modules of tasks may change to another one."""


def restart(*, quiet: bool = False) -> NoReturn:
    """Replace this process by a new interpreter with the same command, new code and the same process id.

    It starts in the same directory. With ``quiet`` it takes no jobs until SIGCONT.
    """
    from gearflow.supervisor import HELD_BACK as OF_A_MEMBER

    sys.stdout.flush()
    logs.flush()
    with suppress(OSError):  # it was removed
        os.chdir(_HOME)
    signal.pthread_sigmask(signal.SIG_BLOCK, {*OF_A_MEMBER, *HELD_BACK})  # until the new process handles them
    if quiet:
        os.kill(os.getpid(), signal.SIGTSTP)  # also blocked, unless SIGCONT comes first
    os.execv(sys.executable, command())


def command() -> list[str]:
    """The command line that runs this command again, with the same options of the interpreter."""
    return [sys.executable, *sys.orig_argv[1:]]
