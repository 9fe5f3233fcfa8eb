"""Payloads as they are shown to people: as text, cut, and without the fields that a task redacts.

Workers report which fields these are. The server keeps them as settings, one for each function, so that they
hold also while no worker is connected. ``*`` stands for the whole payload.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, cast

from gearflow.broker.parser import Body
from gearflow.broker.settings import Settings
from gearflow.broker.storage import Setting
from gearflow.errors import GearflowError
from gearflow.protocol.chunk import unpack_payloads
from gearflow.protocol.envelope import MAGIC, unwrap

KIND: Final = "redact"
"""Of the settings."""

WHOLE: Final = "*"
"""In place of the name of a field: all of the payload."""

_LARGEST: Final = 1 << 18
"""Bytes of a payload in which fields are replaced. It takes a few milliseconds."""

_MOST: Final = 10_000
"""Functions whose payloads are redacted."""

_REDACTED: Final = "(redacted)"

_HEAD: Final = 1 << 16
"""Bytes before the payload that are looked at: the options of an envelope."""

_ODD: Final = 4
"""Bytes that the last letter of a text may have."""


class Redaction:
    """Owns the fields that are not shown, by function."""

    def __init__(self, settings: Settings) -> None:
        self._fields: dict[bytes, frozenset[str]] = {}
        self._settings = settings
        settings.on(KIND, self._set)

    def _set(self, function: bytes, value: bytes) -> None:
        fields = _fields_in(value) if value else None
        if fields:
            self._fields[function] = fields
        else:
            self._fields.pop(function, None)

    def changes(self, reported: Mapping[str, Sequence[str]]) -> list[Setting]:
        """The settings that a worker's report changes, for the caller to keep. What it hides is hidden from
        now on, whether that can be kept or not."""
        changes: list[Setting] = []
        for name, fields in reported.items():
            function = name.encode()
            value = json.dumps(sorted(set(fields))).encode() if fields else b""
            if value == self._settings.get(KIND, function):
                continue
            if value and function not in self._fields and len(self._fields) >= _MOST:
                continue
            if value:
                self._set(function, value)
            changes.append(Setting(function, KIND, value))
        return changes

    @property
    def functions(self) -> Collection[bytes]:
        """The functions whose payloads are not shown as they are."""
        return self._fields.keys()

    def fields(self, function: bytes) -> frozenset[str]:
        """The fields of a function that are not shown."""
        return self._fields.get(function, frozenset())

    def shown(self, function: bytes, workload: Body) -> str | None:
        """A payload without the fields that are not shown. None if it is shown as it is."""
        fields = self._fields.get(function)
        return None if fields is None else _without(fields, workload)

    def text(self, function: bytes, workload: Body, limit: int) -> str | None:
        """The beginning of a payload as text, up to so many bytes. None if it is no text."""
        shown = self.shown(function, workload)
        if shown is None:
            payload = workload[: limit + _HEAD]
            if payload[: len(MAGIC)] == MAGIC:
                payload = b"\n".join(_payloads(payload))
            begin = bytes(payload[:limit])
            cut = len(payload) > limit
        else:
            whole = shown.encode()
            begin, cut = whole[:limit], len(whole) > limit
        try:
            return begin.decode()
        except UnicodeDecodeError as error:
            if not cut or error.start < len(begin) - _ODD or "end of data" not in error.reason:
                return None
            return begin[: error.start].decode()


def _fields_in(value: bytes) -> frozenset[str]:
    """The fields of a setting. One that is damaged hides the whole payload."""
    try:
        found: object = json.loads(value)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        return frozenset({WHOLE})
    return frozenset(map(str, cast("list[object]", found)))


def _without(fields: frozenset[str], workload: Body) -> str:
    if WHOLE not in fields and len(workload) <= _LARGEST:
        try:
            values = [json.loads(payload) for payload in _payloads(workload)]
            if all(isinstance(value, (dict, list)) for value in values):
                return "\n".join(_json(_redacted(fields, value)) for value in values)
        except (ValueError, RecursionError):
            pass
    return f"({len(workload)} bytes, not shown because the task redacts {_names(fields)})"


def _json(value: object) -> str:
    """JSON that can be encoded. A string may have half a character, which is written as JSON does."""
    text = json.dumps(value, ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()


def _names(fields: Iterable[str]) -> str:
    return ", ".join(sorted(fields)) if WHOLE not in fields else "its payload"


def _payloads(workload: Body) -> list[bytes]:
    """The payload of a workload, or the payloads of a chunk."""
    data = bytes(workload)
    try:
        envelope, payload = unwrap(data)
        return unpack_payloads(payload, envelope.chunk) if envelope.chunk else [payload]
    except GearflowError:
        return [data]


def _redacted(fields: frozenset[str], value: Any) -> Any:
    if isinstance(value, dict):
        named = cast("dict[str, Any]", value)
        return {
            name: _REDACTED if name in fields else _redacted(fields, each) for name, each in named.items()
        }
    if isinstance(value, list):
        return [_redacted(fields, each) for each in cast("list[object]", value)]
    return value
