"""The rights of a token: what a connection may do that has sent it.

A server knows its tokens by their hashes. A token is random and long, so a plain SHA-256 is enough: there is
nothing to guess, and an expensive hash would only make it cheap to keep the server busy. For the same reason
a token is looked up by its hash. The time of a lookup tells at most something about the hash.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Flag, auto
from hashlib import sha256
from typing import Final


class Right(Flag):
    """What a connection may do. Each of them includes what its clients need, such as to see the server.

    Attributes:
        VIEW: Look at jobs, results, functions, workers and all else, and change nothing.
        SUBMIT: Submit jobs, wait for them, read what comes of them, cancel and edit them.
        WORK: Offer functions and run jobs.
        OPERATE: View, and carry out all that operators do, such as pause, purge and replay.
    """

    VIEW = auto()
    SUBMIT = auto()
    WORK = auto()
    OPERATE = auto()


ALL: Final = Right.VIEW | Right.SUBMIT | Right.WORK | Right.OPERATE

NO_RIGHT: Final = Right(0)

_WORDS: Final = {
    "view": Right.VIEW,
    "submit": Right.SUBMIT,
    "work": Right.WORK,
    "operate": Right.OPERATE | Right.VIEW,
    "all": ALL,
}

RIGHT_WORDS: Final = tuple(_WORDS)
"""The words for rights, as people write them."""


def read_rights(text: str) -> Right:
    """Read rights as people write them: one or more words with commas between them.

    Raises:
        ValueError: There is no such right.
    """
    rights = NO_RIGHT
    for word in text.split(","):
        if word not in _WORDS:
            raise ValueError(f"there is no right {word!r}; there are {', '.join(RIGHT_WORDS)}")
        rights |= _WORDS[word]
    return rights


def rights_text(rights: Right) -> str:
    """Write rights as people do. ``operate`` includes ``view``, so it is left out beside it."""
    return ",".join(right_words(rights))


def right_words(rights: Right) -> tuple[str, ...]:
    """The words of rights."""
    if rights == ALL:
        return ("all",)
    shown = rights & ~Right.VIEW if Right.OPERATE in rights else rights
    return tuple(name.lower() for name in Right.__members__ if Right[name] in shown)


@dataclass(frozen=True, slots=True)
class Grant:
    """A token that a server accepts."""

    digest: bytes = field(repr=False)
    """The SHA-256 of the token."""

    rights: Right = ALL
    """What a connection may do with it."""

    name: str = ""
    """How logs and errors call it, such as the program that has it."""

    def __str__(self) -> str:
        """Return the rights, and the name if there is one."""
        text = rights_text(self.rights)
        return f"{text} ({self.name})" if self.name else text


class Tokens:
    """The tokens that a server accepts. A frozen value.

    Raises:
        ValueError: A token is there twice.
    """

    __slots__ = ("_by_digest",)

    def __init__(self, grants: Iterable[Grant]) -> None:
        self._by_digest: dict[bytes, Grant] = {}
        for grant in grants:
            if self._by_digest.setdefault(grant.digest, grant) is not grant:
                raise ValueError(
                    f"a token is there twice: as {self._by_digest[grant.digest]}, and as {grant}"
                )

    @classmethod
    def of(cls, token: bytes) -> "Tokens":
        """A single token that has all rights."""
        return cls([Grant(digest_of(token))])

    def __iter__(self) -> Iterator[Grant]:
        return iter(self._by_digest.values())

    def __len__(self) -> int:
        return len(self._by_digest)

    def find(self, token: bytes) -> Grant | None:
        """The grant of a token. None if the server does not accept it."""
        return self._by_digest.get(digest_of(token))

    def now(self, grant: Grant) -> Grant | None:
        """The grant that these tokens have for the token of an earlier grant. None if they have none."""
        return self._by_digest.get(grant.digest)


def digest_of(token: bytes) -> bytes:
    """The hash of a token."""
    return sha256(token).digest()
