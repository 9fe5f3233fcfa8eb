"""``gearflow:limit``, ``gearflow:limits`` and ``gearflow:policy``: changes and lists."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from difflib import get_close_matches
from heapq import nsmallest
from typing import Any, Final

from gearflow.broker.calls.call import TURN, BrokerParts, CallFailed, Keep, ServerCall, Steps, Wait
from gearflow.broker.policies import JobPolicy
from gearflow.broker.rules import (
    FUNCTION,
    LIMIT,
    OVERRIDE,
    POLICY,
    POLICY_SUFFIX,
    DeclaredFunction,
    DeclaredLimit,
    Override,
)
from gearflow.broker.storage import Setting
from gearflow.protocol import limits as api
from gearflow.protocol.constants import RESERVED_PREFIX

_SLICE: Final = 100
"""Entries that are dealt with before others get their turn."""

_COMPARED: Final = 100
"""Names that are compared with one that is not known."""


class LimitCalls:
    """Carries out changes of limits and policies."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts
        self._rules = parts.rules
        self._settings = parts.core.settings

    # ---------------------------------------------------------------------------------------- limits

    def limit(self, call: ServerCall) -> Steps:
        """Change a limit, or apply what code declares."""
        request = call.read(api.LimitRequest)
        if request.action == "apply":
            return self._apply(request)
        return self._override(request, (request.name or "").encode())

    def _override(self, request: api.LimitRequest, name: bytes) -> Steps:
        """An operator changes a limit."""
        rules = self._rules
        before = rules.overrides.get(name, Override())
        self._check_known(name, before)
        if request.action == "set" and request.value is not None:
            after = before._replace(value=self._merged(name, request.value))
        elif request.action == "unset":
            after = before._replace(value=None)
        else:
            after = before._replace(paused=request.action == "pause")
        shown = self._limit_text(name)
        yield from self._keep([Setting(name, OVERRIDE, after.setting())] if after != before else [])
        if after == before:
            return api.LimitChanges()
        change = api.LimitChange(
            kind="limit",
            name=_text(name),
            change="changed",
            before=shown,
            after=self._limit_text(name),
        )
        return api.LimitChanges(changes=(change,))

    def _check_known(self, name: bytes, override: Override) -> None:
        """Raise CallFailed if an operator cannot change the limit of that name."""
        rules = self._rules
        if name in rules.limits or override != Override():
            return
        function = name.removesuffix(POLICY_SUFFIX.encode())
        policy = rules.policies.get(function) if function != name else None
        if policy is not None and policy.limit is not None:
            text = f"{_text(name)} is the limit of a policy: change that with gearflow:policy"
            raise CallFailed("gearflow:refused", text)
        raise _unknown(f"there is no limit {_text(name)}", _text(name), rules.limits)

    def _merged(self, name: bytes, own: api.LimitOverride) -> api.LimitValue:
        """The value of an operator, with what it leaves out. Raises CallFailed."""
        declared = self._rules.limits.get(name)
        base = declared.value if declared is not None else self._rules.value(name)
        if base is not None and (base.per is None) != (own.per is None):
            remedy = "a number such as 20" if base.per is None else "a rate such as 50/m"
            what = "how many jobs run at once" if base.per is None else "how many jobs start in a time"
            raise CallFailed("gearflow:invalid", f"{_text(name)} limits {what} ({base}): give {remedy}")
        options: dict[str, Any] = {"count": own.count, "per": own.per}
        if own.per is not None:
            options["burst"] = own.burst or (base.burst if base is not None else 1)
        elif own.burst is not None:
            raise CallFailed("gearflow:invalid", "burst is for a rate")
        if own.per is None:
            options["over"] = own.over or (base.over if base is not None else "wait")
        elif own.over is not None:
            raise CallFailed("gearflow:invalid", "over is for the number of jobs that run at once")
        return api.LimitValue(**options)

    def _limit_text(self, name: bytes) -> str:
        """The limit that holds, for people."""
        value = self._rules.value(name)
        text = str(value) if value is not None else "none"
        return f"{text}, paused" if self._rules.is_paused(name) else text

    # ----------------------------------------------------------------------------- what code declares

    def _apply(self, request: api.LimitRequest) -> Steps:
        """What the code of one origin declares. Removes what it declared before, if asked to."""
        rules, origin = self._rules, request.origin or ""
        changes: list[api.LimitChange] = []
        settings: list[Setting] = []
        functions = {name.encode(): limits for name, limits in request.functions.items()}
        limits = {name.encode(): value for name, value in request.limits.items()}
        yield from self._check(functions, limits)
        for place, (name, value) in enumerate(limits.items()):
            declared = DeclaredLimit(value, origin)
            before = rules.limits.get(name)
            if declared != before:
                was = (str(before.value), before.origin) if before is not None else None
                changes.append(self._change("limit", name, was, (str(value), origin)))
                settings.append(Setting(name, LIMIT, declared.setting()))
            if not place % _SLICE:
                yield TURN
        for place, (name, uses) in enumerate(functions.items()):
            used = DeclaredFunction(uses, origin)
            former = rules.functions.get(name)
            if used != former:
                was = (uses_text(former.limits), former.origin) if former is not None else None
                changes.append(self._change("function", name, was, (uses_text(uses), origin)))
                settings.append(Setting(name, FUNCTION, used.setting()))
            if not place % _SLICE:
                yield TURN
        if request.prune:
            for setting, was in self._pruned(origin, functions, limits):
                settings.append(setting)
                kind: Any = setting.kind
                changes.append(self._change(kind, setting.name, was, None))
                yield TURN
        if not request.dry_run:
            yield from self._keep(settings)
        return api.LimitChanges(changes=tuple(changes))

    def _check(
        self, functions: dict[bytes, api.FunctionLimits], limits: dict[bytes, api.LimitValue]
    ) -> Generator[Wait, Any, None]:
        """Raise CallFailed if a declaration cannot be applied."""
        for name in limits:
            if name.endswith(POLICY_SUFFIX.encode()):
                text = f"{_text(name)}: only limits of policies have names that end with {POLICY_SUFFIX}"
                raise CallFailed("gearflow:invalid", text)
        for place, (name, uses) in enumerate(functions.items()):
            self._check_function(name)
            for use in uses.limits:
                used = use.limit.encode()
                if used not in limits and used not in self._rules.limits:
                    text = f"{_text(name)} uses a limit {use.limit}, which nothing declares"
                    raise _unknown(text, use.limit, [*limits, *self._rules.limits])
            if not place % _SLICE:
                yield TURN

    def _check_function(self, name: bytes) -> None:
        if name.startswith(RESERVED_PREFIX) or b"\0" in name or len(name) > self._parts.core.limits.function:
            text = f"there can be no jobs of a function {_text(name)[:80]!r}"
            raise CallFailed("gearflow:invalid", text)

    def _pruned(
        self, origin: str, functions: dict[bytes, api.FunctionLimits], limits: dict[bytes, api.LimitValue]
    ) -> Iterator[tuple[Setting, tuple[str, str]]]:
        """What an origin declared before and does not declare now. Others may still use a limit."""
        rules = self._rules
        used: set[str] = set()
        for name, declared in list(rules.functions.items()):
            if declared.origin == origin and name not in functions:
                yield Setting(name, FUNCTION, b""), (uses_text(declared.limits), origin)
            elif name not in functions:
                used.update(use.limit for use in declared.limits.limits)
        for name, limit in list(rules.limits.items()):
            if limit.origin == origin and name not in limits and _text(name) not in used:
                yield Setting(name, LIMIT, b""), (str(limit.value), origin)

    def _change(
        self, kind: Any, name: bytes, before: tuple[str, str] | None, after: tuple[str, str] | None
    ) -> api.LimitChange:
        """One line of a diff. ``before`` and ``after`` are a text and an origin."""
        notes: list[str] = []
        if before is not None and after is not None and before[1] != after[1]:
            notes.append(f"{before[1]} declared it before")
        override = self._rules.overrides.get(name, Override()) if kind == "limit" else Override()
        if override.value is not None:
            notes.append(f"an operator has set it to {override.value}, which goes on to hold")
        if override.paused:
            notes.append("an operator has paused it")
        return api.LimitChange(
            kind=kind,
            name=_text(name),
            change="added" if before is None else "removed" if after is None else "changed",
            before=before[0] if before is not None else "",
            after=after[0] if after is not None else "",
            note="; ".join(notes),
        )

    # ------------------------------------------------------------------------------------- what there is

    def limits(self, call: ServerCall) -> Steps:
        """List the limits and the functions that use them."""
        request = call.read(api.LimitsRequest)
        rules = self._rules
        uses: dict[bytes, api.FunctionLimits] = {}
        users: dict[str, list[str]] = {}
        for place, name in enumerate(sorted({*rules.functions, *rules.policies})):
            found = rules.uses_of(name)
            for use in found.limits:
                users.setdefault(use.limit, []).append(_text(name))
            if found != api.FunctionLimits():
                uses[name] = found
            if not place % _SLICE:
                yield TURN
        names = {*rules.limits, *rules.overrides, *(use.encode() for use in users)}
        if request.name is not None:
            name = request.name.encode()
            if name not in names:
                raise _unknown(f"there is no limit {request.name}", request.name, names)
            names = {name}
            uses = {user: found for user, found in uses.items() if request.name in _limits_of(found)}
        if request.function is not None:
            name = request.function.encode()
            uses = {name: uses[name]} if name in uses else {}
            names &= {use.encode() for found in uses.values() for use in _limits_of(found)}
        limits: list[bytes] = []
        for place, name in enumerate(sorted(names)):
            limits.append(self._limit_info(name, users.get(_text(name), [])).to_wire())
            if not place % _SLICE:
                yield TURN
        functions: list[bytes] = []
        for place, (name, found) in enumerate(uses.items()):
            functions.append(self._function_info(name, found).to_wire())
            if not place % _SLICE:
                yield TURN
        return [b'{"limits":[', b",".join(limits), b'],"functions":[', b",".join(functions), b"]}"]

    def _limit_info(self, name: bytes, users: Sequence[str]) -> api.LimitInfo:
        rules = self._rules
        declared, override = rules.limits.get(name), rules.overrides.get(name, Override())
        value, origin = rules.value(name), declared.origin if declared is not None else ""
        if value is None and name.endswith(POLICY_SUFFIX.encode()):
            policy = rules.policies.get(name.removesuffix(POLICY_SUFFIX.encode()))
            if policy is not None and policy.limit is not None:
                value, origin = api.LimitValue(count=policy.limit), "policy"
        usage = rules.limiter.usage(name)
        return api.LimitInfo(
            name=_text(name),
            text=str(value) if value is not None else "",
            value=value,
            declared=declared.value if declared is not None else None,
            override=override.value,
            paused=override.paused,
            origin=origin,
            functions=tuple(users),
            running=usage.running,
            waiting=usage.waiting,
            keys=usage.keys,
            next=usage.next_in,
        )

    def _function_info(self, name: bytes, uses: api.FunctionLimits) -> api.LimitedFunction:
        declared = self._rules.functions.get(name)
        return api.LimitedFunction(
            function=_text(name),
            limits=uses.limits,
            fair=uses.fair,
            origin=declared.origin if declared is not None else "",
        )

    # -------------------------------------------------------------------------------------- policies

    def policy(self, call: ServerCall) -> Steps:
        """Set, unset or list policies."""
        request = call.read(api.PolicyRequest)
        if request.action == "list":
            return self._list_policies(request.function)
        return self._set_policy(request, (request.function or "").encode())

    def _set_policy(self, request: api.PolicyRequest, name: bytes) -> Steps:
        self._check_function(name)
        known = self._rules.policies.get(name)
        if known is None and request.action == "unset":
            raise _unknown(f"there is no policy for {_text(name)}", _text(name), self._rules.policies)
        options = _options(known) if known is not None else {}
        if request.policy is not None:
            options |= json.loads(request.policy.to_wire())
        else:
            options = {
                option: value
                for option, value in options.items()
                if request.options and option not in request.options
            }
        value = json.dumps(options).encode() if options else b""
        yield from self._keep([Setting(name, POLICY, value)])
        policy = self._rules.policies.get(name)
        return api.Policies(policies=(self._policy_info(name, policy),) if policy is not None else ())

    def _list_policies(self, function: str | None) -> Steps:
        policies = self._rules.policies
        names = sorted(policies) if function is None else [function.encode()]
        pieces: list[bytes] = []
        for place, name in enumerate(names):
            policy = policies.get(name)
            if policy is not None:
                pieces.append(self._policy_info(name, policy).to_wire())
            if not place % _SLICE:
                yield TURN
        return [b'{"policies":[', b",".join(pieces), b"]}"]

    def _policy_info(self, name: bytes, policy: JobPolicy) -> api.FunctionPolicy:
        function = self._parts.core.functions.by_name.get(name)
        return api.FunctionPolicy(
            function=_text(name),
            policy=api.Policy.model_validate_json(json.dumps(_options(policy))),
            workers=function.workers if function is not None else 0,
        )

    # --------------------------------------------------------------------------------------- the store

    def _keep(self, settings: Sequence[Setting]) -> Generator[Wait, Any, None]:
        """Have settings kept. They hold once that is done. Raises CallFailed if they are not kept."""
        if not settings:
            return
        errors: list[Any] = yield Keep(settings)
        for setting, error in zip(settings, errors, strict=True):
            if error is None:
                self._settings.apply(setting)
        faults = [error for error in errors if error is not None]
        if faults:
            left = (
                "nothing has changed" if len(faults) == len(errors) else "a part is missing, so send it again"
            )
            raise CallFailed("gearflow:store", f"the store cannot be written, {left}: {faults[0]}")


