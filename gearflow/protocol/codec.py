"""Packets <-> bytes, driven by one table.

``LAYOUTS`` says for each packet number how many NUL-separated fields its body has and whether the last
one is opaque; it is read off the packet classes, so that there is one place where a packet's form is
written down. The server's hot path uses the same table without building packets
(``gearflow.broker.session``); a property test holds the two readings together.

Three stock peers bend the form, and are understood:

* Perl's Gearman::Worker 2.004 sends WORK_COMPLETE without the NUL when the result is empty;
* Perl's send_work_status leaves the denominator out;
* C gearmand turns WORK_EXCEPTION into a WORK_FAIL with a stray NUL behind the handle.

That last one hangs or kills clients of other libraries which did not ask for exceptions. So gearflow's
worker sends no WORK_EXCEPTION to C gearmand. It sends the failure as a WORK_WARNING with a mark
(``mark_failure``) and a WORK_FAIL. All clients see the text and the end, and gearflow's client puts the two
together again (``marked_failure``).
"""

from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final, cast

from gearflow.errors import LocalProtocolError, RemoteProtocolError
from gearflow.protocol import packets
from gearflow.protocol.constants import HEADER, MAX_BODY, REQ, RES, PacketType
from gearflow.protocol.packets import Packet, Role


@dataclass(frozen=True, slots=True)
class Layout:
    """The form of one packet's body."""

    packet: type[Packet]
    fields: tuple[str, ...]
    opaque: bool  # the last field is data, which may contain NULs

    @property
    def separators(self) -> int:
        """How many NULs separate the fields."""
        return max(len(self.fields) - 1, 0)


_OPAQUE_FIELDS: Final = frozenset({"workload", "data", "result"})

_MAY_BE_MISSING: Final = frozenset(
    {
        PacketType.WORK_COMPLETE,
        PacketType.WORK_DATA,
        PacketType.WORK_WARNING,
        PacketType.WORK_EXCEPTION,
        PacketType.WORK_STATUS,
    }
)
"""Packets whose last field some workers leave out together with its NUL."""


def _layout(packet: type[Packet]) -> Layout:
    names = tuple(field.name for field in fields(packet))
    return Layout(packet, names, opaque=bool(names) and names[-1] in _OPAQUE_FIELDS)


LAYOUTS: Final[dict[PacketType, Layout]] = {
    packet.type: _layout(packet)
    for packet in vars(packets).values()
    if isinstance(packet, type) and issubclass(packet, Packet) and hasattr(packet, "type")
}


FAILURE_MARK: Final = b'{"gearflow": "failure", '
"""What the data of a WORK_WARNING begins with that tells how the job fails."""


def mark_failure(failure: bytes) -> bytes:
    """The data of the WORK_WARNING for a failure, which is a JSON object with at least one member.

    It is the same object, with the mark as its first member.
    """
    return FAILURE_MARK + failure[1:]


def marked_failure(warning: bytes) -> bytes | None:
    """The failure in the data of a WORK_WARNING; ``None`` for any other warning."""
    return b"{" + warning[len(FAILURE_MARK) :] if warning.startswith(FAILURE_MARK) else None


def _values(packet: Packet, layout: Layout) -> tuple[bytes, ...]:
    match layout.fields:
        case ():
            return ()
        case (only,):
            return (getattr(packet, only),)
        case names:
            return cast(tuple[bytes, ...], attrgetter(*names)(packet))


def encode(packet: Packet) -> bytes:
    """One packet as bytes, with the request magic unless only servers send it.

    WORK_* packets, which both sides send, get the request magic here; a server relays the bytes of the
    worker under its own magic (see ``encode_response``).

    Raises:
        LocalProtocolError: A field that must not contain NUL contains one, or the body is over 4 GiB.
    """
    return _encode(packet, RES if packet.senders == Role.SERVER else REQ)


def encode_response(packet: Packet) -> bytes:
    """One packet as a server sends it. Raises as ``encode``."""
    return _encode(packet, RES)


def _encode(packet: Packet, magic: bytes) -> bytes:
    layout = LAYOUTS[packet.type]
    values = _values(packet, layout)
    # The last field runs to the end of the body, so a NUL inside it does not break the framing even
    # where it is not data; a NUL before that would move all that follows.
    for name, value in zip(layout.fields[:-1], values, strict=False):
        if b"\0" in value:
            raise LocalProtocolError(f"{packet.type.name}: the {name} {value[:40]!r} contains a NUL")
    body = b"\0".join(values)
    if len(body) > MAX_BODY:
        raise LocalProtocolError(
            f"{packet.type.name}: a body of {len(body)} bytes is over the wire's limit of 4 GiB"
        )
    return HEADER.pack(magic, packet.type, len(body)) + body


def decode(kind: int, body: bytes) -> Packet:
    """The packet of a frame.

    Raises:
        RemoteProtocolError: No such packet, or its separators are missing.
    """
    try:
        layout = LAYOUTS[cast(PacketType, kind)]
    except KeyError:
        raise RemoteProtocolError(f"packet type {kind} does not exist") from None
    values = split(layout, kind, body)
    return cast(Packet, cast(Any, layout.packet)(*values))


def split(layout: Layout, kind: int, body: bytes) -> list[bytes]:
    """The fields of a body, as many as the layout has. Raises as ``decode``."""
    count = len(layout.fields)
    if count == 0:
        return []  # a body where none belongs carries nothing anyone could want
    values = body.split(b"\0", count - 1)
    missing = count - len(values)
    if missing == 1 and kind in _MAY_BE_MISSING:
        values.append(b"")
    elif missing:
        raise RemoteProtocolError(
            f"{layout.packet.type.name} has {len(values)} of its {count} arguments in {len(body)} bytes"
        )
    if kind == PacketType.WORK_FAIL and values[0].endswith(b"\0"):
        values[0] = values[0][:-1]
    return values
