"""Finding the function for a name among those that the servers know."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Final, NamedTuple

from gearflow_cli.commands.status import Function, functions_of
from gearflow_cli.errors import CliError, ExitCode, tell
from gearflow_cli.server_queries import TIMEOUT
from gearflow_cli.text import printable

_SHOWN: Final = 5  # names in a message

_WAIT: Final = 2.0
"""Seconds to wait for a worker that offers a bare name. Workers are back within one, after an outage."""

_LOOK_EVERY: Final = 0.1  # seconds


def resolve(name: str, addresses: Sequence[str], timeout: float = TIMEOUT) -> str:
    """Return the function to submit to: the one with that name, else the only one that ends in ``.name``.

    A name with a dot counts as a full name. A job is sent even if no worker offers the function, with a
    warning. A bare name that no server knows yet is waited for: workers need a moment to come back after
    their server was restarted. ``timeout`` limits each answer of a server, in seconds.

    Raises:
        CliError: A bare name matches no function, or several.
        NoServer: No server answers.
    """
    functions = _known_soon(name, addresses, timeout)
    found = _full(name, functions)
    if not (function := functions.get(found)) or not function.workers:
        others = [other for other in functions.values() if other.name != found]
        near = _did_you_mean(name, others) if others or not function else ""
        tell(
            f"warning: no worker offers {printable(found)} now, so the job waits for one{near}",
            logging.WARNING,
        )
    return found


def _known_soon(name: str, addresses: Sequence[str], timeout: float) -> dict[str, Function]:
    """Return the known functions, as soon as the name may mean one of them, or is a typing error."""
    functions = _known(addresses, timeout)
    if "." in name or _is_known(name, functions) or _near(name, _served(functions.values())):
        return functions
    tell(f"warning: no worker offers {printable(name)} yet; waiting {_WAIT:g} s for one", logging.WARNING)
    deadline = time.monotonic() + _WAIT
    while not _is_known(name, functions) and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY)
        functions = _known(addresses, timeout)
    return functions


def _is_known(name: str, functions: Mapping[str, Function]) -> bool:
    return name in functions or any(function.endswith(f".{name}") for function in functions)


def known(name: str, addresses: Sequence[str]) -> str:
    """Return the function for a name, as ``resolve`` does. Warns about a function that no server knows."""
    functions = _known(addresses)
    found = _full(name, functions)
    if found not in functions:
        hint = _did_you_mean(name, functions.values())
        tell(f"warning: no server knows {printable(found)}{hint}", logging.WARNING)
    return found


def remembered(name: str, addresses: Sequence[str]) -> str:
    """Return the function of jobs that have ended. If the servers do not know it any more, it is the name.

    Raises:
        CliError: A bare name is that of several.
        NoServer: No server answers.
    """
    functions = _known(addresses)
    ends_so = any(function.endswith(f".{name}") for function in functions)
    return _full(name, functions) if ends_so else name


class Takes(NamedTuple):
    """What a function takes, as its workers report it."""

    is_known: bool
    """Whether a server knows a worker that offers the function."""

    text: str | None = None
    """The name of its only parameter if its payload is a text."""


def takes(function: str, addresses: Sequence[str], timeout: float = TIMEOUT) -> Takes:
    """Return what a function takes. Only gearflow's own servers know, while a worker offers it."""
    import anyio

    return anyio.run(_takes, function, addresses, timeout)


async def _takes(function: str, addresses: Sequence[str], timeout: float) -> Takes:
    import anyio

    from gearflow.client import Client
    from gearflow.client.operate import workers
    from gearflow.errors import GearflowError

    async with Client(addresses, connect_timeout=timeout, answer_timeout=timeout) as client:
        for address in addresses:
            with anyio.move_on_after(timeout), suppress(GearflowError):
                for worker in await workers(client, server=address):
                    if function in worker.functions:
                        return Takes(is_known=True, text=worker.texts.get(function))
    return Takes(is_known=False)


def _full(name: str, functions: Mapping[str, Function]) -> str:
    """Raises CliError if no function has a bare name, or several have it."""
    return name if name in functions or "." in name else _by_bare_name(name, functions.values())


def _known(addresses: Sequence[str], timeout: float = TIMEOUT) -> dict[str, Function]:
    """The functions of all servers that answer. Of those with one name, one that has workers."""
    from gearflow.errors import NoServer

    known: dict[str, Function] = {}
    reasons: dict[str, str] = {}
    for address, answer in functions_of(addresses, timeout).items():
        if isinstance(answer, str):
            reasons[address] = answer
            continue
        for function in answer:
            if function.workers or function.name not in known:
                known[function.name] = function
    if len(reasons) == len(addresses):
        raise NoServer(reasons)
    return known


def _by_bare_name(name: str, functions: Iterable[Function]) -> str:
    functions = list(functions)
    candidates = [function for function in functions if function.name.endswith(f".{name}")]
    names = [function.name for function in _served(candidates) or candidates]
    if len(names) == 1:
        return names[0]
    if names:
        raise CliError(ExitCode.USAGE, f"{printable(name)} may be {_either(names)}; give the full name")
    shown, hint = printable(name), _did_you_mean(name, functions)
    raise CliError(ExitCode.USAGE, f"no function is named {shown}, or ends in .{shown}{hint}")


def _did_you_mean(name: str, functions: Iterable[Function]) -> str:
    """Return a hint for a name that no worker offers. Functions without workers may be mistyped names."""
    functions = list(functions)
    if not functions:
        return "; the server knows no functions: start a worker with 'gearflow worker MODULE'"
    served = _served(functions)
    if near := _near(name, served) or _near(name, functions):
        return f"; did you mean {_either(near)}?"
    names = sorted(function.name for function in served or functions)
    more = ", ..." if len(names) > _SHOWN else ""
    return f"; there are {', '.join(map(printable, names[:_SHOWN]))}{more}"


def _near(name: str, functions: Iterable[Function]) -> list[str]:
    """Return the names that look like this one, the likeliest first; the module may be left out."""
    known = [function.name for function in functions]
    bare: dict[str, list[str]] = {}
    for full in known:
        bare.setdefault(full.rpartition(".")[2], []).append(full)
    matches = get_close_matches(name.rpartition(".")[2], bare, n=_SHOWN)
    near = [*get_close_matches(name, known, n=_SHOWN), *(full for match in matches for full in bare[match])]
    return list(dict.fromkeys(near))


def _served(functions: Iterable[Function]) -> list[Function]:
    return [function for function in functions if function.workers]


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(printable, names[:_SHOWN]))
