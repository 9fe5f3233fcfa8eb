"""Reads the parts of a job, in order and each of them once, wherever the server and the connection go.

A reader counts the parts that it takes, because nothing is numbered on the wire. Marks from the server say
where the next part belongs. If a mark is ahead of the count, parts are gone (``StreamGap``). If the job runs
again from its start, the count is 0 again (``StreamRestarted``). Both are raised where they happen, and the
next ``take`` goes on.

After a lost connection the reader asks for the parts after those that it has taken. A server that has stopped
without a chance to write everything may have fewer parts than it has sent. The parts that come again are
skipped.
"""

from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Final, Literal, NamedTuple

from gearflow.client.connection import Connection
from gearflow.client.following import Following
from gearflow.client.job import ClientJob, JobName
from gearflow.client.part_feed import Mark, OwnFeed, PartFeed
from gearflow.client.pool import Pool
from gearflow.client.requests import NotSent, ReservedJob
from gearflow.client.submission import Lag
from gearflow.errors import GearflowError, StreamGap, StreamRestarted, UnsupportedByServer
from gearflow.protocol.server_events import STREAM

_NO_RUN: Final = 0
"""The run of a job that was submitted again: none of those that the server counts."""

_RAN_AGAIN: Final = "its job runs again"
_SUBMITTED_AGAIN: Final = "its server was lost, and the job was submitted again"


class Arrivals(NamedTuple):
    """Parts in a row. Without parts, the stream has ended.

    Attributes:
        start: The position before the first of them.
        parts: The parts.
    """

    start: int
    parts: Sequence[bytes]


