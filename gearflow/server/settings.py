"""The settings of a job server."""

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
    """The settings of a ``JobServer``, a frozen value that is validated once."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    host: str = "127.0.0.1"
    """The address to listen on. Without ``tls_cert`` and a token, everyone who reaches it can do anything,
    so set them before you open the server to a network."""

    port: Annotated[int, Field(ge=0, le=65535)] = DEFAULT_PORT
    """The TCP port. 0 takes a free one, which ``JobServer.port`` returns."""

    backlog: Annotated[int, Field(ge=1)] = 4096
    """Connections the kernel holds until the server accepts them. gearmand's 32 makes bursts wait for
    seconds."""

    max_connections: Annotated[int, Field(ge=1)] | None = None
    """Connections at a time. The server closes one more at once. None, or more than that, means as many as
    the process may have open files, less a few for its own use."""

    max_body: Annotated[int, Field(ge=1, le=MAX_BODY)] = _DEFAULTS.body
    """Bytes in the body of a packet. The sender of a larger one gets ERROR and keeps its connection. A larger
    result fails its job."""

    max_queued_bytes: Bytes | None = _DEFAULTS.queued
    """Bytes of the workloads of all jobs together. The server refuses a submission over that with
    QUEUE_ERROR. None means as much as there is memory."""

    max_pending_bytes: Bytes = 64 << 20
    """Bytes that wait for one reader. At the limit the server stops reading from the connections that feed
    it, until the reader has read a quarter. After ``max_stall`` it disconnects the reader."""

    max_stall: Annotated[float, Field(gt=0)] = 30.0
    """Seconds for which a slow reader may keep the connections that feed it waiting."""

    max_packet_time: Annotated[float, Field(gt=0)] = _DEFAULTS.packet_time
    """Seconds in which a packet must arrive whole, plus one for each MiB of it. After that the server
    disconnects the sender. An idle connection may stay for ever."""

    max_function: Annotated[int, Field(ge=1, le=_DEFAULTS.function)] = _DEFAULTS.function
    """Bytes in a function's name. The server disconnects the sender of a longer one."""

    max_unique: Annotated[int, Field(ge=1, le=_DEFAULTS.function)] = _DEFAULTS.unique
    """Bytes in a unique. The server refuses a submission with a longer one with ARGUMENT_TOO_LARGE."""

    max_line: Annotated[int, Field(ge=16, le=_DEFAULTS.line)] = _DEFAULTS.line
    """Bytes in a text command. The server disconnects the sender of a longer one."""

    tls_cert: Path | None = None
    """A PEM file with the server's certificate and the certificates it is signed with. With it the port
    speaks only TLS, 1.2 or later. None means no TLS."""

    tls_key: Path | None = None
    """A PEM file with the certificate's key, unencrypted. None means the key is in the file ``tls_cert``."""

    tls_ca: Path | None = None
    """A file with authorities. Every client and worker must then show a certificate of one of them. None
    means they need no certificate."""

    token: Annotated[SecretStr, AfterValidator(_check)] | None = None
    """A secret of up to 1024 bytes that every connection must send before the server does anything else for
    it. It has all rights. None means ``token_file``, or that no token is needed."""

    token_file: Path | None = None
    """A file with one or more such tokens and their rights. None means ``token``, or that no token is
    needed."""

    data: Path | None = None
    """The folder of the file that keeps jobs and results. The server makes the folder if it is missing. None
    means jobs and results live in memory, and end with the server."""

    sync: Sync = "batch"
    """How safe an acknowledged background job is. In every mode it survives the death of the server. With
    ``always`` it also survives the death of the machine. ``batch`` is the same, except that about the last
    second may be lost. With ``off`` the death of the machine may damage the file. With ``postgres``, the
    default is ``always``, and the other two do not wait for the database's disk."""

    keep: Annotated[float, Field(ge=0, le=1e10)] = _DEFAULTS.keep
    """Seconds for which the outcome of a background job is kept, if the submission does not say."""

    keep_dead: Annotated[float, Field(ge=0, le=1e10)] = _DEFAULTS.keep_dead
    """Seconds for which dead letters are kept."""

    keep_bytes: Bytes | None = None
    """Bytes of all kept outcomes together. The oldest go first. None means 64 MiB in memory. In a file, as
    much as there is room."""

    max_deaths: Annotated[int, Field(ge=1)] | None = _DEFAULTS.deaths
    """Runs of a job that may be cut off before it becomes a dead letter. A run is cut off if its worker goes
    away, or overruns a time limit that it set (CAN_DO_TIMEOUT). None means any number."""

    postgres: SecretStr | None = None
    """A PostgreSQL database that keeps jobs and results, as a libpq connection string or URI. Several servers
    can share it. It needs the extra ``postgres``. None means a file, or memory."""

    postgres_schema: Annotated[str, Field(min_length=1, max_length=63)] = "gearflow"
    """The schema in that database. The server makes its tables if they are missing. Servers with the same
    database and schema are a group."""

    lease: Annotated[float, Field(ge=1.0, le=3600.0)] = 10.0
    """Seconds after which other servers of the group take over the jobs of a server that shows no sign of
    life. All servers of a group should have the same."""

    advertise: str | None = None
    """The address, ``host:port``, at which clients and the other servers of the group reach this server. None
    means ``host`` and ``port``, or the name of the machine if ``host`` is a wildcard."""

    store_timeout: Annotated[float, Field(gt=0, le=3600.0)] = 5.0
    """Seconds for which submitters wait for a database that cannot be reached. After that they get an
    error."""

    @model_validator(mode="after")
    def _has_one_store(self) -> Self:
        if self.postgres is not None and self.data is not None:
            raise ValueError("data is for a file and postgres for a database: give one of them")
        if self.postgres is not None and self.keep_bytes is not None:
            raise ValueError("keep_bytes is for a file or memory; a database keeps what keep says")
        return self

    @model_validator(mode="after")
    def _has_certificate(self) -> Self:
        if self.tls_cert is None and (self.tls_key or self.tls_ca):
            raise ValueError("tls_key and tls_ca are for a certificate, and there is none: give tls_cert")
        return self

    @model_validator(mode="after")
    def _has_one_kind_of_token(self) -> Self:
        if self.token is not None and self.token_file is not None:
            raise ValueError("token and token_file both say which tokens are accepted: give one of them")
        return self

    @property
    def effective_sync(self) -> Sync:
        """The value of ``sync`` that applies. Its default depends on the store."""
        return "always" if self.postgres is not None and "sync" not in self.model_fields_set else self.sync

    @property
    def limits(self) -> SizeLimits:
        """The settings that the broker applies itself."""
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
    token_file: Path | None
    data: Path | None
    sync: Sync
    keep: float
    keep_dead: float
    keep_bytes: int | None
    max_deaths: int | None
    postgres: SecretStr | str | None
    postgres_schema: str
    lease: float
    advertise: str | None
    store_timeout: float
