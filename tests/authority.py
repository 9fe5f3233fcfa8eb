"""An authority that signs certificates for tests, and the files it writes."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

import trustme

TOKEN = "open sesame"
"""What servers of tests want to be told."""


class Authority:
    """Owns a folder of PEM files; each is written when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self._folder = folder
        self.ca = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.ca))

    @property
    def server(self) -> Path:
        """The certificate and the key of 127.0.0.1, in one file."""
        return self.certificate("127.0.0.1")

    @property
    def client(self) -> Path:
        """Those of a client."""
        return self.certificate("client@example.org")

    def certificate(self, name: str, *, expired: bool = False) -> Path:
        """A certificate with its key, in one file."""
        path = self._folder / f"{name}{'.expired' if expired else ''}.pem"
        if not path.exists():
            until = datetime(2020, 1, 1, tzinfo=UTC) if expired else None
            since = datetime(2019, 1, 1, tzinfo=UTC) if expired else None
            issued = self._authority.issue_cert(name, not_before=since, not_after=until)
            issued.private_key_and_cert_chain_pem.write_to_path(str(path))
        return path

    def parts(self, name: str) -> tuple[Path, Path]:
        """A new certificate and its key, each in a file of its own."""
        issued = self._authority.issue_cert(name)
        cert, key = self._folder / f"{name}.cert.pem", self._folder / f"{name}.key.pem"
        issued.cert_chain_pems[0].write_to_path(str(cert))
        issued.private_key_pem.write_to_path(str(key))
        return cert, key

    def context(self, cert: Path | None = None) -> ssl.SSLContext:
        """How a client of the standard library speaks TLS, that trusts this authority."""
        context = ssl.create_default_context(cafile=self.ca)
        if cert is not None:
            context.load_cert_chain(cert)
        return context
