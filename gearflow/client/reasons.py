"""Why a connection could not be made, or ended, in words for people."""

import os
import socket
import ssl
from typing import Final, cast

NO_TOKEN: Final = (
    "it serves only who knows its token; see token= in Python, --token-file in the shell, or GEARFLOW_TOKEN"
)
NO_TLS: Final = "it speaks TLS only; see tls= in Python, --tls and --tls-ca in the shell, or GEARFLOW_TLS"

_UNTRUSTED: Final = {
    18: "it is self-signed",
    19: "an authority among its signers is self-signed, and not trusted",
    20: "its authority is not trusted",
    21: "its authority is not trusted",
}
_WRONG_NAME: Final = {62, 64}  # host name, IP address
_EXPIRED: Final = {9: "is not valid yet", 10: "has expired"}

_NOT_TLS: Final = {
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
    "UNEXPECTED_MESSAGE",
    "WRONG_VERSION_NUMBER",
}
_OURS_REFUSED: Final = {  # alerts about a certificate that we have shown
    "SSLV3_ALERT_BAD_CERTIFICATE": "it is damaged",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it has been revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it is not good enough",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is of a kind that is not supported",
    "TLSV1_ALERT_UNKNOWN_CA": "its authority is not trusted there",
    "TLSV1_ALERT_DECRYPT_ERROR": "its authority is not trusted there",
}
_OURS_MISSING: Final = {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"}
_OLD: Final = {"TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL"}


def describe(error: BaseException) -> str:
    """Why a connection failed, in the words of the operating system without its number; of TLS in ours."""
    if isinstance(error, BaseExceptionGroup):  # one for each address of a name
        return describe(cast("BaseExceptionGroup[BaseException]", error).exceptions[0])
    if isinstance(error, socket.gaierror):  # its numbers are not the operating system's
        return str(error.strerror).lower()
    if isinstance(error, ssl.SSLCertVerificationError):
        return _about_certificate(error)
    if isinstance(error, ssl.SSLError):
        return _about_tls(error)
    if isinstance(error, OSError) and error.errno:  # asyncio and trio each have a text of their own
        return os.strerror(error.errno).lower()
    if error.__cause__ is not None:  # anyio says only that it failed
        return describe(error.__cause__)
    return str(error) or type(error).__name__


def _about_certificate(error: ssl.SSLCertVerificationError) -> str:
    """What is wrong with the server's certificate."""
    code = error.verify_code
    if code in _UNTRUSTED:
        remedy = "name its authority's certificate with ca (--tls-ca)"
        return f"its certificate is not trusted: {_UNTRUSTED[code]}; {remedy}"
    if code in _EXPIRED:
        return f"its certificate {_EXPIRED[code]}; it needs a new one, or a clock is wrong"
    words = error.verify_message
    if code in _WRONG_NAME:
        return (
            f"its certificate is for another name ({words.rstrip('.').lower()}); "
            "connect by a name that it has, or give that one with server_name (--tls-server-name)"
        )
    return f"its certificate is refused: {words}"


def _about_tls(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if isinstance(error, ssl.SSLEOFError) or reason == "UNEXPECTED_EOF_WHILE_READING":
        return "it closed the connection in the middle of TLS"
    if reason in _NOT_TLS:
        return "it does not speak TLS"
    if reason in _OURS_MISSING:
        return "it requires a certificate from us; give one with cert and key (--tls-cert, --tls-key)"
    if reason in _OURS_REFUSED:
        return f"it refuses our certificate: {_OURS_REFUSED[reason]}"
    if reason in _OLD:
        return "it has no version of TLS in common with us; 1.2 is the least"
    return f"TLS failed: {reason.replace('_', ' ').lower() or error}"
