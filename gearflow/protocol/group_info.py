"""The reserved function ``gearflow:group``: the servers that share a database, and the state of the database.

Durations are seconds, times are Unix time. See ``gearflow.protocol.server_calls``.
"""

from typing import Final

from gearflow.protocol.messages import Answer, Count, Message, Moment, Span

GROUP: Final = b"gearflow:group"


class GroupRequest(Message):
    """``gearflow:group``: show the group of the server. It has no keys. Answered with ``GroupInfo``."""


class GroupServer(Answer):
    """A server of a group."""

    address: str
    """How clients and workers reach it."""

    server: str = ""
    """The name of this run of it."""

    version: str = ""
    """The version of the server, such as ``gearflow-0.1.0``."""

    beat: Span = 0
    """How long ago it last showed that it is alive."""

    lots: Count = 0
    """The number of lots that it owns. The jobs of a lot belong to its owner."""

    jobs: Count = 0
    """About how many jobs it owns."""


class Standby(Answer):
    """A copy of the database."""

    name: str
    """The name of the standby, as it has given it to the primary."""

    state: str = ""
    """The state of the replication, as ``pg_stat_replication`` has it: ``streaming`` if all is well."""

    sync: str = ""
    """Whether commits wait for it: ``sync`` or ``quorum`` if they do, ``async`` or ``potential`` if not."""

    lag: Span | None = None
    """How far it is behind, if the primary knows it."""


class GroupInfo(Answer):
    """The servers that share a database, and the state of the database."""

    group: str
    """The name of the group."""

    servers: tuple[GroupServer, ...]
    """The servers."""

    jobs: Count = 0
    """About how many jobs have not ended."""

    dead_rows: Count = 0
    """About how many rows of the tables are dead and take up space until a vacuum removes them."""

    last_vacuum: Moment | None = None
    """When the table of jobs was last vacuumed."""

    oldest_snapshot: Span | None = None
    """How long the oldest transaction of the database has lasted. A vacuum removes no row that died later."""

    standbys: tuple[Standby, ...] = ()
    """The standbys of the primary, as far as the server may see them."""
