"""Sends the parts of jobs to their readers and to the store, and credit to their workers.

A part is sent at once to the readers that are at the end of its log. The others are served when their callers
take something. See ``parts`` for readers, places and logs.

**Credit.** The parts of an attached job are taken when its slowest reader has taken them. Readers that skip
do not count. Without readers all parts are taken as they come. The worker gets to know how many are taken
(``gearflow:events``), and waits if it is a window ahead. The log keeps everything that is not taken. So the
server stops reading from a worker that is far ahead of that, as those of other libraries may be.

**Kept parts.** Those of a background job whose outcome will be kept go to the store as well, and are sent to
readers, and taken, once they are there. A reader that is too far behind for the log is served from the store.
The store has up to ``keep`` bytes, and all that a reader that waits has still to get. While it has more,
nothing is taken.

**Runs.** When a worker gets a job again of which parts have come, it goes on after them if it can. Else the
log starts again with the next run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from heapq import heappush
from typing import Final, cast

from gearflow.broker.core import Core
from gearflow.broker.job import JobState, QueuedJob
from gearflow.broker.parser import Body, compact
from gearflow.broker.parts import LogReader, PartLog, Resume
from gearflow.broker.session import LARGE, Session
from gearflow.broker.storage import (
    PENDING,
    Answer,
    DamagedEntry,
    JobOutcome,
    JobPart,
    Joined,
    PartsDropped,
    PartsOf,
    Pending,
    StoredParts,
)
from gearflow.broker.turns import LONG, MANY, Steps
from gearflow.broker.watching import Watching
from gearflow.errors import StoreError
from gearflow.protocol.constants import HEADER, RES, WINDOW_BYTES, WINDOW_PARTS, PacketType
from gearflow.protocol.server_events import credit_event

_PARTS_AHEAD: Final = 65_536
"""Parts of a job that are not taken, from which on the server stops reading from its worker."""

_LEAST: Final = 16
"""Bytes that a kept part counts as, if it has fewer."""

_TELL_PARTS: Final = WINDOW_PARTS // 2
_TELL_BYTES: Final = WINDOW_BYTES // 2
"""What more must be taken before the worker gets credit for it."""

_AGAIN: Final = b"the job runs again, and its output begins again"
"""A warning for clients that are sent parts on the handle of the job, and cannot see that a run begins."""

_WORK_DATA: Final = int(PacketType.WORK_DATA)

_RUNNING: Final = JobState.RUNNING


class Streams:
    """Sends parts to readers, and credit to workers. Owns what the logs without readers have in memory."""

    def __init__(self, core: Core, watching: Watching) -> None:
        self._core = core
        self._watching = watching
        self._outgoing = core.outgoing
        self._journal = core.journal
        self._turns = core.turns
        self._handles = core.handles
        self._limits = core.limits
        self.idle: dict[PartLog, None] = {}  # logs without readers that have parts in memory
        self.idle_bytes = 0
        self.ended_logs: dict[int, PartLog] = {}  # by number: logs of jobs that have ended, with places

    def of(self, job: QueuedJob) -> PartLog:
        """The log of a job that has not ended."""
        details = job.ensure_details()
        log = details.log
        if log is None:
            log = details.log = PartLog(job.number, job)
        return log

    def of_ended(self, number: int | None) -> PartLog | None:
        """The log of a job that has ended, while a client has a place in it."""
        return self.ended_logs.get(number) if number is not None else None

    # ------------------------------------------------------------------------------------ what workers do

    def received(self, job: QueuedJob, handle: bytes, body: Body) -> int | None:
        """WORK_DATA of a running job, with its handle. ``LONG`` if that took long."""
        details = job.details
        if details is not None and details.cancelled:
            return None
        log = details.log if details is not None else None
        if log is None:
            log = self.of(job)
        clients = job.clients
        if log.quiets:
            if log.quiets < len(clients):
                self._outgoing.relay(list(log.loud(clients)), _WORK_DATA, body)
        elif clients:
            self._outgoing.relay(clients, _WORK_DATA, body)
        part = body[len(handle) + 1 :]
        if isinstance(part, memoryview):
            part = compact(part) if len(part) >= LARGE else bytes(part)
        if log.readers or log.waiting or job.background or (details is not None and details.watchers):
            self._add(log, job, part)
        else:
            log.add_taken(part)
            self._tell_worker(log)
            if log.size != log.counted:
                self._count(log)
        if log.blocked is not None or len(clients) + len(log.readers) > MANY:
            return LONG
        return None

    def _add(self, log: PartLog, job: QueuedJob, part: Body) -> None:
        """A part has come for which somebody waits, or the store."""
        log.add(part)
        if job.background and self._is_kept(job, log):
            self._keep(log, part)
        else:
            log.available = log.position
            log.stored_bytes = log.came_bytes
            self._spread(log, job, part)
        self._settle(log)

    def _spread(self, log: PartLog, job: QueuedJob | None, part: Body) -> None:
        """The next part is available."""
        before = log.available - 1
        for reader in log.readers:
            if reader.cursor == before:
                self._send(reader, log.available, part)
        if job is not None and job.details is not None and job.details.watchers:
            self._watching.came(job, log.available, part)

    def assigned(self, log: PartLog, job: QueuedJob, worker: Session) -> int:
        """A worker gets the job. How many parts have come, after which it is to go on."""
        if not (log.position or log.began):
            return 0
        if worker.gearflow and job.function.name in worker.resumable and not log.began:
            log.told, log.told_bytes = log.position, log.came_bytes
            return log.position
        if log.keep:
            self._journal.add(PartsDropped(log.number))
            self._journal.add(JobPart(log.number, 0, b"", log.run + 1))
        clients = list(log.loud(job.clients))
        if clients:
            warning = b"%b\0%b" % (self._handles.handle(log.number), _AGAIN)
            self._outgoing.relay(clients, PacketType.WORK_WARNING, warning)
        log.restart()
        self._turns.run(self._announce(log))
        self._count(log)
        return 0

    def _announce(self, log: PartLog) -> Steps:
        """Send all readers what there is for them, be it that another run begins, or the end."""
        readers = deque(log.readers)
        while readers:
            reader = readers.popleft()
            if reader.is_open:
                self._pump(reader)
                yield

    def _block(self, log: PartLog, worker: Session) -> None:
        """The worker is too far ahead: do not read from it for a while."""
        if worker.readers or worker.places:  # what they take would not be read either
            return
        log.blocked = worker
        worker.pending_writes += 1
        worker.blocks_pipeline += 1

    def unblock(self, log: PartLog) -> None:
        """Read from the worker again."""
        worker, log.blocked = log.blocked, None
        if worker is not None:
            worker.pending_writes -= 1
            worker.blocks_pipeline -= 1
            self._turns.resume_later(worker)

    # ----------------------------------------------------------------------------------------- kept parts

    def _is_kept(self, job: QueuedJob, log: PartLog) -> bool:
        """Whether the parts of a background job go to the store."""
        if log.keep:
            return True
        details = job.ensure_details()
        keep = self._core.limits.keep if details.keep is None else details.keep
        if not keep or not self._journal.exists:
            return False
        if not details.stream_keep:
            if log.position == 1:
                self._journal.add(JobPart(log.number, 0, b"", log.run))
            return False
        log.keep = details.stream_keep
        log.first_kept = log.position
        log.unstored = list(range(log.first, log.position))
        return True

    def _keep(self, log: PartLog, part: Body) -> None:
        """Have a part kept."""
        size, position = len(part), log.position
        log.kept_sizes.append(max(size, _LEAST))
        log.kept_size += max(size, _LEAST)
        done = partial(self._kept, log, log.run, position, size)
        if size >= self._journal.large:  # the store has only its position
            heappush(log.unstored, position)
        self._journal.add(JobPart(log.number, position, part, log.run), done)
        ahead = log.came_bytes - log.taken_bytes
        if log.readers or position - log.taken >= _TELL_PARTS or ahead >= _TELL_BYTES:
            self._journal.flush_now = True

    def _kept(self, log: PartLog, run: int, position: int, size: int, error: str | Joined | None) -> None:
        """A part is kept, or could not be. Readers get it either way."""
        if log.run != run or position <= log.available:
            return
        if error is not None:
            heappush(log.unstored, position)
        log.available = position
        log.stored_bytes += size
        if log.readers or log.job is not None:
            self._spread(log, log.job, log.part(position))
        self._settle(log)

    def restored(self, job: QueuedJob, stored: StoredParts) -> None:
        """The store has parts of a job of an earlier server."""
        log = self.of(job)
        log.run = stored.run
        log.began = not stored.last
        details = job.ensure_details()
        log.keep = details.stream_keep if stored.last else 0
        log.position = log.available = log.taken = log.told = stored.last
        log.first, log.first_kept = stored.last + 1, max(stored.first, 1)
        count = stored.last - log.first_kept + 1
        if count > 0:
            size = max(stored.size // count, _LEAST)
            log.kept_sizes.extend([size] * count)
            log.kept_size = size * count

    def not_kept(self, job: QueuedJob) -> None:
        """The store could not take a job that was to become a background job."""
        log = job.details.log if job.details is not None else None
        if log is None:
            return
        if log.keep:
            self._journal.add(PartsDropped(log.number))
            log.keep = log.kept_size = 0
            log.kept_sizes.clear()
        if job.state is JobState.STORING:  # nobody knows its handle
            for place in list(log.places.values()):
                self._leave_place(place, 0)

    # ----------------------------------------------------------------------------------------- clients

    def attach(self, job: QueuedJob, client: Session, waits: bool) -> None:
        """A client is attached that is sent no parts on the handle of the job. The job may wait for it."""
        log = self.of(job)
        log.quiet[client] = log.quiet.get(client, 0) + 1
        log.quiets += 1
        if waits:
            place = log.places.get(client)
            if place is None:
                place = log.places[client] = LogReader(log, client, b"", log.first - 1, True, None)
                client.places[log] = None
                log.add_waiting(place)
                self._count(log)
            place.count += 1

    def detach(self, log: PartLog, client: Session, times: int | None) -> None:
        """A client leaves a job, so many times or for good."""
        quiet = log.quiet.get(client, 0)
        if quiet:
            left = max(quiet - times, 0) if times is not None else 0
            log.quiets -= quiet - left
            if left:
                log.quiet[client] = left
            else:
                del log.quiet[client]
            place = log.places.get(client)
            if place is not None and place.count > left:
                self._leave_place(place, left)

    def leave_ended(self, client: Session, number: int | None) -> bool:
        """A client gives up its place in the log of a job that has ended. False if it has none."""
        log = self.of_ended(number)
        place = log.places.get(client) if log is not None else None
        if place is not None:
            self._leave_place(place, 0)
        return place is not None

    def leave(self, session: Session) -> Steps:
        """The connection is closed."""
        for log in list(session.places):
            place = log.places.get(session)
            if place is not None:
                self._leave_place(place, 0)
            yield
        for reader in list(session.readers.values()):
            self.close(reader)
            yield

    def _leave_place(self, place: LogReader, count: int) -> None:
        place.count = count
        if not count:
            log = place.log
            del log.places[place.session]
            del place.session.places[log]
            self._closed(place)

    # ----------------------------------------------------------------------------------------- readers

    def read(
        self, log: PartLog, session: Session, call: bytes, after: int | None, waits: bool, resume: Resume
    ) -> None:
        """A call begins to read, after a position or at the end. ``resume`` is called when it is through."""
        cursor = log.available if after is None else min(after, log.available)
        reader = session.readers[call] = LogReader(log, session, call, cursor, waits, resume)
        session.has_read = True
        log.readers[reader] = None
        if waits:
            log.add_waiting(reader)
        place = log.places.get(session)
        if place is not None:
            self._leave_place(place, place.count - 1)
        self._count(log)
        self._pump(reader)

    def take(self, reader: LogReader, position: int) -> None:
        """The caller has taken the parts up to a position. One that it was not sent is of an earlier run."""
        if position > reader.cursor:
            return
        sent = reader.sent
        while sent and sent[0][0] <= position:
            reader.outstanding -= sent.popleft()[1]
        self._pump(reader)
        self._settle(reader.log)

    def close(self, reader: LogReader) -> None:
        """The caller does not read any more."""
        del reader.session.readers[reader.call]
        del reader.log.readers[reader]
        self._closed(reader)

    def _closed(self, reader: LogReader) -> None:
        log = reader.log
        reader.is_open = False
        if reader.waits:
            log.remove_waiting()
        if log.is_over and not log.is_read:
            self.ended_logs.pop(log.number, None)
        self._settle(log)

    def _pump(self, reader: LogReader) -> None:
        """Send a reader what there is for it, as far as its window has room."""
        log = reader.log
        while reader.cursor < log.available and reader.is_open:
            position = reader.cursor + 1
            if position < log.first:
                if not self._send_stored(reader, log):
                    break
            elif not self._send(reader, position, log.part(position)):
                break
        if not reader.is_open:
            return
        if reader.status_due and reader.asked is None:
            self._send_status(reader)
        if log.end is not None and reader.cursor >= log.position:
            outcome, body = log.end
            self.close(reader)
            if reader.resume is not None:
                reader.resume(outcome, body, reader.cursor)

    def _send_stored(self, reader: LogReader, log: PartLog) -> bool:
        """Send a reader parts that are not in memory. False if its window has no room, or if they come
        later."""
        after = reader.cursor
        if log.keep and log.first_kept <= after + 1:
            room = WINDOW_BYTES - reader.outstanding
            asked = log.run, after
            if len(reader.sent) >= WINDOW_PARTS or room <= 0 or reader.asked == asked:
                return False
            question = PartsOf(log.number, after, room, WINDOW_PARTS - len(reader.sent))
            answer = self._journal.ask(question, partial(self._parts_came, reader, asked, log.first))
            if answer is PENDING:
                reader.asked = asked
                return False
            return self._send_rows(reader, log, after, log.first, answer)
        if log.keep and log.first_kept < log.first:
            self._skip(reader, log.first_kept - 1)
        else:
            self._skip(reader, log.first - 1)
        return True

    def _parts_came(self, reader: LogReader, asked: tuple[int, int], first: int, answer: Answer) -> None:
        """The store has answered which parts it has, before those that were in memory then."""
        if reader.asked != asked or not reader.is_open:
            return  # another run has begun
        reader.asked = None
        log, (run, after) = reader.log, asked
        is_current = run == log.run and after == reader.cursor
        if not is_current or self._send_rows(reader, log, after, first, answer):
            self._pump(reader)
        elif reader.status_due:
            self._send_status(reader)
        self._settle(log)

    def _send_rows(
        self, reader: LogReader, log: PartLog, after: int, first: int, answer: Answer | Pending
    ) -> bool:
        """Send a reader what the store has of the parts after a position and before the first in memory."""
        rows: Sequence[tuple[int, Body]] = ()
        if isinstance(answer, StoreError):
            self._core.report(answer)
            if isinstance(answer, DamagedEntry) and after < answer.position < first:
                self._skip(reader, answer.position)
                return True
        else:
            rows = cast("Sequence[tuple[int, Body]]", answer)  # as it was asked
        if log.is_far:  # there may be more
            log.available = max(log.available, rows[-1][0] + 1 if rows else 0)
        for position, part in rows:
            if position >= log.first:
                break
            if position > reader.cursor + 1:
                self._skip(reader, position - 1)
            if not self._send(reader, position, part):
                return False
        if reader.cursor == after:  # the store has nothing more
            if log.is_far:
                return False
            self._skip(reader, first - 1)
        return True

    def look_further(self, log: PartLog) -> None:
        """The store may have more parts of a job that another server has."""
        log.available = max(log.available, *(reader.cursor + 1 for reader in log.readers))
        self._turns.run(self._announce(log))

    def _skip(self, reader: LogReader, position: int) -> None:
        """A reader misses the parts up to a position."""
        reader.cursor = position
        reader.status_due = True

    def _send(self, reader: LogReader, position: int, part: Body) -> bool:
        """Send a reader its next part. False if its window has no room."""
        size = len(part)
        if not reader.has_room(size) or not reader.session.is_open:
            return False
        if reader.status_due:
            self._send_status(reader)
        call = reader.call
        head = HEADER.pack(RES, _WORK_DATA, len(call) + 1 + size) + call + b"\0"
        if size < LARGE:
            self._outgoing.send(reader.session, head + part)
        else:
            self._outgoing.send_in_pieces(reader.session, head, part)
        reader.cursor = position
        reader.sent.append((position, size))
        reader.outstanding += size
        return True

    def _send_status(self, reader: LogReader) -> None:
        reader.status_due = False
        position, run = b"%d" % reader.cursor, b"%d" % reader.log.run
        self._outgoing.respond(reader.session, PacketType.WORK_STATUS, reader.call, position, run)

    # ------------------------------------------------------------------------------------------ the end

    def detached(self, log: PartLog) -> bool:
        """The job ends. Whether readers are to hear of it, with ``ended``, once that is kept."""
        log.is_over = True
        self.unblock(log)
        if log.is_read:
            if log.places:  # a call that is on its way may come before ``ended``
                self.ended_logs[log.number] = log
            return True
        log.clear(log.available)
        self._count(log)
        return False

    def ended(self, log: PartLog, outcome: JobOutcome, body: Body) -> None:
        """The end of a job is kept. Its readers get that when they were sent all parts."""
        log.job = None
        log.end = outcome, body
        self._turns.run(self._announce(log))

    def lose(self, log: PartLog) -> None:
        """Another server has the job. Its readers look for it again, after what they were sent."""
        log.is_over = True
        log.job = None
        self.unblock(log)
        for place in list(log.places.values()):
            self._leave_place(place, 0)
        self._turns.run(self._send_away(log))

    def _send_away(self, log: PartLog) -> Steps:
        readers = deque(log.readers)
        while readers:
            reader = readers.popleft()
            if reader.is_open:
                self.close(reader)
                if reader.resume is not None:
                    reader.resume(None, b"", reader.cursor)
                yield
        log.clear(log.available)
        self._count(log)

    # ------------------------------------------------------------------------------------------- credit

    def _settle(self, log: PartLog) -> None:
        """Something was added, taken, or kept, or a reader has left."""
        slowest = log.slowest()
        if log.keep:
            self._drop_oldest(log, slowest)
            if log.kept_size <= log.keep:
                log.taken, log.taken_bytes = log.available, log.stored_bytes
            if slowest < log.first_kept - 1:  # a reader waits for parts that the store has dropped
                log.trim(slowest)
            elif log.unstored:
                log.trim(min(log.available, max(slowest, log.unstored[0] - 1)))
            else:
                log.trim(log.available)
        else:
            while log.taken < slowest:
                log.taken += 1
                if log.taken >= log.first:
                    log.taken_bytes += len(log.part(log.taken))
            log.trim(slowest)
        self._count(log)
        if log.is_over:
            return
        self._tell_worker(log)
        ahead = log.came_bytes - log.taken_bytes
        if log.blocked is not None:
            if 2 * ahead <= self._limits.parts_ahead and 2 * (log.position - log.taken) <= _PARTS_AHEAD:
                self.unblock(log)
        elif ahead > self._limits.parts_ahead or log.position - log.taken > _PARTS_AHEAD:
            job = log.job
            if job is not None and job.state is _RUNNING and job.worker is not None:
                self._block(log, job.worker)

    def _drop_oldest(self, log: PartLog, slowest: int) -> None:
        """Have the store keep no more than it may. What readers wait for stays."""
        if log.kept_size <= log.keep:
            return
        most, last, before = log.keep - log.keep // 8, min(slowest, log.available), log.first_kept
        while log.kept_size > most and log.first_kept <= last:
            log.kept_size -= log.kept_sizes.popleft()
            log.first_kept += 1
        if log.first_kept > before and not log.is_over:
            self._journal.add(PartsDropped(log.number, log.first_kept))

    def _tell_worker(self, log: PartLog) -> None:
        """Notify the worker how many parts are taken, if these are enough, and if it listens."""
        if log.taken - log.told < _TELL_PARTS and log.taken_bytes - log.told_bytes < _TELL_BYTES:
            return
        job = log.job
        worker = job.worker if job is not None and job.state is _RUNNING else None
        if worker is not None and worker.events:
            log.told, log.told_bytes = log.taken, log.taken_bytes
            event = credit_event(self._handles.handle(log.number), log.taken)
            self._outgoing.respond(worker, PacketType.WORK_DATA, worker.events, event)

    def listens(self, job: QueuedJob) -> None:
        """The worker of a job listens from now on."""
        if job.details is not None and job.details.log is not None:
            self._tell_worker(job.details.log)

    def _count(self, log: PartLog) -> None:
        """What a log has in memory counts while it has no reader. If that is too much, the oldest goes."""
        size = log.size if not log.readers and not log.places and not log.is_over else 0
        if size == log.counted:
            return
        self.idle_bytes += size - log.counted
        if size and not log.counted:
            self.idle[log] = None
        elif not size:
            del self.idle[log]
        log.counted = size
        while self.idle_bytes > self._limits.idle_parts:
            oldest = next(iter(self.idle))
            before = oldest.counted
            oldest.clear(oldest.available)
            self.idle_bytes -= before - oldest.size
            oldest.counted = oldest.size
            del self.idle[oldest]
            if oldest.size:  # parts that are on their way to the store
                self.idle[oldest] = None
            if oldest.size == before:
                break
