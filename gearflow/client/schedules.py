"""Schedules of gearflow's own server: put them, look at them, and have their jobs made.

A schedule is on one server. If a client has several servers, that is the one that the schedule's name hashes
to, as with the uniques of servers that share the load. Servers that share a database count as one.
"""

import base64
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from gearflow.client.config import ServerAddress
from gearflow.client.job import JobHandle
from gearflow.client.pool import rendezvous_order
from gearflow.client.requests import read_answer
from gearflow.client.submission import JobRequest, SubmitOptions
from gearflow.errors import NoServer, UnknownJob, UnknownSchedule
from gearflow.protocol.schedules import (
    MAX_PAYLOAD,
    SCHEDULE,
    SCHEDULES,
    ScheduleChanges,
    ScheduledJobs,
    ScheduleInfo,
    ScheduleRequest,
    Schedules,
    ScheduleSpec,
    SchedulesRequest,
    ScheduleWhen,
)
from gearflow.schedules import Schedule
from gearflow.tracing import current_trace

if TYPE_CHECKING:
    from gearflow.client.client import Client
    from gearflow.client.sync_client import SyncClient

Infos: TypeAlias = list[ScheduleInfo]

M = TypeVar("M", bound="ScheduleChanges | ScheduledJobs | ScheduleInfo | Schedules")

_TRACED: Final = ("put", "apply", "trigger", "backfill")
"""What makes jobs, now or later."""

_PAGE: Final = 500
"""Schedules in one answer or one request."""

_IGNORED: Final = {
    "envelope",
    "resubmit",
    "retries",
    "timeout",
    "keep",
    "expires",
    "lag",
    "limited",
    "keys",
    "group",
}
"""Options of a call that a schedule has, or that do not matter to it."""


