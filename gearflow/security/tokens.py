"""Tokens, the secrets that clients and workers share with a server. No message shows one."""

import os
from pathlib import Path
from typing import Final

from gearflow.protocol.constants import MAX_TOKEN

VARIABLE: Final = "GEARFLOW_TOKEN"
FILE_VARIABLE: Final = "GEARFLOW_TOKEN_FILE"


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
    """The token in a file, without blanks around it.

    Raises:
        ValueError: The file cannot be read, or its content cannot be a token.
    """
    try:
        content = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise ValueError(f"the token in {file} cannot be read: {reason}") from error
    except UnicodeDecodeError:
        raise ValueError(f"the token in {file} cannot be read: it is not UTF-8") from None
    return checked_token(content.strip(), f"the token in {file}")


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
    raise ValueError(f"{what} {fault}; a good one comes from: openssl rand -hex 32")
