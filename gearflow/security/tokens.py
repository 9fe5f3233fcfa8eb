"""Tokens, the secrets that clients and workers share with a server. No message shows one.

A client has one token. A server has a file with one or more, a line each::

    # RIGHTS:TOKEN NAME
    submit:sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 web shop
    submit,work:sha256:60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752 workers
    operate:sha256:fd61a03af4f77d870fc21e05e7e80678095c92d808cfb3b5c279ee04c74aca13 on call

The token is there as its hash, or itself. A file with one token and no rights before it gives it all rights.
Empty lines and lines that begin with ``#`` are ignored.
"""

import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final

from gearflow.protocol.constants import MAX_TOKEN
from gearflow.protocol.rights import (
    ALL,
    RIGHT_WORDS,
    Grant,
    Right,
    Tokens,
    digest_of,
    read_rights,
    rights_text,
)

VARIABLE: Final = "GEARFLOW_TOKEN"
FILE_VARIABLE: Final = "GEARFLOW_TOKEN_FILE"

HASHED: Final = "sha256:"
"""What the hash of a token begins with in a server's file."""

SHORTEST: Final = 16
"""Characters of the shortest token that is hashed. A shorter one could be found by trying."""

_HASH: Final = re.compile(f"{HASHED}([0-9a-f]{{64}})")

_WORD: Final = f"(?:{'|'.join(RIGHT_WORDS)})"

_LINE: Final = re.compile(rf"({_WORD}(?:,{_WORD})*):(\S+)(?:\s+(\S.*))?")
"""The rights, the token or its hash, and the name."""


class BadTokens(ValueError):
    """A file of tokens cannot be used."""


# ------------------------------------------------------------------------------------------- of a client


def token_of_environment() -> str:
    """The token in GEARFLOW_TOKEN, else in the file that GEARFLOW_TOKEN_FILE names. Empty if there is none.

    Raises:
        ValueError: The token cannot be read, or cannot be a token.
    """
    if token := os.environ.get(VARIABLE):
        return checked_token(token, f"the token in the environment variable {VARIABLE}")
    if file := os.environ.get(FILE_VARIABLE):
        return read_token(file)
    return ""


def read_token(file: str | Path) -> str:
    """The token of a client in a file, without blanks around it, and without comments.

    Raises:
        ValueError: The file cannot be read, or its content cannot be a token.
    """
    content = _read(file, "the token")
    lines = [*_lines(content).values()]
    if any(_LINE.fullmatch(line) or _HASH.fullmatch(line) for line in lines):
        raise ValueError(
            f"the token in {file} cannot be read: this is the file of a server, with the rights or hashes of "
            "its tokens. A client needs the token itself"
        )
    return checked_token(lines[0] if len(lines) == 1 else content.strip(), f"the token in {file}")


def checked_token(token: str, what: str = "the token") -> str:
    """Return the token if it can be one. ``what`` names it in the error.

    Raises:
        ValueError: It cannot be a token.
    """
    if not token:
        fault = "is empty"
    elif not token.isprintable():
        fault = "has characters in it that cannot be printed"
    elif (size := len(token.encode())) > MAX_TOKEN:
        fault = f"has {size} bytes, over the limit of {MAX_TOKEN}"
    else:
        return token
    raise ValueError(f"{what} {fault}; a good one comes from: gearflow token")


# ------------------------------------------------------------------------------------------- of a server


def read_tokens(file: str | Path) -> Tokens:
    """The tokens in the file of a server.

    Raises:
        BadTokens: The file cannot be read or used. The error names the line, and does not show it.
    """
    try:
        return parse_tokens(_read(file, "the tokens"), str(file))
    except ValueError as error:
        raise BadTokens(str(error)) from None


def exposed(file: str | Path) -> str:
    """How everybody on the machine can misuse the file of a server. Empty if they cannot.

    A file of hashes may be read by everybody.
    """
    try:
        mode, content = Path(file).stat().st_mode, _read(file, "the tokens")
    except (OSError, ValueError):
        return ""
    if mode & stat.S_IWOTH:
        return "everybody on this machine can change it, and so give themselves all rights"
    if mode & stat.S_IROTH and any(HASHED not in line for line in _lines(content).values()):
        return "everybody on this machine can read the tokens in it"
    return ""


def parse_tokens(content: str, file: str) -> Tokens:
    """The tokens in the content of such a file. ``file`` names it in errors. Raises ValueError."""
    lines = _lines(content)
    if not lines:
        raise ValueError(f"there is no token in {file}; make one with: gearflow token")
    if len(lines) == 1:
        ((number, line),) = lines.items()
        if not _LINE.fullmatch(line) and (_HASH.fullmatch(line) or HASHED not in line):
            return Tokens([_grant(ALL, line, "", f"the token in {file}")])
    grants: list[Grant] = []
    for number, line in lines.items():
        match = _LINE.fullmatch(line)
        if match is None:
            words = ", ".join(RIGHT_WORDS)
            raise ValueError(
                f"line {number} of {file} is not RIGHTS:TOKEN NAME. The rights are one or more of {words}, "
                "with commas between them. The name may be missing. Write all: before a token for everything"
            )
        rights, token, name = match.groups()
        if name and not name.isprintable():
            raise ValueError(f"line {number} of {file}: the name has characters that cannot be printed")
        grants.append(_grant(read_rights(rights), token, name or "", f"line {number} of {file}: the token"))
    try:
        return Tokens(grants)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _grant(rights: Right, token: str, name: str, what: str) -> Grant:
    """A grant for a token, or for its hash. Raises ValueError."""
    if match := _HASH.fullmatch(token):
        return Grant(bytes.fromhex(match[1]), rights, name)
    if token.startswith(HASHED):
        raise ValueError(f"{what} has a damaged hash: {HASHED} is followed by 64 digits from 0 to f")
    return Grant(digest_of(checked_token(token, what).encode()), rights, name)


# ---------------------------------------------------------------------------------------------- new ones


def new_token() -> str:
    """A new random token."""
    return secrets.token_hex(32)


def token_line(token: str, rights: Right = ALL, name: str = "") -> str:
    """The line for a token in the file of a server. It has the hash of the token.

    Raises:
        ValueError: It cannot be a token, is too short to be hashed, or the name cannot be one.
    """
    if len(checked_token(token)) < SHORTEST:
        raise ValueError(f"the token has less than {SHORTEST} characters, so it could be found by trying")
    if not name.isprintable() or name != name.strip():
        raise ValueError("the name of a token has characters that can be printed, and no blanks at its ends")
    return f"{rights_text(rights)}:{HASHED}{digest_of(token.encode()).hex()} {name}".rstrip()


# ---------------------------------------------------------------------------------------------- files


def _read(file: str | Path, what: str) -> str:
    """The content of a file, without the mark that some editors put before it. Raises ValueError."""
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise ValueError(f"{what} in {file} cannot be read: {reason}") from error
    except UnicodeDecodeError:
        raise ValueError(f"{what} in {file} cannot be read: it is not UTF-8") from None


def _lines(content: str) -> dict[int, str]:
    """By number: the lines that are neither empty nor comments, without blanks around them."""
    lines = {number: line.strip() for number, line in enumerate(content.split("\n"), 1)}
    return {number: line for number, line in lines.items() if line and not line.startswith("#")}
