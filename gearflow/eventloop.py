"""The event loop that gearflow's own programs, and its threads, run on."""

import asyncio
import os
from importlib.util import find_spec
from typing import Final

_IS_INSTALLED: Final = find_spec("uvloop") is not None


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The fastest event loop there is: uvloop's where it can be used."""
    if not can_use_uvloop():
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def can_use_uvloop() -> bool:
    """Whether it is installed, and no descriptor of its own would be in the place of a standard stream.

    libuv aborts the process when it closes such a one. They are free where a program was started with
    standard input closed, for example.
    """
    return _IS_INSTALLED and all(map(_is_open, range(3)))


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
