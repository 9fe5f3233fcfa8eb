"""``client.limits``: the limits of gearflow's servers, changed without a deployment."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from gearflow.client.config import ServerAddress
from gearflow.client.operate import change_limits, limits
from gearflow.protocol.limits import LimitList, LimitOverride, LimitRequest, Over, read_limit

if TYPE_CHECKING:
    from gearflow.client.client import Client

T = TypeVar("T")

Address: TypeAlias = ServerAddress | str


class ServerLimits:
    """The limits of gearflow's servers, as ``client.limits`` has them.

    A change is made at all servers of the client, and once for those that share a database. It is stored, and
    holds until you change it again. Values of code stay, and hold again after ``unset``.

    All methods raise:
        ServerError: There is no limit of that name, or the server refuses.
        UnsupportedByServer, NoServer, ConnectionLost: As for ``Client.call_reserved``.
    """

    def __init__(self, client: "Client") -> None:
        self._client = client

    async def list(
        self, name: str | None = None, *, function: str | None = None, server: Address | None = None
    ) -> LimitList:
        """Return the limits with what they count now, and the functions that use them.

        Args:
            name: Selects the limit of this name.
            function: Selects the limits of this function.
            server: The server to ask. By default the one that a submission would go to.
        """
        return await limits(self._client, name, function=function, server=server)

    async def set(
        self,
        name: str,
        limit: str | int,
        *,
        burst: int | None = None,
        over: Over | None = None,
        server: Address | None = None,
    ) -> None:
        """Set a limit to ``20`` jobs at once, or to a rate such as ``"50/m"`` or ``"100/30s"``.

        Args:
            name: The limit.
            limit: The value, which must be of the kind that the limit has.
            burst: For a rate. By default as it is declared.
            over: For jobs at once. By default as it is declared.
            server: The only server to change.

        Raises:
            ValueError: The value is no limit.
        """
        count, per = read_limit(str(limit))
        value = LimitOverride(count=count, per=per, burst=burst, over=over)
        await self._change(LimitRequest(action="set", name=name, value=value), server)

    async def unset(self, name: str, *, server: Address | None = None) -> None:
        """Let the declared value of a limit hold again."""
        await self._act("unset", name, server)

    async def pause(self, name: str, *, server: Address | None = None) -> None:
        """Start no job that needs the limit. Running jobs end."""
        await self._act("pause", name, server)

    async def resume(self, name: str, *, server: Address | None = None) -> None:
        """Start the jobs of a paused limit again."""
        await self._act("resume", name, server)

    async def _act(
        self, action: Literal["unset", "pause", "resume"], name: str, server: Address | None
    ) -> None:
        await self._change(LimitRequest(action=action, name=name), server)

    async def _change(self, request: LimitRequest, server: Address | None) -> None:
        servers = self._client.pool.one_of_each if server is None else (server,)
        for each in servers:
            await change_limits(self._client, request, server=each)


class SyncServerLimits:
    """The same as ``ServerLimits`` for code without an event loop."""

    def __init__(
        self, limits: ServerLimits, run: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]
    ) -> None:
        self._limits = limits
        self._run = run

    def list(
        self, name: str | None = None, *, function: str | None = None, server: Address | None = None
    ) -> LimitList:
        """Return the limits. See ``ServerLimits.list``."""
        found: LimitList = self._run(partial(self._limits.list, name, function=function, server=server))
        return found

    def set(
        self,
        name: str,
        limit: str | int,
        *,
        burst: int | None = None,
        over: Over | None = None,
        server: Address | None = None,
    ) -> None:
        """Set a limit. See ``ServerLimits.set``."""
        self._run(partial(self._limits.set, name, limit, burst=burst, over=over, server=server))

    def unset(self, name: str, *, server: Address | None = None) -> None:
        """Let the declared value of a limit hold again."""
        self._run(partial(self._limits.unset, name, server=server))

    def pause(self, name: str, *, server: Address | None = None) -> None:
        """Start no job that needs the limit. Running jobs end."""
        self._run(partial(self._limits.pause, name, server=server))

    def resume(self, name: str, *, server: Address | None = None) -> None:
        """Start the jobs of a paused limit again."""
        self._run(partial(self._limits.resume, name, server=server))
