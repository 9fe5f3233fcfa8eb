"""What a job server can be told."""

from pathlib import Path
from typing import Annotated, Final, Self, TypedDict

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from gearflow.broker import SizeLimits
from gearflow.protocol.constants import DEFAULT_PORT, MAX_BODY
from gearflow.security.tokens import checked_token
from gearflow.stores import Sync

_DEFAULTS = SizeLimits()

FILE_NAME: Final = "gearflow.db"
"""The file in the folder ``data``."""

MEMORY_KEEP_BYTES: Final = 64 << 20

Bytes = Annotated[int, Field(ge=1)]


def _check(token: SecretStr) -> SecretStr:
    checked_token(token.get_secret_value())
    return token


class ServerSettings(BaseModel):
    """Settings of a ``JobServer``: a frozen value, validated once."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    host: str = "127.0.0.1"
    """The address to listen on. Before you open it to a network, see ``tls_cert`` and ``token``: without them
    whoever reaches it may do anything."""

    port: Annotated[int, Field(ge=0, le=65535)] = DEFAULT_PORT
    """The TCP port; 0 takes a free one, which ``JobServer.port`` then tells."""

    backlog: Annotated[int, Field(ge=1)] = 4096
    """Connections the kernel holds until they are accepted. gearmand's 32 makes bursts wait for seconds."""

    max_connections: Annotated[int, Field(ge=1)] | None = None
    """Connections at a time; one more is closed at once. None, or more than that: as many as the process may
    have open files, less a few for its own use."""

    max_body: Annotated[int, Field(ge=1, le=MAX_BODY)] = _DEFAULTS.body
    """Bytes in the body of a packet. The sender of a larger one gets ERROR and keeps its connection; a
    result that is larger fails its job."""

    max_queued_bytes: Bytes | None = _DEFAULTS.queued
    """Bytes of the workloads of all jobs together; a submission over that is refused with QUEUE_ERROR.
    None: as much as there is memory."""

    max_pending_bytes: Bytes = 64 << 20
    """Bytes that wait for one reader. At the limit the server stops reading from those who feed it, until
    it has read a quarter, or ``max_stall`` is over: then the reader is disconnected."""

    max_stall: Annotated[float, Field(gt=0)] = 30.0
    """Seconds for which a slow reader may keep those who feed it waiting."""

    max_packet_time: Annotated[float, Field(gt=0)] = _DEFAULTS.packet_time
    """Seconds that a packet may take to come whole, and one more for each MiB of it; then its sender is
    disconnected. An idle connection may stay for ever."""

    max_function: Annotated[int, Field(ge=1, le=_DEFAULTS.function)] = _DEFAULTS.function
    """Bytes in a function's name; who sends a longer one is disconnected."""

    max_unique: Annotated[int, Field(ge=1, le=_DEFAULTS.function)] = _DEFAULTS.unique
    """Bytes in a unique; a submission with a longer one is refused with ARGUMENT_TOO_LARGE."""

    max_line: Annotated[int, Field(ge=16, le=_DEFAULTS.line)] = _DEFAULTS.line
    """Bytes in a text command; who sends a longer one is disconnected."""

    tls_cert: Path | None = None
    """The server's certificate and those it is signed with, in PEM form: the port then speaks TLS, 1.2 at
    least, and nothing else. None: it speaks none."""

    tls_key: Path | None = None
    """The certificate's key, unencrypted, in PEM form. None: it is in the file ``tls_cert``."""

    tls_ca: Path | None = None
    """The certificates of the authorities of which every client and worker has to show a certificate. None:
    they need none."""

    token: Annotated[SecretStr, AfterValidator(_check)] | None = None
    """A secret that every connection has to say before anything else is served, of up to 1024 bytes. None:
    whoever connects is served."""

    data: Path | None = None
    """The folder of the file in which jobs and results are kept; it is made if need be. None: they live in
    memory, and end with the server."""

    sync: Sync = "batch"
    """What a background job that was acknowledged survives: the death of the server in any case;
    ``always``: that of the machine, too; ``batch``: that too, but for the last second or so; ``off``: there
    the file may be damaged."""

    keep: Annotated[float, Field(ge=0)] = _DEFAULTS.keep
    """Seconds for which what became of a background job is kept, where its submission does not say."""

    keep_dead: Annotated[float, Field(ge=0)] = _DEFAULTS.keep_dead
    """Seconds for which dead letters are kept."""

    keep_bytes: Bytes | None = None
    """Bytes of what became of jobs that are kept at most, the oldest going first. None: 64 MiB in memory, and
    in a file as much as there is room."""

    max_deaths: Annotated[int, Field(ge=1)] | None = _DEFAULTS.deaths
    """Workers that may go away in the middle of a job; then it is a dead letter. None: any number."""

    @model_validator(mode="after")
    def _has_certificate(self) -> Self:
        if self.tls_cert is None and (self.tls_key or self.tls_ca):
            raise ValueError("tls_key and tls_ca are for a certificate, and there is none: give tls_cert")
        return self

    @property
    def limits(self) -> SizeLimits:
        """Those of the settings that the broker itself keeps."""
        return SizeLimits(
            body=self.max_body,
            function=self.max_function,
            unique=self.max_unique,
            line=self.max_line,
            queued=self.max_queued_bytes,
            packet_time=self.max_packet_time,
            keep=self.keep,
            keep_dead=self.keep_dead,
            deaths=self.max_deaths,
        )


class ServerOptions(TypedDict, total=False):
    """The fields of ``ServerSettings`` as keywords of ``JobServer``."""

    host: str
    port: int
    backlog: int
    max_connections: int | None
    max_body: int
    max_queued_bytes: int | None
    max_pending_bytes: int
    max_stall: float
    max_packet_time: float
    max_function: int
    max_unique: int
    max_line: int
    tls_cert: Path | None
    tls_key: Path | None
    tls_ca: Path | None
    token: SecretStr | str | None
    data: Path | None
    sync: Sync
    keep: float
    keep_dead: float
    keep_bytes: int | None
    max_deaths: int | None
