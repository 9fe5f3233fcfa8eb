"""What the environment says of how servers are used."""

import os
from typing import Final

_YES: Final = {"1", "true", "yes", "on"}
_NO: Final = {"0", "false", "no", "off"}


def flag(name: str) -> bool | None:
    """Yes or no in an environment variable; None if it says nothing.

    Raises:
        ValueError: It says something else.
    """
    value = os.environ.get(name, "").strip()
    if not value:
        return None
    if value.lower() not in _YES | _NO:
        raise ValueError(f"the environment variable {name}: {value!r} is neither 1 nor 0")
    return value.lower() in _YES
