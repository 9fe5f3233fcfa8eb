"""The settings of functions: their policies.

They come when the server starts, when a call changes one, and when another server of the group has changed
one. A setting that this version cannot read is reported and ignored.
"""

from __future__ import annotations

from gearflow.broker.core import Core
from gearflow.broker.functions import FunctionQueue
from gearflow.broker.limits import Rejected
from gearflow.broker.policies import JobPolicy, read_policy
from gearflow.errors import RemoteProtocolError

POLICY: str = "policy"
"""The kind of setting that has the policy of a function."""


class Rules:
    """Gives functions their policies. Owns what the settings say, as far as it can be read."""

    def __init__(self, core: Core) -> None:
        self.policies: dict[bytes, JobPolicy] = {}
        self._core = core
        core.functions.made = self._made
        core.settings.on(POLICY, self._policy_set)

    def _policy_set(self, name: bytes, value: bytes) -> None:
        """The policy of a function has changed."""
        self.policies.pop(name, None)
        if value:
            try:
                self.policies[name] = read_policy(value)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                self._unreadable(f"the policy of {name.decode(errors='replace')}", error)
        self._apply(name)

    def _apply(self, name: bytes) -> None:
        """A function gets what is set for it."""
        functions = self._core.functions
        function = functions.by_name.get(name)
        if function is None:
            if name in self.policies:
                try:
                    functions.ensure(name)  # which applies it
                except (Rejected, RemoteProtocolError) as error:
                    self._unreadable(f"the policy of {name[:80].decode(errors='replace')}", error)
            return
        self._made(function)
        functions.rest(function)

    def _made(self, function: FunctionQueue) -> None:
        """A function has become known, or its settings have changed."""
        function.policy = self.policies.get(function.name)

    def _unreadable(self, what: str, error: Exception) -> None:
        text = "cannot read a setting, and ignores it; a later version may have written it (%s)"
        self._core.outgoing.notify(text, None, what.encode(), f"{type(error).__name__}: {error}")
