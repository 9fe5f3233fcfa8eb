"""How clients and workers make sure whom they talk to, and servers whom they serve: TLS, and a token.

A token is a secret that clients and workers share with a server, which serves nobody who does not know it. It
is said to servers of gearflow's own alone, as no other knows what to do with it.
"""

import os
import ssl
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final, Self

from gearflow.certificates import File, client_context
from gearflow.client.environment import flag
from gearflow.tokens import checked_token, token_of_environment

TLS_VARIABLE: Final = "GEARFLOW_TLS"


@dataclass(frozen=True, slots=True)
class TLS:
    """Speak TLS, 1.2 at least, and only with a server whose certificate is good.

    The files are in PEM form. They are read for each new connection, so certificates can be renewed in place.
    """

    ca: File | None = None
    """The certificates of the authorities that are trusted; None: those that the system trusts."""

    cert: File | None = None
    """A certificate of our own, for servers that want one, and those it is signed with."""

    key: File | None = None
    """Its key; None: it is in the file ``cert``."""

    server_name: str | None = None
    """The name that the server's certificate must have; None: the host that is connected to."""

    def __post_init__(self) -> None:
        if self.key is not None and self.cert is None:
            raise ValueError(f"the key {self.key} has no certificate beside it: give cert, too")

    def context(self) -> ssl.SSLContext:
        """The files, read.

        Raises:
            BadCertificate: One cannot be used; a ValueError.
        """
        return _context(self.ca, self.cert, self.key, _stamps(self.ca, self.cert, self.key))


@dataclass(frozen=True, slots=True)
class Security:
    """What a connection is to be secured with."""

    tls: TLS | None = None
    token: str = field(default="", repr=False)
    """Empty: none."""

    @classmethod
    def of(cls, tls: TLS | bool | None = None, token: str | None = None) -> Self:
        """As given, and in the rest as the environment says.

        Args:
            tls: True: with the authorities that the system trusts; False: no TLS.
            token: Empty: none.

        Raises:
            ValueError: The token can be none, a file cannot be used, or a variable makes no sense.
            TypeError: ``tls`` is none of these.
        """
        check_tls(tls)
        if tls is None:
            tls = _tls_of_environment()
        chosen = TLS() if tls is True else tls or None
        if chosen is not None:
            chosen.context()
        if token is None:
            token = token_of_environment()
        if token.endswith(("\n", "\r")):
            raise ValueError("the token has a line break at its end, as files have: take it off with strip()")
        return cls(chosen, token and checked_token(token))


PLAIN: Final = Security()


def check_tls(tls: object) -> None:
    """See that this is something that ``tls=`` takes.

    Raises:
        TypeError: It is not.
    """
    if tls is not None and not isinstance(tls, TLS | bool):
        raise TypeError(f"tls is True, False or a gearflow.TLS(ca=...), and not {tls!r}")


def _tls_of_environment() -> TLS | None:
    wanted = flag(TLS_VARIABLE)
    given = {
        name: value
        for name in ("ca", "cert", "key", "server_name")
        if (value := os.environ.get(f"{TLS_VARIABLE}_{name.upper()}"))
    }
    if wanted is False or (wanted is None and not given):
        return None
    return TLS(**given)


def _stamps(*files: File | None) -> tuple[tuple[int, int], ...]:
    """By which it shows that a file was changed."""
    stats = (_stat(file) for file in files if file is not None)
    return tuple((stat.st_mtime_ns, stat.st_ino) for stat in stats if stat is not None)


def _stat(file: File) -> os.stat_result | None:
    try:
        return Path(file).stat()
    except OSError:
        return None  # reading it tells why


@lru_cache(maxsize=8)
def _context(
    ca: File | None, cert: File | None, key: File | None, _stamps: tuple[tuple[int, int], ...]
) -> ssl.SSLContext:
    return client_context(ca, cert, key)