class Schedulable(Protocol):
    """The part of a task that a schedule is made of."""

    @property
    def name(self) -> str:
        """The name of its function on servers."""
        ...

    def prepare_background(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> JobRequest:
        """A background call, ready to be sent."""
        ...


def schedule_of(
    name: str, task: Schedulable | str, schedule: Schedule, args: Mapping[str, Any] | None = None
) -> ScheduleSpec:
    """A schedule as a server stores it. See ``ClientSchedules.put``."""
    given = {**schedule.args, **(args or {})}
    if isinstance(task, str):
        request = JobRequest(task, json.dumps(given, ensure_ascii=False, allow_nan=False).encode())
    else:
        request = task.prepare_background((), given)
    options = request.options or SubmitOptions()
    for option in fields(options):
        if option.name not in _IGNORED and getattr(options, option.name) != option.default:
            raise ValueError(
                f"the schedule {name!r}: {option.name}= is not for jobs that a server makes; leave it out"
            )
    if len(request.workload) > MAX_PAYLOAD:
        raise ValueError(
            f"the schedule {name!r}: its payload has {len(request.workload)} bytes, and {MAX_PAYLOAD} is the "
            "most; store the data elsewhere and pass its name"
        )
    payload, is_text = _text(request.workload)
    return ScheduleSpec(
        name=name,
        function=request.function,
        when=ScheduleWhen(**schedule.to_json()),
        payload=payload,
        encoding="utf-8" if is_text else "base64",
        priority=request.priority,
        expires=options.expires,
        keep=options.keep,
        retries=options.retries,
        timeout=options.timeout,
        keys=dict(options.keys) or None,
        group=options.group,
    )


def _text(payload: bytes) -> tuple[str, bool]:
    try:
        return payload.decode(), True
    except UnicodeDecodeError:
        return base64.b64encode(payload).decode(), False


@dataclass(frozen=True, slots=True)
class ServerChanges:
    """What applying schedules changed on one server.

    Attributes:
        server: The server.
        declared: The schedules that it was given, by name.
        before: The schedules of the origin that were there, by name.
        changes: The names of those that changed.
        elsewhere: Schedules of the origin that belong to another of the servers, because these have changed.
            If they are not pruned, their jobs are made twice.
    """

    server: ServerAddress
    declared: dict[str, ScheduleSpec]
    before: dict[str, ScheduleInfo]
    changes: ScheduleChanges
    elsewhere: tuple[str, ...] = ()


class ClientSchedules:
    """Schedules whose jobs gearflow's server makes. ``Client.schedules`` is one.

    A name may be the full name of a schedule. If only one schedule's name ends in ``.name``, that is enough.

    All methods raise:
        UnknownSchedule: There is no schedule of that name, or several have it as the last part.
        UnsupportedByServer: The server is not gearflow's own. Nothing was sent.
        ServerError: The server refuses. The message says why.
        NoServer, ConnectionLost: As for ``Client.call_reserved``.
    """

    def __init__(self, client: "Client") -> None:
        self._client = client

    async def put(
        self, name: str, task: Schedulable | str, schedule: Schedule, *, args: Mapping[str, Any] | None = None
    ) -> None:
        """Make a schedule, or replace the one with that name. Nothing happens if it is the same.

        Args:
            name: The name of the schedule. A name such as ``report-42`` cannot be that of a task's schedule.
            task: The task, or the name of a function. The options of the task apply to its jobs, such as
                ``report.options(priority="low")``.
            schedule: A ``Cron`` or an ``Every``.
            args: The arguments of each run by name. They come in addition to those of the schedule. For a
                function's name they become the keys of a JSON object.

        Raises:
            PayloadInvalid, TypeError: The arguments do not make a call of the task.
            ValueError: An option of the task is not for jobs that a server makes.
        """
        spec = schedule_of(name, task, schedule, args)
        home = _order(await _places(self._client), name)[0]
        request = ScheduleRequest(do="put", schedules=(spec,))
        await change_schedule(self._client, request, ScheduleChanges, home.server)

    async def list(self, *, function: str | None = None, origin: str | None = None) -> Infos:
        """Return the schedules of all servers, sorted by name.

        Args:
            function: The function of their jobs. None means all.
            origin: What made them: ``"client"`` for those of ``put``. None means all.
        """
        found = [
            info
            for place in await _places(self._client)
            async for info in schedules_on(self._client, place.server, function=function, origin=origin)
        ]
        return sorted(found, key=lambda info: info.schedule.name)

    async def get(self, name: str, *, times: int = 1) -> ScheduleInfo:
        """Return a schedule with its next ``times`` (up to 100)."""
        return (await self._find(name, times))[1]

    async def pause(self, name: str) -> ScheduleInfo:
        """Make no more jobs of a schedule. The ticks are counted as skipped."""
        return await self._act(name, "pause", ScheduleInfo)

    async def resume(self, name: str) -> ScheduleInfo:
        """Make jobs of a paused schedule again, from now on."""
        return await self._act(name, "resume", ScheduleInfo)

    async def trigger(self, name: str) -> JobHandle:
        """Make a job of a schedule now, and return its handle."""
        server, info = await self._find(name)
        request = ScheduleRequest(do="trigger", name=info.schedule.name)
        return JobHandle((await change_schedule(self._client, request, ScheduledJobs, server)).handle, server)

    async def backfill(self, name: str, start: datetime, end: datetime | None = None) -> ScheduledJobs:
        """Make the jobs of the ticks from ``start`` to ``end``, and return their number.

        A tick whose job was made and has not ended is not repeated. It counts as ``joined``.

        Args:
            name: The name of the schedule.
            start: The first time, with a time zone.
            end: The last time, with a time zone. None means now.

        Raises:
            ValueError: A time has no time zone.
        """
        for moment in (start, end):
            if moment is not None and moment.utcoffset() is None:
                raise ValueError(f"{moment!r} has no time zone; write datetime(..., tzinfo=UTC)")
        server, info = await self._find(name)
        request = ScheduleRequest(
            do="backfill",
            name=info.schedule.name,
            since=start.timestamp(),
            until=None if end is None else end.timestamp(),
        )
        return await change_schedule(self._client, request, ScheduledJobs, server)

    async def delete(self, name: str) -> None:
        """Delete a schedule. Jobs that it has made stay."""
        await self._act(name, "delete", ScheduleChanges)

    async def _act(self, name: str, do: Any, answer: type[M]) -> M:
        server, info = await self._find(name)
        return await change_schedule(
            self._client, ScheduleRequest(do=do, name=info.schedule.name), answer, server
        )

    async def _find(self, name: str, times: int = 1) -> tuple[ServerAddress, ScheduleInfo]:
        """A schedule and its server. The server that the name hashes to is asked first."""
        places = _order(await _places(self._client), name)
        if (found := await self._at_first(places, name, times)) is not None:
            return found
        infos = [info for place in places async for info in schedules_on(self._client, place.server)]
        names = sorted(info.schedule.name for info in infos)
        full = [each for each in names if each.endswith(f".{name}")]
        found = await self._at_first(places, full[0], times) if len(full) == 1 else None
        if found is None:
            raise UnknownSchedule(_not_found(name, full, names))
        return found

    async def _at_first(
        self, places: "Sequence[_Place]", name: str, times: int
    ) -> tuple[ServerAddress, ScheduleInfo] | None:
        for place in places:
            with suppress(UnknownJob):  # how a server says that it has no such schedule
                answer = await show_schedules(
                    self._client, SchedulesRequest(name=name, times=times), place.server
                )
                return place.server, answer.schedules[0]
        return None


async def apply_schedules(
    client: "Client",
    specs: Iterable[ScheduleSpec],
    *,
    origin: str,
    prune: bool = False,
    dry_run: bool = False,
) -> list[ServerChanges]:
    """Put schedules of an origin, on the servers that their names hash to. For ``gearflow cron apply``.

    Args:
        client: The client that makes the calls.
        specs: The schedules.
        origin: The origin. A schedule of another origin is not replaced.
        prune: Whether to delete schedules of the origin that are not in ``specs``.
        dry_run: Whether to change nothing.
    """
    places = await _places(client)
    shares: dict[_Place, list[ScheduleSpec]] = {place: [] for place in places}
    for spec in specs:
        shares[_order(places, spec.name)[0]].append(spec)
    homes = {spec.name: place for place, share in shares.items() for spec in share}
    done: list[ServerChanges] = []
    for place, share in shares.items():
        before = {
            info.schedule.name: info async for info in schedules_on(client, place.server, origin=origin)
        }
        changes = await _apply(client, place.server, share, origin, prune=prune, dry_run=dry_run)
        elsewhere = tuple(name for name in before if homes.get(name, place) != place)
        done.append(
            ServerChanges(place.server, {spec.name: spec for spec in share}, before, changes, elsewhere)
        )
    return done


async def _apply(
    client: "Client",
    server: ServerAddress,
    share: Sequence[ScheduleSpec],
    origin: str,
    *,
    prune: bool,
    dry_run: bool,
) -> ScheduleChanges:
    names = {spec.name for spec in share}
    answers: list[ScheduleChanges] = []
    for start in range(0, max(len(share), 1), _PAGE):
        part = tuple(share[start : start + _PAGE])
        prunes = prune and start + _PAGE >= len(share)
        request = ScheduleRequest(
            do="apply",
            schedules=part,
            origin=origin,
            prune=prunes,
            others=tuple(sorted(names - {spec.name for spec in part})) if prunes else (),
            dry_run=dry_run,
        )
        answers.append(await change_schedule(client, request, ScheduleChanges, server))
    return ScheduleChanges(
        created=tuple(name for answer in answers for name in answer.created),
        changed=tuple(name for answer in answers for name in answer.changed),
        unchanged=tuple(name for answer in answers for name in answer.unchanged),
        removed=tuple(name for answer in answers for name in answer.removed),
    )


async def change_schedule(
    client: "Client", request: ScheduleRequest, answer: type[M], server: ServerAddress | str
) -> M:
    """Change a schedule of one server. Jobs that this makes are part of the trace that is current."""
    if request.do in _TRACED and (trace := current_trace()) is not None:
        request = request.model_copy(update={"trace": trace})
    data = await client.call_reserved(SCHEDULE, request, server=server)
    return read_answer(answer, data, SCHEDULE.decode(), server)


async def show_schedules(
    client: "Client", request: SchedulesRequest, server: ServerAddress | str
) -> Schedules:
    """One answer of a server to a request for its schedules."""
    data = await client.call_reserved(SCHEDULES, request, server=server)
    return read_answer(Schedules, data, SCHEDULES.decode(), server)


async def schedules_on(
    client: "Client",
    server: ServerAddress | str,
    *,
    function: str | None = None,
    origin: str | None = None,
) -> AsyncIterator[ScheduleInfo]:
    """The schedules of one server, sorted by name. See ``ClientSchedules.list``."""
    after: str | None = None
    while True:
        request = SchedulesRequest(function=function, origin=origin, after=after, limit=_PAGE)
        page = (await show_schedules(client, request, server)).schedules
        for info in page:
            yield info
        if len(page) < _PAGE:
            return
        after = page[-1].schedule.name


class _Place(NamedTuple):
    """A server, or a group of which one server answers for all. Names hash to its text."""

    text: str
    server: ServerAddress

    def __str__(self) -> str:
        return self.text


async def _places(client: "Client") -> list[_Place]:
    """The servers, and the groups of servers.

    Raises:
        NoServer: A server cannot be reached, and the others are not all in one group. It is then not known
            where a schedule belongs.
    """
    pool = client.pool
    if len(pool.addresses) == 1:
        return [_Place(str(server), server) for server in pool.addresses]
    absent: dict[ServerAddress, NoServer] = {}
    for server in pool.addresses:
        try:
            await pool.connection_to(server)
        except NoServer as error:
            absent[server] = error
    places: dict[str, _Place] = {}
    for server in pool.addresses:
        if server not in absent:
            text = pool.group_of(server) or str(server)
            places.setdefault(text, _Place(text, server))
    is_group = len(places) == 1 and not any(place.text == str(place.server) for place in places.values())
    if absent and not is_group:
        raise next(iter(absent.values()))
    return list(places.values())


def _order(places: Iterable[_Place], name: str) -> list[_Place]:
    return rendezvous_order(places, b"schedule\0" + name.encode("utf-8", "surrogateescape"))


def _not_found(name: str, found: Sequence[str], names: Sequence[str]) -> str:
    if found:
        return f"{name!r} may be {' or '.join(map(repr, found[:5]))}; give the full name"
    bare = {full.rpartition(".")[2]: full for full in names}
    near = [
        *get_close_matches(name, names, n=3),
        *(bare[each] for each in get_close_matches(name, bare, n=3)),
    ]
    hint = f"; did you mean {' or '.join(map(repr, dict.fromkeys(near)))}?" if near else ""
    return f"no schedule is named {name!r}{hint}"


class SyncSchedules:
    """The blocking form of ``ClientSchedules``. ``SyncClient.schedules`` is one."""

    def __init__(self, client: "SyncClient") -> None:
        self._client = client

    def put(
        self, name: str, task: Schedulable | str, schedule: Schedule, *, args: Mapping[str, Any] | None = None
    ) -> None:
        """Make a schedule, or replace the one with that name. See ``ClientSchedules.put``."""
        self._client.run(lambda client: client.schedules.put(name, task, schedule, args=args))

    def list(self, *, function: str | None = None, origin: str | None = None) -> Infos:
        """Return the schedules of all servers. See ``ClientSchedules.list``."""
        return self._client.run(lambda client: client.schedules.list(function=function, origin=origin))

    def get(self, name: str, *, times: int = 1) -> ScheduleInfo:
        """Return a schedule with its next times. See ``ClientSchedules.get``."""
        return self._client.run(lambda client: client.schedules.get(name, times=times))

    def pause(self, name: str) -> ScheduleInfo:
        """Make no more jobs of a schedule. See ``ClientSchedules.pause``."""
        return self._client.run(lambda client: client.schedules.pause(name))

    def resume(self, name: str) -> ScheduleInfo:
        """Make jobs of a paused schedule again. See ``ClientSchedules.resume``."""
        return self._client.run(lambda client: client.schedules.resume(name))

    def trigger(self, name: str) -> JobHandle:
        """Make a job of a schedule now. See ``ClientSchedules.trigger``."""
        return self._client.run(lambda client: client.schedules.trigger(name))

    def backfill(self, name: str, start: datetime, end: datetime | None = None) -> ScheduledJobs:
        """Make the jobs of past ticks. See ``ClientSchedules.backfill``."""
        return self._client.run(lambda client: client.schedules.backfill(name, start, end))

    def delete(self, name: str) -> None:
        """Delete a schedule. See ``ClientSchedules.delete``."""
        self._client.run(lambda client: client.schedules.delete(name))
