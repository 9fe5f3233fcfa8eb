"""What limits do to the functions of a server, for people: which there are, and why jobs wait."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gearflow.client import Client
    from gearflow.protocol.limits import LimitList, LimitUse
    from gearflow.protocol.server_calls import WorkerInfo


async def limits_at(client: "Client", address: str) -> "LimitList":
    """The limits of a server. An older one has none."""
    from gearflow.client.operate import limits
    from gearflow.errors import GearflowError
    from gearflow.protocol.limits import LimitList

    with suppress(GearflowError):
        return await limits(client, server=address)
    return LimitList()


class LimitView:
    """The limits of a server, by function."""

    def __init__(self, found: "LimitList", workers: "Sequence[WorkerInfo]" = ()) -> None:
        self._limits = {limit.name: limit for limit in found.limits}
        self._functions = {function.function: function for function in found.functions}
        self.differing = _differing(found, workers)
        """Functions whose workers declare other limits than the server has."""

    def limits(self, function: str) -> list[str]:
        """The limits of a function, such as ``20`` or ``shopify 100/m by /shop``."""
        used = self._functions.get(function)
        if used is None:
            return []
        fair = [f"fair by {_key(used.fair)}"] if used.fair else []
        return [*(self._text(function, use) for use in used.limits), *fair]

    def waits_for(self, function: str) -> str:
        """Why the next job of a function waits, as far as its limits without a key say."""
        used = self._functions.get(function)
        reasons = (self._reason(function, use) for use in (used.limits if used is not None else ()))
        return next(filter(None, reasons), "")

    def _text(self, function: str, use: "LimitUse") -> str:
        limit = self._limits.get(use.limit)
        name = _short(function, use.limit)
        parts = [name, limit.text if limit is not None else "none", f"by {_key(use.key)}" if use.key else ""]
        paused = " (paused)" if limit is not None and limit.paused else ""
        return " ".join(filter(None, parts)) + paused

    def _reason(self, function: str, use: "LimitUse") -> str:
        limit = self._limits.get(use.limit)
        if limit is None or limit.value is None:
            return ""
        name = _short(function, use.limit)
        named = f"{name}: " if name else ""
        if limit.paused:
            return f"{named or 'its limit: '}paused"
        if use.key is not None:
            return ""
        if limit.value.per is not None:
            return f"{named}{limit.text}, next in {_seconds(limit.next)}" if limit.next is not None else ""
        full = limit.running >= limit.value.count
        return f"{named}{limit.running} of {limit.value.count} run" if full else ""


def _differing(found: "LimitList", workers: "Sequence[WorkerInfo]") -> list[str]:
    reported = [limits for worker in workers for limits in worker.limits.items()]
    if not reported:
        return []
    from gearflow.tasks.declared_limits import differing_functions

    return differing_functions(found, reported)


def _short(function: str, limit: str) -> str:
    """The name of a limit beside its function, empty if its kind says enough."""
    if limit.startswith((f"{function}:concurrency", f"{function}:rate")):
        return ""
    return limit.removeprefix(f"{function}:")


def _key(key: str | None) -> str:
    return "a key of the caller" if key == "*" else str(key)


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
