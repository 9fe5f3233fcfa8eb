"""Server-sent events: the parts of a page that have changed, as long as somebody looks at it."""

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final, NamedTuple, TypeVar

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent

from gearflow.errors import GearflowError
from gearflow.web.guard import Refused

logger = logging.getLogger(__name__)

T = TypeVar("T")

PING: Final = 15
"""Seconds of silence after which a comment is sent, so that proxies keep the connection."""

_GRACE: Final = 1.0
"""Seconds that a stream has to end when the program stops."""

_NOT_FOUND: Final = 404
"""The status of a page about something that no server has now."""

MOST_STREAMS: Final = 200
"""Open streams. Each renders its page every few seconds."""


class LiveParts(NamedTuple):
    """The parts of a page that follow the servers."""

    contents: Mapping[str, str]
    """By name."""

    again: float | None = None
    """Seconds after which they are rendered again. None: after the time that the page has."""


class LiveStreams:
    """The streams of events that are open."""

    def __init__(self) -> None:
        self._open = 0

    def response(self, parts: Callable[[], Awaitable[LiveParts]], every: float) -> EventSourceResponse:
        """Send the parts of a page now and when they change.

        Args:
            parts: Renders the parts. It raises ``Refused`` if the visitor may not see the page any more.
            every: Seconds between two looks, unless the parts say another time.

        Raises:
            Refused: There are too many streams. The page then works as it does without scripts.
        """
        if self._open >= MOST_STREAMS:
            raise Refused(503, "Too many pages follow the servers now.", {"retry-after": "30"})
        ending = anyio.Event()
        return EventSourceResponse(
            self._events(parts, every, ending),
            ping=PING,
            shutdown_event=ending,
            shutdown_grace_period=_GRACE,
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _events(
        self, parts: Callable[[], Awaitable[LiveParts]], every: float, ending: anyio.Event
    ) -> AsyncIterator[ServerSentEvent]:
        self._open += 1
        try:
            sent: dict[str, str] = {}
            while not ending.is_set():
                try:
                    found = await _unless(ending, parts)
                    if found is None:
                        return
                    rendered, again = found
                except (Refused, GearflowError, TimeoutError) as error:
                    if isinstance(error, Refused) and error.status != _NOT_FOUND:
                        yield ServerSentEvent(json.dumps(str(error)), event="gone")
                        return
                    # A server is away, and may come back with its functions and jobs.
                    yield ServerSentEvent(json.dumps(str(error)), event="fault")
                    sent = {}  # so that the browser hears when it is back, even if nothing has changed
                    await _pause(every, ending)
                    continue
                except Exception:
                    logger.exception("the dashboard failed to follow a page")
                    yield ServerSentEvent(json.dumps("The dashboard has failed."), event="gone")
                    return
                changed = {name: html for name, html in rendered.items() if sent.get(name) != html}
                if changed:
                    yield ServerSentEvent(json.dumps(changed), event="parts")
                sent = dict(rendered)
                await _pause(every if again is None else again, ending)
        finally:
            self._open -= 1


async def _pause(seconds: float, ending: anyio.Event) -> None:
    """Wait, but no longer than the program runs."""
    with anyio.move_on_after(seconds):
        await ending.wait()


async def _unless(ending: anyio.Event, ask: Callable[[], Awaitable[T]]) -> T | None:
    """The answer to a question. None if the program stops before there is one."""
    answers: list[T] = []
    failures: list[Exception] = []

    async def run() -> None:
        try:
            answers.append(await ask())
        except Exception as error:  # noqa: BLE001  (a group of tasks would wrap it)
            failures.append(error)
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await ending.wait()
        tasks.cancel_scope.cancel()
    if failures:
        raise failures[0]
    return answers[0] if answers else None
