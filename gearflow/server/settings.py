"""What a job server can be told."""

from typing import Annotated, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from gearflow.protocol.constants import DEFAULT_PORT, MAX_BODY


class ServerSettings(BaseModel):
    """Settings of a ``JobServer``: a frozen value, validated once."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """The address to listen on. There is no authentication, so think before you open it to a network."""

    port: Annotated[int, Field(ge=0, le=65535)] = DEFAULT_PORT
    """The TCP port; 0 takes a free one, which ``JobServer.port`` then tells."""

    backlog: Annotated[int, Field(ge=1)] = 1024
    """Connections the kernel holds until they are accepted. gearmand's 32 makes bursts wait for seconds."""

    max_body: Annotated[int, Field(ge=1, le=MAX_BODY)] = 1 << 30
    """Bytes in the body of a packet; a connection that announces more is closed."""


class ServerOptions(TypedDict, total=False):
    """The fields of ``ServerSettings`` as keywords of ``JobServer``."""

    host: str
    port: int
    backlog: int
    max_body: int
