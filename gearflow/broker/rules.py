"""What is set for limits and functions, and what of it holds.

Four kinds of settings come here, when the server starts, when a call changes one, and when another server of
the group has changed one:

* ``limit``: what code declares a limit to be.
* ``override``: the value that an operator has given the limit of that name, and whether it is paused. The
  value wins. Because this is a setting of its own, it outlives what code declares, and an operator at one
  server and code at another do not overwrite each other.
* ``function``: the limits that a function uses, as code declares them.
* ``policy``: the policy of a function. If that has a limit, the function uses one more (``policy_limit``).

A setting that this version cannot read is reported and ignored. A function may use a limit that is not there
(yet). Then nothing limits it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from gearflow.broker.core import Core
from gearflow.broker.functions import FunctionQueue
from gearflow.broker.limiter import FunctionRules, LimitSpec, Rule
from gearflow.broker.limits import Rejected
from gearflow.broker.policies import JobPolicy, read_policy
from gearflow.errors import RemoteProtocolError
from gearflow.protocol.limits import FunctionLimits, LimitUse, LimitValue

LIMIT: Final = "limit"
OVERRIDE: Final = "override"
FUNCTION: Final = "function"
POLICY: Final = "policy"

POLICY_SUFFIX: Final = ":policy"
"""Ends the names of the limits of policies."""

T = TypeVar("T")


class DeclaredLimit(NamedTuple):
    """A limit as code declares it."""

    value: LimitValue
    origin: str

    def setting(self) -> bytes:
        """As the store has it."""
        return _json({"declared": self.value.model_dump(mode="json", exclude_defaults=True)}, self.origin)


class DeclaredFunction(NamedTuple):
    """The limits of a function as code declares them."""

    limits: FunctionLimits
    origin: str

    def setting(self) -> bytes:
        """As the store has it."""
        return _json({"declared": self.limits.model_dump(mode="json", exclude_defaults=True)}, self.origin)


class Override(NamedTuple):
    """What an operator has set about a limit."""

    value: LimitValue | None = None
    paused: bool = False

    def setting(self) -> bytes:
        """As the store has it: nothing if it says nothing."""
        setting: dict[str, object] = {}
        if self.value is not None:
            setting["value"] = self.value.model_dump(mode="json", exclude_defaults=True)
        if self.paused:
            setting["paused"] = True
        return json.dumps(setting).encode() if setting else b""


class Rules:
    """Gives the limiter its limits, and functions their limits and policies. Owns what the settings say."""

    def __init__(self, core: Core) -> None:
        self.limiter = core.limiter
        self.limits: dict[bytes, DeclaredLimit] = {}
        self.overrides: dict[bytes, Override] = {}
        self.functions: dict[bytes, DeclaredFunction] = {}
        self.policies: dict[bytes, JobPolicy] = {}
        self._core = core
        core.functions.made = self._made
        core.settings.on(LIMIT, self._limit_set)
        core.settings.on(OVERRIDE, self._override_set)
        core.settings.on(FUNCTION, self._function_set)
        core.settings.on(POLICY, self._policy_set)

    # ------------------------------------------------------------------------------------- what holds

    def value(self, name: bytes) -> LimitValue | None:
        """The limit of that name that holds."""
        override, declared = self.overrides.get(name), self.limits.get(name)
        if override is not None and override.value is not None:
            return override.value
        return declared.value if declared is not None else None

    def is_paused(self, name: bytes) -> bool:
        """Whether an operator has paused the limit of that name."""
        override = self.overrides.get(name)
        return override is not None and override.paused

    def uses_of(self, name: bytes) -> FunctionLimits:
        """The limits that the function of that name uses, also that of its policy."""
        declared, policy = self.functions.get(name), self.policies.get(name)
        limits = declared.limits if declared is not None else FunctionLimits()
        if policy is None or policy.limit is None:
            return limits
        own = LimitUse(limit=policy_limit(name).decode(errors="replace"))
        return FunctionLimits(limits=(*limits.limits, own), fair=limits.fair)

    # ---------------------------------------------------------------------------- settings that change

    def _limit_set(self, name: bytes, value: bytes) -> None:
        self._take(self.limits, LIMIT, name, value, _declared_limit)
        self._apply_limit(name)

    def _override_set(self, name: bytes, value: bytes) -> None:
        self._take(self.overrides, OVERRIDE, name, value, _override)
        self._apply_limit(name)

    def _function_set(self, name: bytes, value: bytes) -> None:
        self._take(self.functions, FUNCTION, name, value, _declared_function)
        self._apply_function(name)

    def _policy_set(self, name: bytes, value: bytes) -> None:
        self._take(self.policies, POLICY, name, value, read_policy)
        policy = self.policies.get(name)
        count = policy.limit if policy is not None else None
        spec = LimitSpec("concurrency", count) if count is not None else None
        self.limiter.set_limit(policy_limit(name), spec)
        self._apply_function(name)

    def _take(
        self, known: dict[bytes, T], kind: str, name: bytes, value: bytes, read: Callable[[bytes], T]
    ) -> None:
        """A setting has changed."""
        known.pop(name, None)
        if value:
            try:
                known[name] = read(value)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                self._report(kind, name, error)

    def _report(self, kind: str, name: bytes, error: Exception) -> None:
        text = "cannot use a setting, and ignores it; a later version may have written it (%s)"
        subject = b"%b %b" % (kind.encode(), name[:200])
        self._core.outgoing.notify(text, None, subject, f"{type(error).__name__}: {error}")

    def _apply_limit(self, name: bytes) -> None:
        """What holds for a limit may have changed."""
        value, paused = self.value(name), self.is_paused(name)
        spec: LimitSpec | None = None
        if value is not None and value.per is not None:
            spec = LimitSpec("rate", value.count, value.per, value.burst, paused=paused)
        elif value is not None:
            spec = LimitSpec("concurrency", value.count, over=value.over, paused=paused)
        self.limiter.set_limit(name, spec)

    def _apply_function(self, name: bytes) -> None:
        """What holds for a function may have changed."""
        functions = self._core.functions
        function = functions.by_name.get(name)
        if function is not None:
            self._give(function)
            functions.rest(function)
        elif name in self.functions or name in self.policies:
            try:
                functions.ensure(name)  # which calls ``_made``
            except (Rejected, RemoteProtocolError) as error:
                self._report(FUNCTION, name, error)

    def _made(self, function: FunctionQueue) -> None:
        """A function has become known."""
        if function.name in self.functions or function.name in self.policies:
            self._give(function)

    def dropped(self, function: FunctionQueue) -> None:
        """A function is not known any more. Its settings hold when it becomes known again."""
        function.policy = None
        self.limiter.set_rules(function, None)

    def _give(self, function: FunctionQueue) -> None:
        """Give a function what holds for it."""
        function.policy = self.policies.get(function.name)
        uses = self.uses_of(function.name)
        rules = tuple(Rule(use.limit.encode(), use.key) for use in uses.limits)
        self.limiter.set_rules(function, FunctionRules(rules, uses.fair) if rules or uses.fair else None)


def policy_limit(function: bytes) -> bytes:
    """The name of the limit of a function's policy."""
    return function + POLICY_SUFFIX.encode()


def _json(setting: dict[str, object], origin: str) -> bytes:
    return json.dumps({**setting, "origin": origin}).encode()


def _declared_limit(value: bytes) -> DeclaredLimit:
    setting: dict[str, Any] = json.loads(value)
    return DeclaredLimit(_value(setting["declared"]), str(setting["origin"]))


def _override(value: bytes) -> Override:
    setting: dict[str, Any] = json.loads(value)
    own = setting.get("value")
    return Override(_value(own) if own is not None else None, setting.get("paused") is True)


def _declared_function(value: bytes) -> DeclaredFunction:
    setting: dict[str, Any] = json.loads(value)
    declared = json.dumps(setting["declared"])
    return DeclaredFunction(FunctionLimits.model_validate_json(declared), str(setting["origin"]))


def _value(value: object) -> LimitValue:
    return LimitValue.model_validate_json(json.dumps(value))
