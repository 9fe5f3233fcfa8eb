"""The fields of a packet's body, split once.

A body is bytes; a large one is a read-only view of what it was received into, and its last field stays a
view, so that no large body is copied, unless it would keep much in memory that is not its own.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

from gearflow.errors import RemoteProtocolError
from gearflow.protocol.constants import MAX_ARGUMENT, PacketType

Body: TypeAlias = bytes | memoryview

_INTEGER: Final = re.compile(rb"\s*([+-]?\d{1,20})")


def split(body: Body, separators: int, kind: int) -> tuple[list[bytes], Body]:
    """The fields before the last one, and the last one.

    Raises:
        RemoteProtocolError: Separators are missing.
    """
    if isinstance(body, bytes):
        fields = body.split(b"\0", separators)
        last: Body = fields.pop()
    else:
        fields = bytes(body[: (separators + 1) * MAX_ARGUMENT]).split(b"\0", separators)
        fields.pop()
        last = compact(body[sum(map(len, fields)) + len(fields) :])
    if len(fields) < separators:
        name = PacketType(kind).name
        raise RemoteProtocolError(f"{name} has {len(fields) + 1} of its {separators + 1} arguments")
    return fields, last


def handle_of(body: Body) -> tuple[bytes, Body]:
    """The handle that begins a body, and the body.

    Perl's Gearman::Worker sends no NUL behind the handle where the result is empty: it is put there.
    """
    if isinstance(body, bytes):
        end = body.find(b"\0")
        if end < 0:
            return body, body + b"\0"
        return body[:end], body
    handle, separator, _ = bytes(body[:MAX_ARGUMENT]).partition(b"\0")
    if not separator:
        raise RemoteProtocolError("a handle does not end")
    return handle, body


def compact(body: Body) -> Body:
    """A body that is kept: a copy, if it would keep much more in memory that was received with it."""
    if isinstance(body, memoryview) and isinstance(body.obj, bytes) and len(body.obj) > 2 * len(body):
        return bytes(body)
    return body


def name_in(body: Body) -> bytes:
    """The first field of a body that has no data; what stands behind a NUL is ignored, as in gearmand."""
    return bytes(body).partition(b"\0")[0]


def integer(text: bytes) -> int:
    """A number as C reads it: as many digits as there are, else 0."""
    match = _INTEGER.match(text)
    return int(match[1]) if match else 0