def uses_text(uses: api.FunctionLimits) -> str:
    """The limits that a function uses, for people: ``shopify, myapp.sync:concurrency by /customer``."""
    texts = [use.limit if use.key is None else f"{use.limit} by {key_text(use.key)}" for use in uses.limits]
    if uses.fair is not None:
        texts.append(f"fair by {key_text(uses.fair)}")
    return ", ".join(texts) or "none"


def key_text(key: str) -> str:
    """A key for people."""
    return "a key that the caller sends" if key == api.SENT else key or "the whole payload"


def _limits_of(uses: api.FunctionLimits) -> set[str]:
    return {use.limit for use in uses.limits}


def _options(policy: JobPolicy) -> dict[str, Any]:
    """A policy as JSON objects, without what it does not say."""
    options = {
        "retries": policy.retries,
        "keep": policy.keep,
        "timeout": policy.timeout,
        "limit": policy.limit,
    }
    return {option: value for option, value in options.items() if value is not None}


def _unknown(text: str, name: str, known: Iterable[bytes]) -> CallFailed:
    """A name is not known. The fault offers the nearest one that is."""
    some = nsmallest(_COMPARED, map(_text, known), key=lambda other: abs(len(other) - len(name)))
    close = get_close_matches(name[:200], [other[:200] for other in some], n=1)
    if close:
        return CallFailed("gearflow:unknown", f"{text}; did you mean {close[0]}?")
    some.sort()
    listed = f"there are {', '.join(some[:10])}" if some else "there are none"
    return CallFailed("gearflow:unknown", f"{text}; {listed}")


def _text(name: bytes) -> str:
    return name.decode(errors="replace")
