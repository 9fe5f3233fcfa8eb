"""Files with certificates and keys (PEM) -> contexts for TLS. What is wrong is said with the file's name."""

import os
import ssl
from pathlib import Path
from typing import Final, NoReturn, TypeAlias

File: TypeAlias = str | Path

_CERTIFICATE: Final = b"CERTIFICATE-----"
_KEY: Final = b"PRIVATE KEY-----"
_MISMATCH: Final = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}


class BadCertificate(ValueError):
    """A file with a certificate or a key cannot be used; the message names it, and the remedy."""


def client_context(ca: File | None, cert: File | None, key: File | None) -> ssl.SSLContext:
    """How a client speaks TLS: what it trusts, and what it shows of itself.

    Args:
        ca: The certificates of the authorities that are trusted; None: those that the system trusts.
        cert: The client's own certificate, and those it is signed with.
        key: Its key; None: it is in the file ``cert``.

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
    """How a server speaks TLS.

    Args:
        cert: The server's certificate, and those it is signed with.
        key: Its key; None: it is in the file ``cert``.
        ca: The certificates of the authorities of which every client must have a certificate; None: clients
            need none.

    Raises:
        BadCertificate: A file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0  # connections are long: nobody resumes one
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

    def refuse() -> NoReturn:  # instead of a question on the terminal
        raise BadCertificate(
            f"the key in {where} is encrypted, and its passphrase can be asked of nobody; "
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
    """Look whether a file can be read and has such a thing in it; OpenSSL tells neither, nor the file."""
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise BadCertificate(f"{file}, the file of a {what}, cannot be read: {reason}") from error
    if mark not in content:
        raise BadCertificate(f"there is no {what} in {file}; is it a PEM file, and the right one?")


def _words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
