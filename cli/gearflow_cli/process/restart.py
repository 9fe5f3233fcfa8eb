"""The same command once more: beside this process, or in its place."""

import os
import signal
import sys
from contextlib import suppress
from typing import Final, NoReturn

HELD_BACK: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that wait while a process begins anew, until it handles them."""


def _here() -> str:
    try:
        return os.getcwd()  # noqa: PTH109  (for os.chdir)
    except FileNotFoundError:  # it was removed
        return os.curdir


_HOME: Final = _here()
"""Where this process was started; the modules of tasks may go elsewhere."""


def begin_anew(*, quiet: bool = False) -> NoReturn:
    """Put a fresh interpreter with the same command in the place of this one: new code, same process id.

    It begins where this one did, and quiet if it is to.
    """
    from gearflow.supervisor import HELD_BACK as OF_A_MEMBER

    sys.stdout.flush()
    with suppress(OSError):  # it was removed
        os.chdir(_HOME)
    signal.pthread_sigmask(signal.SIG_BLOCK, {*OF_A_MEMBER, *HELD_BACK})  # until it handles them
    if quiet:
        os.kill(os.getpid(), signal.SIGTSTP)  # which waits for that, too, unless SIGCONT comes before
    os.execv(sys.executable, command())


def command() -> list[str]:
    """What runs the present command once more, in a fresh interpreter with the same options."""
    return [sys.executable, *sys.orig_argv[1:]]
