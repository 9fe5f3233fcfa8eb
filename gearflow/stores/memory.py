"""Jobs and results in plain dicts, for a server that keeps nothing after its end.

A server in memory keeps the result of every background job, so one more result must cost little: a few
insertions, no copy, no object of its own.

Results that expire in the same second are in one set, so nothing is sorted and each result is looked at once.
If there are more than ``keep_bytes`` of them, ``write`` removes those that ended first. A single result that
is larger is not kept. Bodies, notes and the workloads of dead letters count, and ``OVERHEAD`` for each
result, or a million empty results would be free.

Parts of streams count as well, also those of jobs that run. They go with the result of their job. If there
are only jobs that run, the one that has had no new part for the longest time loses its oldest parts.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import accumulate, islice
from typing import Final

from gearflow.broker.parser import Body
from gearflow.broker.sorted_numbers import SortedNumbers
from gearflow.broker.storage import (
    Change,
    Contents,
    Edited,
    EndedEntry,
    EndedOf,
    EndedPage,
    EndPlace,
    Forgotten,
    Freed,
    JobPart,
    JobRecord,
    PartsDropped,
    Paused,
    Rescheduled,
    Reserved,
    Revived,
    Setting,
    StoredJob,
    StoredParts,
    Ticked,
    size_of,
)
from gearflow.errors import StoreError
from gearflow.stores.ended_records import EndedRecords
from gearflow.stores.sqlite.rows import OVERHEAD, PART_OVERHEAD

FOREVER: Final = 1 << 60  # seconds; stands for an expiry of ``inf``

_LOOKS: Final = 2000
"""Results that are looked at for one question: some tenths of a millisecond."""


class MemoryStore:
    """A ``Store`` that ends with its process. It has a new name at each start."""

    durable = False
    large = sys.maxsize
    untidy = False
    busy = False
    behind = False
    full = False

    def __init__(self, *, keep_bytes: int | None = 64 << 20) -> None:
        """``keep_bytes``: bytes of all kept results together. None means they are kept until they expire."""
        self._keep_bytes = keep_bytes
        self._jobs: dict[int, StoredJob] = {}  # that are to run
        self._letters: dict[int, StoredJob] = {}  # that ended and can be replayed
        self._dead: dict[bytes | None, SortedNumbers] = {None: SortedNumbers()}  # by function, and of all
        self._records = EndedRecords()
        # By function and unique: one, or several in the order of their ends.
        self._uniques: dict[bytes, dict[bytes, JobRecord | OrderedDict[int, JobRecord]]] = {}
        self._seconds: dict[int, set[int]] = {}  # numbers, by the second in which they expire
        self._next_seconds: list[int] = []  # a heap of these seconds, and of some whose sets are gone
        self._streams: OrderedDict[int, _Stream] = OrderedDict()  # of jobs that run, by their last parts
        self._ended_streams: dict[int, _Stream] = {}  # of results
        self._kept = 0  # bytes
        self._reserved = 1
        self._paused: dict[bytes, None] = {}
        self._settings: dict[tuple[str, bytes], Setting] = {}

    def load(self) -> Contents:
        jobs = iter(list(self._jobs.values()))
        parts = {number: stream.stored for number, stream in self._streams.items() if stream.run}
        name = os.urandom(4).hex().encode()
        settings = tuple(self._settings.values())
        return Contents(name, self._reserved, jobs, tuple(self._paused), parts, settings=settings)

    def write(self, changes: Sequence[Change]) -> None:
        """See ``Store``. A dead letter without a workload raises StoreError half-way, which is a bug."""
        for change in changes:
            if isinstance(change, JobPart):
                self._add_part(change)
            elif isinstance(change, JobRecord):
                self._end(change)
            elif isinstance(change, StoredJob):
                if not isinstance(change.workload, int):
                    self._drop_stream(self._streams.pop(change.number, None))
                self._jobs[change.number] = self._with_workload(change)
            else:
                self._apply(change)

    def write_ahead(self, change: StoredJob | JobRecord) -> Iterator[None]:
        """Do nothing, because ``write`` copies nothing."""
        return iter(())

    def drop_ahead(self, change: StoredJob | JobRecord) -> None:
        """Do nothing."""

    def tidy(self) -> Iterator[None]:
        return iter(())

    def sync(self) -> None:
        """Do nothing, because nothing would survive a loss of power."""

    def reopen(self) -> None:
        """Do nothing, because no sync fails."""

    def job(self, number: int) -> StoredJob | None:
        return self._jobs.get(number) or self._letters.get(number)

    def head(self, number: int) -> StoredJob | None:
        return self.job(number)

    def fetch(self, number: int) -> Generator[None, None, StoredJob | None]:
        yield
        return self.job(number)

    def ended(self, number: int) -> JobRecord | None:
        return self._records.get(number)

    def fetch_result(self, number: int) -> Generator[None, None, JobRecord | None]:
        yield
        return self.ended(number)

    def latest(self, function: bytes, unique: bytes) -> JobRecord | None:
        records = self._uniques.get(function, {}).get(unique)
        return next(reversed(records.values())) if isinstance(records, OrderedDict) else records

    def dead(
        self, function: bytes | None, after: int, limit: int, descending: bool = False
    ) -> list[JobRecord]:
        numbers = self._dead.get(function)
        if not numbers:
            return []
        found = numbers.before(after or sys.maxsize) if descending else numbers.after(after)
        return [self._records[number] for number in islice(found, limit)]

    def dead_total(self) -> int:
        return len(self._letters)

    def ended_before(self, question: EndedOf) -> EndedPage:
        function, outcomes, before, until, limit = question
        entries: list[EndedEntry] = []
        found, looks = self._records.before(before.number if before else None, until), 0
        for looks, (each, record) in enumerate(found, 1):
            place = EndPlace(0.0, each)
            if record.outcome in outcomes and (function is None or record.function == function):
                entries.append(EndedEntry(place, record, record.number in self._letters))
            if looks == _LOOKS or len(entries) == limit:
                return EndedPage(entries, place, looks, self._records.count_before(each))
        return EndedPage(entries, None, looks, 0)

    def parts(self, number: int, after: int, limit_bytes: int, limit: int = 64) -> list[tuple[int, Body]]:
        found: list[tuple[int, Body]] = []
        stream = self._streams.get(number) or self._ended_streams.get(number)
        if stream is not None:
            start = stream.place_of(after + 1)
            for position, body in stream.parts[start : start + limit]:
                limit_bytes -= len(body)
                if found and limit_bytes < 0:
                    break
                found.append((position, body))
        return found

    def expire(self, now: float, limit: int) -> bool:
        records, seconds = self._records, self._next_seconds
        while seconds and seconds[0] <= now:
            numbers = self._seconds.get(seconds[0], set())
            over = list(islice((number for number in numbers if records[number].expires <= now), limit))
            for number in over:
                self._remove(records[number])
            limit -= len(over)
            if seconds[0] in self._seconds:
                return any(records[number].expires <= now for number in numbers)
            heappop(seconds)
        return False

    def close(self) -> None:
        """Do nothing."""

    # ------------------------------------------------------------------------------------ what changes do

    def _end(self, record: JobRecord) -> None:
        number, function, unique, _, body, _, _, _, _, _, _, notes, expires, letter = record
        job = self._jobs.pop(number, None)
        stream = self._streams.pop(number, None) or self._ended_streams.pop(number, None)
        if number in self._records.places:
            self._remove(self._records[number])
        size = size_of(body) + len(notes) + OVERHEAD
        if letter is not None:
            letter = self._with_workload(letter, job)
            size += size_of(letter.workload)
            record = record._replace(letter=None)
        if self._keep_bytes is not None and size + (stream.kept if stream else 0) > self._keep_bytes:
            self._drop_stream(stream)
            if size > self._keep_bytes:
                return  # all others would have to go
        elif stream is not None:
            self._ended_streams[number] = stream
        if letter is not None:
            self._letters[number] = letter
            self._dead[None].add(number)
            self._dead.setdefault(function, SortedNumbers()).add(number)
        self._records.add(record)
        self._kept += size
        second = int(expires) if expires < FOREVER else FOREVER
        try:
            self._seconds[second].add(number)
        except KeyError:
            self._seconds[second] = {number}
            self._wait_for(second)
        if unique:
            try:
                uniques = self._uniques[function]
            except KeyError:
                uniques = self._uniques[function] = {}
            if uniques.setdefault(unique, record) is not record:
                _add_another(uniques, record)
        if self._keep_bytes is not None and self._kept > self._keep_bytes:
            self._make_room(self._keep_bytes)

    def _apply(self, change: Change) -> None:
        """Apply a change that is not frequent."""
        if isinstance(change, Rescheduled):
            if (job := self._jobs.get(change.number)) is not None:
                options = job.options if change.options is None else change.options
                self._jobs[change.number] = job._replace(
                    due=change.due, options=options, attempt=change.attempt, deaths=change.deaths
                )
        elif isinstance(change, Forgotten):
            self._jobs.pop(change.number, None)
            self._drop_stream(self._streams.pop(change.number, None))
            if (record := self._records.get(change.number)) is not None:
                self._remove(record)
        elif isinstance(change, Revived):
            if (letter := self._letters.get(change.number)) is not None:
                self._remove(self._records[change.number])
                options = letter.options if change.options is None else change.options
                self._jobs[change.number] = letter._replace(due=0.0, options=options, attempt=0, deaths=0)
        elif isinstance(change, PartsDropped):
            self._drop_parts(change)
        elif isinstance(change, Freed):
            if (job := self._jobs.get(change.number)) is not None:
                self._jobs[change.number] = job._replace(unique=b"")
        elif isinstance(change, Edited):
            if (job := self._jobs.get(change.number)) is not None:
                self._jobs[change.number] = job._replace(
                    priority=change.priority,
                    due=change.due,
                    options=change.options,
                    workload=job.workload if change.workload is None else change.workload,
                )
        else:
            self._apply_to_all(change)

    def _apply_to_all(self, change: Change) -> None:
        """Apply a change that is not about the jobs that there are."""
        if isinstance(change, Reserved):
            self._reserved = max(self._reserved, change.below)
        elif isinstance(change, Paused) and change.paused:
            self._paused[change.function] = None
        elif isinstance(change, Paused):
            self._paused.pop(change.function, None)
        elif isinstance(change, Setting):
            self._set(change)
        elif isinstance(change, Ticked):
            self._set(Setting(change.name, "schedule", change.value))
            if change.job is not None:
                self._jobs[change.job.number] = change.job

    def _set(self, setting: Setting) -> None:
        if setting.value:
            self._settings[setting.kind, setting.name] = setting
        else:
            self._settings.pop((setting.kind, setting.name), None)

    def _add_part(self, part: JobPart) -> None:
        """Keep a part of a job that runs. One that is there already is left out."""
        number, position, body, run = part
        try:
            stream = self._streams[number]
        except KeyError:
            if number in self._records:
                return
            stream = self._streams[number] = _Stream()
        if run != stream.run:
            self._kept -= stream.drop_below(None)
            stream.run = run
        if position <= stream.last:
            return
        stream.last = position
        size = len(body) + PART_OVERHEAD
        if self._keep_bytes is not None and size > self._keep_bytes:
            return
        stream.parts.append((position, body))
        stream.kept += size
        self._kept += size
        self._streams.move_to_end(number)
        if self._keep_bytes is not None and self._kept > self._keep_bytes:
            self._make_room(self._keep_bytes)

    def _drop_parts(self, change: PartsDropped) -> None:
        if (stream := self._streams.get(change.number)) is not None:
            self._kept -= stream.drop_below(change.below)
            if change.below is None:
                del self._streams[change.number]

    def _drop_stream(self, stream: _Stream | None) -> None:
        """The parts of a stream that was taken out are gone."""
        if stream is not None:
            self._kept -= stream.kept

    def _with_workload(self, job: StoredJob, held: StoredJob | None = None) -> StoredJob:
        """The job with its workload, if the change has only its length."""
        if not isinstance(job.workload, int):
            return job
        held = held or self.job(job.number)
        if held is None:
            raise StoreError(f"the workload of job {job.number} is not in this store")
        return job._replace(workload=held.workload)

    # ------------------------------------------------------------------------------------------- its end

    def _wait_for(self, second: int) -> None:
        heappush(self._next_seconds, second)
        if (
            len(self._next_seconds) > 2 * len(self._seconds) + 1000
        ):  # most have been emptied before their time
            self._next_seconds[:] = self._seconds
            heapify(self._next_seconds)

    def _make_room(self, keep: int) -> None:
        while self._kept > keep and (oldest := self._records.oldest()) is not None:
            self._remove(oldest)
        if self._kept > keep:
            keep -= keep // 16  # because many streams may have to be asked
            for stream in self._streams.values():
                if self._kept <= keep:
                    break
                self._kept -= stream.drop_bytes(self._kept - keep)

    def _remove(self, record: JobRecord) -> None:
        number = record.number
        self._records.remove(number)
        self._kept -= size_of(record.body) + len(record.notes) + OVERHEAD
        if self._ended_streams:
            self._drop_stream(self._ended_streams.pop(number, None))
        if (letter := self._letters.pop(number, None)) is not None:
            self._kept -= size_of(letter.workload)
            self._dead[None].remove(number)
            self._dead[letter.function].remove(number)
            if not self._dead[letter.function]:
                del self._dead[letter.function]
        second = int(record.expires) if record.expires < FOREVER else FOREVER
        numbers = self._seconds[second]
        numbers.remove(number)
        if not numbers:
            del self._seconds[second]
        if record.unique:
            uniques = self._uniques[record.function]
            records = uniques[record.unique]
            if isinstance(records, OrderedDict):
                del records[number]
                if len(records) == 1:
                    (uniques[record.unique],) = records.values()
                return
            del uniques[record.unique]
            if not uniques:
                del self._uniques[record.function]


class _Stream:
    """The parts of one job."""

    __slots__ = "kept", "last", "parts", "run"

    def __init__(self) -> None:
        self.parts: list[tuple[int, Body]] = []
        self.last = 0  # the position of the last part
        self.run = 0
        self.kept = 0  # bytes

    @property
    def stored(self) -> StoredParts:
        first = self.parts[0][0] if self.parts else self.last and self.last + 1
        return StoredParts(first, self.last, self.kept - PART_OVERHEAD * len(self.parts), self.run)

    def place_of(self, position: int) -> int:
        """The place of the first part from this position on."""
        return bisect_left(self.parts, (position,))

    def drop_below(self, position: int | None) -> int:
        """Drop the parts before a position, or begin again. Returns their bytes."""
        if position is None:
            self.last = self.run = 0
            return self._drop(len(self.parts))
        return self._drop(self.place_of(position))

    def drop_bytes(self, size: int) -> int:
        """Drop the first parts, so many bytes of them at least. Returns how many these were."""
        sizes = accumulate(len(body) + PART_OVERHEAD for _, body in self.parts)
        return self._drop(
            next((count for count, sum_ in enumerate(sizes, 1) if sum_ >= size), len(self.parts))
        )

    def _drop(self, count: int) -> int:
        size = sum(len(body) + PART_OVERHEAD for _, body in islice(self.parts, count))
        del self.parts[:count]
        self.kept -= size
        return size


def _add_another(uniques: dict[bytes, JobRecord | OrderedDict[int, JobRecord]], record: JobRecord) -> None:
    records = uniques[record.unique]
    if not isinstance(records, OrderedDict):
        records = uniques[record.unique] = OrderedDict({records.number: records})
    records[record.number] = record
