"""A statement with its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

Row: TypeAlias = tuple[bytes | None, ...]
Rows: TypeAlias = list[Row]


class Query(NamedTuple):
    """A statement with its parameters in binary format."""

    sql: str
    types: tuple[int, ...] = ()  # OIDs of the parameters
    params: Sequence[bytes | None] = ()
