"""Settings: the schedules, limits and policies of the store, and which part of the broker uses each kind.

A part of the broker subscribes to a kind when it is made. It is then called for each setting of that kind
that is there at the start, and for each one that changes. The values are JSON that only that part reads.

A part that has changed a setting itself calls ``apply`` once the store has it. The settings that other
servers of a group have changed come with ``replace``. They may be a little older than the last ``apply``.
The next ``replace`` corrects that, because every kept change makes the servers of a group read all settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from gearflow.broker.storage import Setting

SettingCallback: TypeAlias = Callable[[bytes, bytes], None]
"""Called with the name and the value of a setting. An empty value: nothing is set any more."""


class Settings:
    """Owns the values of all settings, as the store has them."""

    def __init__(self) -> None:
        self.values: dict[str, dict[bytes, bytes]] = {}
        """By kind and name. A later version of gearflow may have kinds that this one does not know."""
        self._callbacks: dict[str, SettingCallback] = {}

    def on(self, kind: str, callback: SettingCallback) -> None:
        """Call this for each setting of a kind that is loaded, changed or removed. A kind has one call."""
        assert kind not in self._callbacks
        self._callbacks[kind] = callback
        self.values.setdefault(kind, {})

    def get(self, kind: str, name: bytes) -> bytes:
        """The value, or nothing."""
        return self.values.get(kind, {}).get(name, b"")

    def load(self, settings: Iterable[Setting]) -> None:
        """Take over the settings of the store, before anything else happens."""
        for setting in settings:
            self.apply(setting)

    def replace(self, settings: Iterable[Setting]) -> None:
        """The store has these settings and no others. Only those that differ are called back."""
        found = {(setting.kind, setting.name): setting for setting in settings}
        gone = [
            Setting(name, kind, b"")
            for kind, values in self.values.items()
            for name in values
            if (kind, name) not in found
        ]
        for setting in (*gone, *found.values()):
            self.apply(setting)

    def apply(self, setting: Setting) -> None:
        """The store has this setting now. Without a value it has none of that name."""
        name, kind, value = setting
        values = self.values.setdefault(kind, {})
        if values.get(name, b"") == value:
            return
        if value:
            values[name] = value
        else:
            del values[name]
        callback = self._callbacks.get(kind)
        if callback is not None:
            callback(name, value)
