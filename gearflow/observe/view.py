"""One server as it was at one moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

from gearflow.protocol.group_info import GroupInfo
from gearflow.protocol.limits import LimitList, LimitUse
from gearflow.protocol.metrics import FunctionMetrics, Metrics
from gearflow.protocol.schedules import ScheduleInfo
from gearflow.protocol.server_calls import ServerInfo
from gearflow.protocol.workers import WorkerInfo
from gearflow.quantities import duration

ViewPart: TypeAlias = Literal["metrics", "workers", "limits", "schedules", "group"]
"""A part of a view that is asked for separately."""

ServerKind: TypeAlias = Literal["gearflow", "gearmand", "other", "away"]
"""``gearmand`` is the one in C. ``other`` speaks the text protocol, too. ``away`` did not answer."""


class LimitTexts:
    """The limits of a server in words, by function.

    Args:
        found: The limits of the server.
    """

    def __init__(self, found: LimitList) -> None:
        self._limits = {limit.name: limit for limit in found.limits}
        self._functions = {function.function: function for function in found.functions}

    def limits(self, function: str) -> list[str]:
        """The limits of a function, such as ``20`` or ``shopify 100/m by /shop``."""
        used = self._functions.get(function)
        if used is None:
            return []
        fair = [f"fair by {_key(used.fair)}"] if used.fair else []
        return [*(self._text(function, use) for use in used.limits), *fair]

    def waits_for(self, function: str) -> str:
        """Why the next job of a function waits, as far as its limits without a key say. Else empty."""
        used = self._functions.get(function)
        reasons = (self._reason(function, use) for use in (used.limits if used is not None else ()))
        return next(filter(None, reasons), "")

    def _text(self, function: str, use: LimitUse) -> str:
        limit = self._limits.get(use.limit)
        name = _short(function, use.limit)
        parts = [name, limit.text if limit is not None else "none", f"by {_key(use.key)}" if use.key else ""]
        paused = " (paused)" if limit is not None and limit.paused else ""
        return " ".join(filter(None, parts)) + paused

    def _reason(self, function: str, use: LimitUse) -> str:
        limit = self._limits.get(use.limit)
        if limit is None or limit.value is None:
            return ""
        name = _short(function, use.limit)
        named = f"{name}: " if name else ""
        if limit.paused:
            return f"{named}paused" if named else "its limit is paused"
        if use.key is not None:
            return ""
        if limit.value.per is not None:
            return f"{named}{limit.text}, next in {duration(limit.next)}" if limit.next is not None else ""
        full = limit.running >= limit.value.count
        return f"{named}{limit.running} of {limit.value.count} run" if full else ""


def _short(function: str, limit: str) -> str:
    """The name of a limit beside its function, empty if its kind says enough."""
    if limit.startswith((f"{function}:concurrency", f"{function}:rate")):
        return ""
    return limit.removeprefix(f"{function}:")


def _key(key: str | None) -> str:
    return "a key of the caller" if key == "*" else str(key)


@dataclass(frozen=True)
class ServerView:
    """One server as it was at one moment. A frozen value.

    A part that is None was not asked for, or the server does not have it, or refused it. ``faults`` has the
    reasons for the last case.
    """

    address: str
    """The address by which the server was asked."""

    at: float
    """When it was asked, by the clock of this machine (Unix time)."""

    kind: ServerKind = "away"
    """The kind of the server. ``away``: it did not answer."""

    version: str = ""
    """The version that it reports, such as ``gearflow-0.1.0`` or ``1.1.21``."""

    error: str = ""
    """Why it did not answer. Empty if it did."""

    round_trip: float | None = None
    """Seconds from a short question to the answer."""

    clock: float | None = None
    """By how many seconds the server's clock is ahead of this machine's. It is off by half of the time that
    the answer took, at most."""

    info: ServerInfo | None = None
    """The state of gearflow's server."""

    metrics: Metrics | None = None
    """The counts of gearflow's server. None for all others, and for older versions."""

    functions: tuple[FunctionMetrics, ...] = ()
    """The functions by name. For a server without metrics, from its text protocol: ``waiting``, ``running``,
    ``workers`` and ``paused`` hold, and nothing else does. See ``counted``."""

    workers: tuple[WorkerInfo, ...] = ()
    """The connections that offer functions. Of other servers only their names, addresses and functions."""

    limits: LimitList | None = None
    """The limits of gearflow's server."""

    schedules: tuple[ScheduleInfo, ...] | None = None
    """The schedules of gearflow's server."""

    group: GroupInfo | None = None
    """The servers that share their jobs with this one, and their database. None if there are none."""

    faults: Mapping[ViewPart, str] = field(default_factory=dict[ViewPart, str])
    """Why parts are missing that the server has refused."""

    malformed: tuple[str, ...] = ()
    """Those of ``error`` and ``faults`` that are about answers that no server should give."""

    away_since: float | None = None
    """Since when it has not answered (Unix time), if ``ServerWatch`` has seen that."""

    @property
    def answers(self) -> bool:
        """Whether it answered."""
        return not self.error

    @property
    def complaint(self) -> str:
        """The complaint about a server that has an ``error``, which follows after a colon."""
        return "answers what it should not" if self.error in self.malformed else "does not answer"

    @property
    def counted(self) -> bool:
        """Whether ``functions`` has counts, slots, delayed jobs and the age of the oldest job."""
        return self.metrics is not None

    @property
    def name(self) -> str:
        """The address by which its group calls it, or by which it was asked."""
        return self.info.address if self.info is not None and self.info.address else self.address

    @property
    def store_name(self) -> str:
        """The group of the server, or its address if it has none.

        Servers of a group share their settings, the jobs that have ended, and the dead letters.
        """
        return (self.info.group if self.info is not None else "") or self.address

    def has_function(self, reserved: bytes) -> bool:
        """Whether the server has a reserved function, such as ``gearflow:jobs``."""
        return self.info is not None and reserved.decode() in self.info.functions

    @cached_property
    def by_function(self) -> Mapping[str, FunctionMetrics]:
        """The functions by their names."""
        return {function.function: function for function in self.functions}

    @cached_property
    def limit_texts(self) -> LimitTexts:
        """The limits in words."""
        return LimitTexts(self.limits if self.limits is not None else LimitList())

    def waits_for(self, function: FunctionMetrics) -> str:
        """Why the next job of a function waits. Empty if none waits, or if it waits for a busy worker."""
        if not any(function.waiting):
            return ""
        if function.paused:
            return "paused"
        return self.limit_texts.waits_for(function.function) or ("" if function.workers else "no worker")
