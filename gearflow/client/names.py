"""Names a user gives or gets as text, and their bytes on the wire, within the wire's limits.

Text is UTF-8; bytes that are not (another program's handle or function) become surrogates and go back
out as they came in.
"""

from functools import lru_cache
from typing import Final

from gearflow.errors import LocalProtocolError
from gearflow.protocol.constants import MAX_HANDLE, MAX_UNIQUE
from gearflow.protocol.uniques import check_chosen

_SURROGATES: Final = "surrogateescape"
_MAX_DIGITS: Final = 20  # in a number of a job


def to_text(name: bytes) -> str:
    """The text of a name from the wire."""
    return name.decode("utf-8", _SURROGATES)


def to_wire(name: str) -> bytes:
    """The bytes of a name."""
    return name.encode("utf-8", _SURROGATES)


def to_number(text: bytes) -> int:
    """Progress as a number. Perl's server sends nothing where others send 0."""
    return int(text) if text.isdigit() and len(text) <= _MAX_DIGITS else 0


@lru_cache  # every call needs it, and programs have few functions
def function_to_wire(function: str) -> bytes:
    """The bytes of a function's name, which may be empty.

    Raises:
        LocalProtocolError: It contains a NUL.
    """
    name = function.encode("utf-8", _SURROGATES)
    if b"\0" in name:
        raise LocalProtocolError(
            f"the function name {function!r} contains a NUL, which ends names on the wire"
        )
    return name


def unique_to_wire(unique: str | bytes) -> bytes:
    """The bytes of a unique; empty for no coalescing.

    Raises:
        LocalProtocolError: It contains a NUL or is over 63 bytes.
    """
    key = unique.encode("utf-8", _SURROGATES) if isinstance(unique, str) else unique
    if not key:
        return b""
    if len(key) > MAX_UNIQUE:
        raise LocalProtocolError(
            f"the unique {key[:20]!r}... has {len(key)} bytes, servers compare only {MAX_UNIQUE}; "
            f"use a hash of it, such as hashlib.sha256(...).hexdigest()[:{MAX_UNIQUE}]"
        )
    if b"\0" in key:
        raise LocalProtocolError(f"the unique {key!r} contains a NUL, which ends names on the wire")
    return key


def unique_to_text(unique: str | bytes) -> str:
    """A unique that a caller chose as text, however it gives it.

    Raises:
        ValueError: It has the form of those that gearflow makes.
    """
    check_chosen(unique)
    return unique if isinstance(unique, str) else to_text(unique)


def handle_to_wire(handle: str) -> bytes:
    """The bytes of a job handle.

    Raises:
        LocalProtocolError: It contains a NUL or is over 63 bytes, so no server gave it out; gearmand
            would not answer.
    """
    name = to_wire(handle)
    if len(name) > MAX_HANDLE or b"\0" in name:
        raise LocalProtocolError(
            f"{handle[:80]!r} is no job handle: those have at most {MAX_HANDLE} bytes, no NUL"
        )
    return name
