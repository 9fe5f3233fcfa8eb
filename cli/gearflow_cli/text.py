"""Texts from elsewhere, safe to print.

A name, a message, a traceback or a payload may be another program's. It may contain what steers a terminal:
escape sequences, other control characters, or marks that turn the direction of writing around. All that a
command prints goes through here. ``output.write``, ``errors.tell`` and the log escape whole texts, and keep
their line breaks. A name within a sentence needs ``printable``, because a line break in it could fake a line.

JSON is for programs. It is UTF-8 whatever the terminal uses, and any reader of JSON takes it.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

_NOT_ASCII: Final = re.compile(r"[^\n -~]")
"""The characters of JSON that may have to be escaped. A line break is always one between values."""

_TAB: Final = "    "


def printable(text: object) -> str:
    """A text on one line. Everything that is not printable is escaped, as in ``\\x1b[31m``."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )


def printable_lines(text: str) -> str:
    """The same, but line breaks stay, and tabs become blanks."""
    if text.isprintable():
        return text
    lines = text.replace("\r\n", "\n").replace("\t", _TAB).split("\n")
    return "\n".join(map(printable, lines))


def indented(text: str) -> str:
    """The same text with its further lines indented, so that none can look like a message of its own."""
    return "\n  ".join(text.splitlines())


def as_json(value: Any) -> str:
    """Indented JSON."""
    return _json(value, indent=2)


def as_line(value: Any) -> str:
    """JSON on one line, for output with one value per line."""
    return _json(value, indent=None)


def _json(value: Any, indent: int | None) -> str:
    text = json.dumps(_portable(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return _NOT_ASCII.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    """A character within a JSON string. The escape means the same to a reader."""
    letter = found[0]
    return letter if letter.isprintable() else json.dumps(letter)[1:-1]


def _portable(value: Any) -> Any:
    """A value without what JSON has no form for.

    Bytes that are not UTF-8 are surrogates here. They become the escapes that a table shows. NaN and infinity
    become null.
    """
    match value:
        case str():
            return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            items = cast("Mapping[object, object]", value).items()
            return {_portable(name): _portable(item) for name, item in items}
        case Sequence():
            return [_portable(item) for item in cast("Sequence[object]", value)]
        case _:
            return value
