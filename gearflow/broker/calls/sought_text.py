"""A text that somebody looks for in names, payloads and errors. Case does not matter.

Most jobs do not have it. So the texts of many jobs are looked at as one, which takes a fraction of the time
that it takes to look at each. Case folding goes letter by letter, so nothing is missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gearflow.broker.parser import Body

SEARCHED: Final = 1 << 16
"""Bytes of a payload or an error that are searched."""

_DIGITS: Final = b"0123456789"


class SoughtText:
    """The text. A frozen value."""

    def __init__(self, text: str) -> None:
        self._folded = text.casefold()
        self._bytes = self._folded.encode() if self._folded.isascii() else b""

    def __bool__(self) -> bool:
        return bool(self._folded)

    def is_in(self, body: Body | int) -> bool:
        """Whether it is in the beginning of a body."""
        return not isinstance(body, int) and self._is_in(beginning_of(body))

    def may_be_in(self, bodies: Sequence[bytes]) -> bool:
        """Whether it may be in one of these beginnings of bodies. If not, it is in none of them."""
        whole = b"\0".join(bodies)
        if whole.isascii():
            return self._is_in(whole)
        others = [body for body in bodies if not body.isascii()]
        if self._is_in(b"\0".join(others)):
            return True
        return bool(self._bytes) and self._is_in(b"\0".join(body for body in bodies if body.isascii()))

    def may_be_in_handle(self, prefix: bytes) -> bool:
        """Whether it may be in a handle, which is this prefix and a number. If not, it is in none."""
        if not self._bytes:
            return not prefix.isascii()
        prefix = prefix.lower()
        head = self._bytes.rstrip(_DIGITS)
        return self._bytes in prefix or prefix.rstrip(_DIGITS).endswith(head)

    def _is_in(self, begin: bytes) -> bool:
        if begin.isascii():
            return bool(self._bytes) and self._bytes in begin.lower()
        return self._folded in begin.decode(errors="replace").casefold()


def beginning_of(body: Body) -> bytes:
    """The part of a body that is searched."""
    return body if isinstance(body, bytes) and len(body) <= SEARCHED else bytes(body[:SEARCHED])
