"""A chunk: several calls of one function that share a job. Pure.

The header of its envelope has ``chunk``, the number of calls. Their payloads follow, each after its length
(4 bytes, big-endian). A worker runs the calls one after the other, and completes the job with their outcomes.
An outcome is a kind (1 byte), a length and that many bytes. The magic ``NUL gfc`` stands before the first
one, so that nothing else is taken for outcomes.

There may be fewer outcomes than calls, in their order. The other calls have not run.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, TypeAlias

from gearflow.errors import PayloadInvalid, RemoteProtocolError

MAGIC: Final = b"\0gfc"

_LENGTH: Final = struct.Struct(">I")
_HEAD: Final = struct.Struct(">BI")


class OutcomeKind(IntEnum):
    """How a call ended, and what the bytes of its outcome are."""

    RESULT = 0
    """The result."""

    EXCEPTION = 1
    """The data that WORK_EXCEPTION would have had."""

    FAILURE = 2
    """Nothing, as in WORK_FAIL."""

    AGAIN = 3
    """Nothing. The call is to run again, and this run counts as an attempt."""

    NOT_YET = 4
    """Nothing. The call is to run again, and this run does not count."""


_KINDS: Final = tuple(OutcomeKind)  # by their numbers


ItemOutcome: TypeAlias = tuple[OutcomeKind, bytes]
"""The outcome of one call."""


def pack_payloads(payloads: Sequence[bytes]) -> bytes:
    """The payloads as they follow the envelope."""
    pack = _LENGTH.pack
    return b"".join([part for payload in payloads for part in (pack(len(payload)), payload)])


def unpack_payloads(data: bytes, number: int) -> list[bytes]:
    """So many payloads. Raises PayloadInvalid if there are fewer or more bytes than they have."""
    payloads: list[bytes] = []
    position = 0
    for _ in range(number):
        begin = position + _LENGTH.size
        if begin > len(data):
            break
        position = begin + _LENGTH.unpack_from(data, position)[0]
        payloads.append(data[begin:position])
    if len(payloads) != number or position != len(data):
        raise PayloadInvalid(f"a chunk of {number} calls does not fit the {len(data)} bytes of its payloads")
    return payloads


def pack_outcomes(outcomes: Sequence[ItemOutcome]) -> bytes:
    """The result of the job."""
    pack = _HEAD.pack
    parts = [part for kind, data in outcomes for part in (pack(kind, len(data)), data)]
    return b"".join([MAGIC, *parts])


def unpack_outcomes(result: bytes) -> list[ItemOutcome]:
    """The outcomes in the result of a job. Raises RemoteProtocolError if it has none."""
    if not result.startswith(MAGIC):
        raise RemoteProtocolError(
            "the worker does not know chunks, so it is not gearflow's own; leave out chunk="
        )
    outcomes: list[ItemOutcome] = []
    kind: int
    length: int
    position, end, unpack, size = len(MAGIC), len(result), _HEAD.unpack_from, _HEAD.size
    while position < end:
        begin = position + size
        if begin > end:
            raise RemoteProtocolError("the outcomes of a chunk are cut off")
        kind, length = unpack(result, position)
        position = begin + length
        if position > end or kind >= len(_KINDS):
            raise RemoteProtocolError("the outcomes of a chunk are cut off, or of an unknown kind")
        outcomes.append((_KINDS[kind], result[begin:position]))
    return outcomes
