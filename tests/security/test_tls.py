"""Files of TLS: which are taken, and what is said of the others."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gearflow.security.tls import BadCertificate, client_context, server_context
from gearflow.security.tokens import read_token
from tests.authority import Authority


@pytest.fixture
def openssl(program: Callable[[str], str], tmp_path: Path) -> Callable[..., Path]:
    """Makes a key with the openssl of the machine."""

    def make(*arguments: str) -> Path:
        path = tmp_path / "made.pem"
        command = [program("openssl"), "genpkey", *arguments, "-out", str(path)]
        subprocess.run(command, check=True, capture_output=True)
        return path

    return make


def test_certificate_and_key_may_be_in_one_file_or_in_two(authority: Authority) -> None:
    cert, key = authority.parts("two.example.org")
    server_context(authority.server, None, None)
    server_context(cert, key, authority.ca)
    client_context(authority.ca, cert, key)


def told(cert: Path, key: Path | None = None, ca: Path | None = None) -> str:
    with pytest.raises(BadCertificate) as refused:
        server_context(cert, key, ca)
    return str(refused.value)


def test_what_cannot_be_read_is_named(authority: Authority, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    reason = f"{missing}, the file of a {{}}, cannot be read: no such file or directory"
    assert told(missing) == reason.format("certificate")
    assert told(authority.server, missing) == reason.format("private key")
    assert told(authority.server, None, missing) == reason.format("certificate")
    assert told(tmp_path).endswith("cannot be read: is a directory")


def test_what_is_in_the_wrong_file_is_told(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.parts("swapped.example.org")
    assert told(key, cert) == f"there is no certificate in {key}; is it a PEM file, and the right one?"
    assert told(cert).startswith(f"there is no private key in {cert}")
    assert told(cert, key, key).startswith(f"there is no certificate in {key}")


def test_what_is_damaged_is_told(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.parts("damaged.example.org")
    damaged = tmp_path / "damaged.pem"
    damaged.write_bytes(cert.read_bytes()[:200] + b"\n-----END CERTIFICATE-----\n")
    assert told(damaged, key).startswith(f"the certificate or the key in {damaged} or {key} cannot be read")
    assert told(cert, key, damaged).startswith(f"the certificates in {damaged} cannot be read")


def test_another_ones_key_is_told(authority: Authority, openssl: Callable[..., Path]) -> None:
    cert, _ = authority.parts("mine.example.org")
    _, other = authority.parts("yours.example.org")
    assert told(cert, other) == f"the key in {other} is not that of the certificate in {cert}"
    of_another_kind = openssl("-algorithm", "RSA")
    assert told(cert, of_another_kind).startswith(f"the key in {of_another_kind} is not that of")


def test_an_encrypted_key_is_told_and_nobody_is_asked(
    authority: Authority, openssl: Callable[..., Path]
) -> None:
    cert, _ = authority.parts("secret.example.org")
    key = openssl("-algorithm", "RSA", "-aes128", "-pass", "pass:secret")
    assert told(cert, key) == (
        f"the key in {key} is encrypted, and gearflow cannot ask for its passphrase; "
        f"save it decrypted: openssl pkey -in {key} -out FILE"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty; a good one comes from: gearflow token"),
        (b" \n", "is empty"),
        (b"one\ntwo", "has characters in it that cannot be printed"),
        (b"\xff\xfe", "cannot be read: it is not UTF-8"),
        (b"x" * 1025, "has 1025 bytes, over the limit of 1024"),
    ],
)
def test_a_file_without_a_token_is_told(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"the token in {path} {reason}")):
        read_token(path)
