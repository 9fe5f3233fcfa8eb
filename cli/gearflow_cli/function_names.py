"""Which function a name means, where no module tells: servers know what their workers offer."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Final

from gearflow_cli.commands.status import Function, functions_of
from gearflow_cli.errors import ExitCode, Failure, tell
from gearflow_cli.server_queries import TIMEOUT

_SHOWN: Final = 5  # names in a message


def resolve(name: str, addresses: Sequence[str], timeout: float = TIMEOUT) -> str:
    """The function to submit to: of that very name, else the only one whose name ends in ``.name``.

    A name with a dot is taken for a full one, and submitted to even if nobody has heard of it; a warning
    is given if no worker offers the function. Servers have ``timeout`` seconds to answer.

    Raises:
        Failure: A bare name is nobody's, or that of several.
        NoServer: No server answers.
    """
    functions = _known(addresses, timeout)
    found = _full(name, functions)
    if not (function := functions.get(found)) or not function.workers:
        near = "" if function else _did_you_mean(name, functions)
        tell(f"warning: no worker offers {found} now, so the job waits for one{near}")
    return found


def known(name: str, addresses: Sequence[str]) -> str:
    """The function that is meant. As ``resolve``, but for the warning: it is about functions unheard of."""
    functions = _known(addresses)
    found = _full(name, functions)
    if found not in functions:
        tell(f"warning: no server knows {found}{_did_you_mean(name, functions)}")
    return found


def remembered(name: str, addresses: Sequence[str]) -> str:
    """The function of jobs that have ended, which servers may have forgotten: then it is the name as it is.

    Raises:
        Failure: A bare name is that of several.
        NoServer: No server answers.
    """
    functions = _known(addresses)
    ends_so = any(function.endswith(f".{name}") for function in functions)
    return _full(name, functions) if ends_so else name


def _full(name: str, functions: Mapping[str, Function]) -> str:
    """Raises Failure for a bare name that is nobody's, or that of several."""
    return name if name in functions or "." in name else _by_bare_name(name, functions.values())


def _known(addresses: Sequence[str], timeout: float = TIMEOUT) -> dict[str, Function]:
    """The functions of all servers that answer; of those with one name, one that has workers."""
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
    served = [function.name for function in candidates if function.workers]
    names = served or [function.name for function in candidates]
    if len(names) == 1:
        return names[0]
    if names:
        raise Failure(ExitCode.USAGE, f"{name} may be {_either(names)}; give the full name")
    hint = _did_you_mean(name, [function.name for function in functions])
    raise Failure(ExitCode.USAGE, f"no function is named {name}, or ends in .{name}{hint}")


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    known = list(known)
    if not known:
        return "; the server knows of none: start a worker with 'gearflow worker MODULE'"
    bare: dict[str, list[str]] = {}
    for full in known:
        bare.setdefault(full.rpartition(".")[2], []).append(full)
    near = [
        *get_close_matches(name, known, n=_SHOWN),
        *(
            full
            for match in get_close_matches(name.rpartition(".")[2], bare, n=_SHOWN)
            for full in bare[match]
        ),
    ]
    if near:
        return f"; did you mean {_either(list(dict.fromkeys(near)))}?"
    more = ", ..." if len(known) > _SHOWN else ""
    return f"; there are {', '.join(sorted(known)[:_SHOWN])}{more}"


def _either(names: Sequence[str]) -> str:
    return " or ".join(names[:_SHOWN])
