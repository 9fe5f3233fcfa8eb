"""TLS contexts from files, and the security settings of a connection: TLS and a token.

A token is a secret that clients and workers share with a server. The server serves only connections that send
it. Clients send it only to gearflow's own server, because others do not know it.

Errors name the PEM file that cannot be used.
"""

import os
import ssl
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final, NoReturn, Self, TypeAlias

from gearflow.runtime.environment import flag
from gearflow.security.tokens import checked_token, token_of_environment

File: TypeAlias = str | Path

_CERTIFICATE: Final = b"CERTIFICATE-----"
_KEY: Final = b"PRIVATE KEY-----"
_MISMATCH: Final = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}


class BadCertificate(ValueError):
    """A file with a certificate or a key cannot be used. The message names the file and the remedy."""


def client_context(ca: File | None, cert: File | None, key: File | None) -> ssl.SSLContext:
    """The TLS context of a client.

    Args:
        ca: The certificates of the authorities to trust. None means those that the system trusts.
        cert: The client's own certificate, and those it is signed with.
        key: Its key. None means it is in the file ``cert``.

    Raises:
        BadCertificate: A file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _trust(context, ca)
    if cert is not None:
        _show(context, cert, key)
    return context


def server_context(cert: File, key: File | None, ca: File | None) -> ssl.SSLContext:
    """The TLS context of a server.

    Args:
        cert: The server's certificate, and those it is signed with.
        key: Its key. None means it is in the file ``cert``.
        ca: Every client must have a certificate of one of these authorities. None means clients need none.

    Raises:
        BadCertificate: A file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0  # connections are long, so none is resumed
    _show(context, cert, key)
    if ca is not None:
        _trust(context, ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _trust(context: ssl.SSLContext, ca: File) -> None:
    _require(ca, _CERTIFICATE, "certificate")
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise BadCertificate(f"the certificates in {ca} cannot be read: {_words(error)}") from error


def _show(context: ssl.SSLContext, cert: File, key: File | None) -> None:
    _require(cert, _CERTIFICATE, "certificate")
    where = cert if key is None else key
    _require(where, _KEY, "private key")

    def refuse() -> NoReturn:  # OpenSSL would ask on the terminal
        raise BadCertificate(
            f"the key in {where} is encrypted, and gearflow cannot ask for its passphrase; "
            f"save it decrypted: openssl pkey -in {where} -out FILE"
        )

    try:
        context.load_cert_chain(cert, key, refuse)
    except ssl.SSLError as error:
        if error.reason in _MISMATCH:
            raise BadCertificate(f"the key in {where} is not that of the certificate in {cert}") from error
        files = cert if key is None else f"{cert} or {key}"
        words = _words(error)
        raise BadCertificate(f"the certificate or the key in {files} cannot be read: {words}") from error


def _require(file: File, mark: bytes, what: str) -> None:
    """Check that a file can be read and has such a block. OpenSSL's errors say neither, nor name the file."""
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise BadCertificate(f"{file}, the file of a {what}, cannot be read: {reason}") from error
    if mark not in content:
        raise BadCertificate(f"there is no {what} in {file}; is it a PEM file, and the right one?")


def _words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


TLS_VARIABLE: Final = "GEARFLOW_TLS"


@dataclass(frozen=True, slots=True)
class TLS:
    """Settings for TLS 1.2 or later. The client accepts only servers whose certificate it can verify.

    The files are in PEM form. They are read for each new connection, so you can renew certificates in place.
    """

    ca: File | None = None
    """A file with the authorities to trust. None means those that the system trusts."""

    cert: File | None = None
    """A file with your own certificate and those it is signed with, for servers that require one."""

    key: File | None = None
    """A file with the key of the certificate. None means that it is in the file ``cert``."""

    server_name: str | None = None
    """The name that the server's certificate must have. None means the host of the connection."""

    def __post_init__(self) -> None:
        if self.key is not None and self.cert is None:
            raise ValueError(f"the key {self.key} has no certificate beside it: give cert, too")

    def context(self) -> ssl.SSLContext:
        """Return an SSL context with the files loaded.

        Raises:
            BadCertificate: A file cannot be used. Also a ValueError.
        """
        return _context(self.ca, self.cert, self.key, _stamps(self.ca, self.cert, self.key))


@dataclass(frozen=True, slots=True)
class Security:
    """The TLS settings and the token of a connection."""

    tls: TLS | None = None
    """The TLS settings. None means no TLS."""

    token: str = field(default="", repr=False)
    """The token. Empty means none."""

    @classmethod
    def of(cls, tls: TLS | bool | None = None, token: str | None = None) -> Self:
        """Make one from arguments, and from the environment for those that are None.

        Args:
            tls: True trusts the authorities that the system trusts. False turns TLS off.
            token: Empty means none.

        Raises:
            ValueError: The token or a variable is not valid, or a file cannot be used.
            TypeError: ``tls`` has another type.
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
    """Check that ``tls=`` accepts a value.

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
    """The values by which a change of a file is noticed."""
    stats = (_stat(file) for file in files if file is not None)
    return tuple((stat.st_mtime_ns, stat.st_ino) for stat in stats if stat is not None)


def _stat(file: File) -> os.stat_result | None:
    try:
        return Path(file).stat()
    except OSError:
        return None  # the error comes when it is read


@lru_cache(maxsize=8)
def _context(
    ca: File | None, cert: File | None, key: File | None, _stamps: tuple[tuple[int, int], ...]
) -> ssl.SSLContext:
    return client_context(ca, cert, key)