class StreamReader:
    """Reads the parts of one job. Owns state, and a call on the job's server. One task at a time uses it.

    Args:
        pool: The servers, for a job by name.
        job: The job, attached or by name.
        after: The position after which it reads.
        lag: Whether the job waits for it, or it skips parts.
    """

    def __init__(
        self,
        pool: Pool | None,
        job: ClientJob | JobName,
        after: int | Literal["latest"] = 0,
        lag: Lag = "wait",
    ) -> None:
        self._following = Following(pool, job, STREAM)
        self._lag: Lag = lag
        self._is_latest = after == "latest"  # and no mark has come
        self._asked: int | Literal["latest"] = 0
        self._position = 0 if after == "latest" else after  # of the last part that was taken
        self._run: int | None = None  # of that part
        self._place = ""  # the handle of the job that was asked for last, if it is attached
        self._source: ReservedJob | None = None  # brings the parts: the call, or the job itself
        self._is_first = True  # no mark has come from this source
        self._repeated = 0  # parts that come again
        self._gap: StreamGap | None = None  # to be raised next
        self._is_over = False

    async def take(self) -> Arrivals:
        """Wait for parts, and return all that are there.

        Raises:
            StreamGap, StreamRestarted: See above.
            JobFailed: The job has failed, and all parts were returned.
            ConnectionLost: The connection of an attached job is lost.
            UnknownJob: The server knows no such job, or keeps no parts of it.
            NoServer: The server cannot be reached for the first time.
            UnsupportedByServer: The server keeps no parts of background jobs.
        """
        try:
            parts = await self._take()
        except (StreamGap, StreamRestarted):
            raise
        except (GearflowError, CancelledError):
            self.close()
            raise
        start = self._position
        self._position += len(parts)
        return Arrivals(start, parts)

    def acknowledge(self, position: int) -> None:
        """The caller has all parts up to that position, so the server may send more."""
        source = self._source
        if source is not None and not source.done and isinstance(feed := source.feed, PartFeed):
            connection = source.owner
            assert isinstance(connection, Connection)  # all jobs of a client have one
            feed.acknowledge(connection, source.raw_handle, position)

    def close(self) -> None:
        """Read no more. The job goes on."""
        self._is_over = True
        self._leave()

    async def _take(self) -> Sequence[bytes]:
        while not self._is_over:  # ``close`` also ends a wait
            if self._gap is not None:
                gap, self._gap = self._gap, None
                raise gap
            self._following.check()
            source = self._source or await self._ask()
            feed = source.feed
            if not isinstance(feed, PartFeed):  # the job was submitted again, to a server of another kind
                self._source = None
                continue
            if parts := feed.take():
                if not (parts := self._unseen(parts)):
                    continue
                return parts
            if (mark := feed.take_mark()) is not None:
                self._handle_mark(mark)
            elif not source.done:
                await source.wait_for_news()
            elif (rest := await self._end(source)) is not None:
                return rest
        return ()

    async def _end(self, source: ReservedJob) -> Sequence[bytes] | None:
        """The last parts after the end of the source. None if it is only that of a connection."""
        try:
            result = source.outcome()
        except GearflowError as error:
            self._source = None
            await self._following.lost(error)
            return None
        self.close()
        return [result] if result else ()  # another kind of worker may end its job with a value

    async def _ask(self) -> ReservedJob:
        while True:
            try:
                connection, handle = await self._following.connect()
                return await self._ask_on(connection, handle)
            except (GearflowError, NotSent) as error:
                await self._following.lost(error)

    async def _ask_on(self, connection: Connection, handle: str) -> ReservedJob:
        job = self._following.attached
        if job is not None and self._place not in ("", handle):
            self._run = _NO_RUN
        self._place = handle
        self._asked = self._position if self._run != _NO_RUN else 0
        if self._is_latest:
            self._asked = "latest"
        self._is_first = True
        self._repeated = 0
        if job is None or connection.features.gearflow:
            from gearflow.protocol.server_calls import StreamRequest

            request = StreamRequest(handle=handle, after=self._asked, lag=self._lag)
            self._source = await self._following.ask(connection, request, PartFeed())
        else:
            if not (isinstance(job, ReservedJob) and isinstance(job.feed, OwnFeed)):
                raise UnsupportedByServer(
                    f"{connection.server} brings parts only to a job that was submitted to be read as a "
                    "stream, and only gearflow's own server does more: run 'gearflow server' there"
                )
            job.feed.begin()
            self._source = job
        return self._source

    def _leave(self) -> None:
        source, self._source = self._source, None
        if source is None:
            return
        if isinstance(source.feed, OwnFeed):
            source.feed.end()
        else:
            source.cancel()

    def _unseen(self, parts: list[bytes]) -> list[bytes]:
        """The parts that were not taken before."""
        if not self._repeated:
            return parts
        known = min(self._repeated, len(parts))
        self._repeated -= known
        self.acknowledge(self._position - self._repeated)
        return parts[known:]

    def _handle_mark(self, mark: Mark) -> None:
        """The server says where the next part belongs. Raises StreamGap or StreamRestarted."""
        is_first, self._is_first = self._is_first, False
        known, self._run = self._run, mark.run
        if self._asked == "latest" and is_first:
            self._is_latest = False
            self._position = mark.position
        elif known != mark.run and (known is not None or (mark.run > 1 and mark.position < self._position)):
            self._restart(mark, known, is_first=is_first)
        elif mark.position > self._position:
            last, self._position = self._position, mark.position
            raise StreamGap(mark.position + 1, last)
        else:
            self._repeated = self._position - mark.position

    def _restart(self, mark: Mark, known: int | None, *, is_first: bool) -> None:
        """The parts of another run come. Raises StreamRestarted if parts of the last one were taken."""
        had, self._position = self._position, 0
        self._repeated = 0
        if mark.position:
            if is_first and self._asked:
                self._leave()  # and ask for all of this run
            else:
                self._gap = StreamGap(mark.position + 1, 0)
                self._position = mark.position
        if had:
            was_lost = known == _NO_RUN or (
                self._source is not None and isinstance(self._source.feed, OwnFeed)
            )
            raise StreamRestarted(mark.run, _SUBMITTED_AGAIN if was_lost else _RAN_AGAIN)
