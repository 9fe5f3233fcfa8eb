"""Modules by the name under which they can be imported, also the one that is being run.

The same program is ``__main__`` to the process that runs it, and goes by its own name in a worker: what is
defined in it has to be called alike on both sides.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Final

_RUN: Final = ("__main__", "__mp_main__")
"""The second one is what ``multiprocessing`` calls it in a process that it has spawned."""


def importable_name(module: str) -> str:
    """The name under which a module can be imported; of a program that was typed in there is none."""
    if module not in _RUN:
        return module
    main = sys.modules["__main__"]
    if main.__spec__ is not None:
        return main.__spec__.name
    file: str | None = getattr(main, "__file__", None)
    return Path(file).stem if file else module


def loaded(name: str) -> ModuleType | None:
    """The module of that name, if it is loaded."""
    if name == importable_name("__main__"):
        return sys.modules["__main__"]
    return sys.modules.get(name)
