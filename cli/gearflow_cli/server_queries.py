"""Queries to several servers: to all of them, or to the first that knows a job."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from gearflow_cli.errors import tell
from gearflow_cli.text import printable

if TYPE_CHECKING:
    from gearflow.client import Client, Timeouts
    from gearflow.errors import GearflowError

T = TypeVar("T")

TIMEOUT: Final = 5.0
"""Seconds that a server has for an answer."""

Ask: TypeAlias = "Callable[[Client, str], Awaitable[T]]"


def addresses_of(servers: Sequence[str] | None) -> list[str]:
    """The servers that a command uses."""
    from gearflow.client import default_servers

    return list(servers or ()) or [str(address) for address in default_servers()]


@dataclass(frozen=True, slots=True)
class Answers(Generic[T]):
    """The answers of servers, and the errors of the others, by address."""

    given: dict[str, T]
    errors: "dict[str, GearflowError]"

    def require_one(self) -> None:
        """Report the errors. Raises the first one if no server answered."""
        if not self.given:
            self.require_all()
        self._tell(self.errors)

    def require_all(self) -> None:
        """Report the errors. Raises the first one, if there is one."""
        if self.errors:
            first, *others = self.errors
            self._tell(others)
            raise self.errors[first]

    def tell_errors(self) -> None:
        """Report the errors."""
        self._tell(self.errors)

    def _tell(self, addresses: Sequence[str] | dict[str, "GearflowError"]) -> None:
        for address in addresses:
            tell(printable(f"{address}: {self.errors[address]}"))


def each(
    addresses: Sequence[str], ask: "Ask[T]", timeout: float | None = None, *, once: bool = False
) -> Answers[T]:
    """Query every server, one after another.

    Args:
        addresses: The servers.
        ask: Queries one of them.
        timeout: Seconds for which a server may be silent. By default as a client has it.
        once: Query one server of those that share a database.
    """
    import anyio

    from gearflow.client import Timeouts

    limits = Timeouts() if timeout is None else Timeouts(answer=timeout, heartbeat=timeout)
    return anyio.run(_each, addresses, ask, limits, once)


def first(addresses: Sequence[str], ask: "Ask[T]") -> T:
    """Query servers about a job until one knows it.

    Raises:
        UnknownJob: No server knows it.
        GearflowError: No server that answers knows it. This is the error of another server.
    """
    import anyio

    return anyio.run(_first, addresses, ask)


async def _each(addresses: Sequence[str], ask: "Ask[T]", limits: "Timeouts", once: bool) -> Answers[T]:
    from gearflow.client import Client
    from gearflow.errors import GearflowError

    answers: Answers[T] = Answers({}, {})
    asked: set[str] = set()  # groups
    async with Client(addresses, timeouts=limits, discover=False) as client:
        for address in addresses:
            try:
                group = (await client.features(address)).group if once else ""
                if group in asked:
                    continue
                answers.given[address] = await ask(client, address)
                asked |= {group} - {""}
            except GearflowError as error:
                answers.errors[address] = error
    return answers


async def _first(addresses: Sequence[str], ask: "Ask[T]") -> T:
    from gearflow.client import Client
    from gearflow.errors import GearflowError, UnknownJob

    errors: list[GearflowError] = []
    asked: set[str] = set()  # groups, of which each server knows all jobs
    async with Client(addresses, discover=False) as client:
        for address in addresses:
            group = ""
            try:
                group = (await client.features(address)).group
                if group in asked:
                    continue
                return await ask(client, address)
            except GearflowError as error:
                errors.append(error)
                if group and isinstance(error, UnknownJob):
                    asked.add(group)
    raise min(errors, key=_insignificance)


def _insignificance(error: "GearflowError") -> int:
    """Order errors. A server that did not answer may have the job, and one that keeps no jobs has not."""
    from gearflow.errors import UnknownJob, UnsupportedByServer

    return 1 if isinstance(error, UnknownJob) else 2 if isinstance(error, UnsupportedByServer) else 0
