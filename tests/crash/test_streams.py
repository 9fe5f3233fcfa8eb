"""The server dies before, in or after its n-th write while a task yields: each position keeps its part.

A worker whose task resumes yields parts that say which run made them. A reader notes what it was sent. The
next server must have all of that, give the worker no other position, and send the reader the rest.
"""

from __future__ import annotations

import json
import re
import signal
import sqlite3
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Final

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from gearflow.protocol import workers
from gearflow.protocol.envelope import unwrap
from gearflow.server.settings import FILE_NAME
from tests.crash.faults import MARK, Fault, How
from tests.crash.nest import Nest, NotStarted, Server
from tests.server.wire import Wire

_PARTS: Final = 12
_AT_ONCE: Final = 3


class Gone(Exception):
    """The server has died."""


class Peer(Wire):
    """A connection that raises ``Gone`` when the server has closed it."""

    def next(self) -> object:
        if (packet := self.receive()) is None:
            raise Gone
        return packet

    def call(self, function: bytes, request: api.Message) -> dict[str, object]:
        """Call a reserved function."""
        self.send(p.SubmitJob(function, b"", request.to_wire()))
        assert isinstance(self.next(), p.JobCreated)
        answer = self.next()
        assert isinstance(answer, p.WorkComplete), answer
        found: dict[str, object] = json.loads(answer.result or b"{}")
        return found


class Story:
    """A job that yields, over the lives of several servers, and the parts that its reader was sent."""

    def __init__(self, stream_keep: int) -> None:
        self._stream_keep = stream_keep
        self.handle = b""
        self._function = ""
        self._life = 0
        self.seen: dict[int, bytes] = {}

    def live(self, server: Server) -> None:
        """Go on until the job has ended. Raises Gone or ConnectionError if the server dies."""
        self._life += 1
        with Peer(server.port) as client, Peer(server.port) as worker, Peer(server.port) as reader:
            if not self.handle:  # an earlier server may have a job that it did not acknowledge
                self._function = f"yields{self._life}"
                keep = self._stream_keep
                request = api.SubmitRequest(function=self._function, detached=True, stream_keep=keep)
                self.handle = str(client.call(api.SUBMIT, request)["handle"]).encode()
            last = max(self.seen, default=0)
            reader.send(self._stream(last))
            assert isinstance(reader.next(), p.JobCreated)
            assert self._position(reader) == last
            given = self._grab(worker)
            if given is not None:
                assert given >= last
                self._read(reader, given)
                for position in range(given + 1, _PARTS + 1):
                    body = b"%d of life %d " % (position, self._life) * 20
                    worker.send(p.WorkData(self.handle, body))
                    if position % _AT_ONCE == 0:
                        self._read(reader, position)
                worker.send(p.WorkComplete(self.handle, b""))
            self._read(reader, _PARTS)
            assert isinstance(reader.next(), p.WorkComplete)

    def replay(self, server: Server) -> list[int]:
        """Read the job from its begin. The positions."""
        with Peer(server.port) as reader:
            reader.send(self._stream(0))
            assert isinstance(reader.next(), p.JobCreated)
            position, found = 0, list[int]()
            while not isinstance(packet := reader.next(), p.WorkComplete):
                if isinstance(packet, p.WorkStatus):
                    position = int(packet.numerator)
                    continue
                assert isinstance(packet, p.WorkData), packet
                position += 1
                assert packet.data == self.seen[position]
                found.append(position)
                reader.send(p.WorkStatus(packet.handle, b"%d" % position, b"0"))
            return found

    def _stream(self, after: int) -> p.SubmitJob:
        request = api.StreamRequest(handle=self.handle.decode(), after=after)
        return p.SubmitJob(api.STREAM, b"", request.to_wire())

    def _position(self, reader: Peer) -> int:
        status = reader.next()
        assert isinstance(status, p.WorkStatus), status
        assert status.denominator == b"1"  # the run
        return int(status.numerator)

    def _grab(self, worker: Peer) -> int | None:
        """After how many parts the job is to go on. None if it has ended."""
        worker.send(p.OptionReq(b"gearflow"), p.CanDo(self._function.encode()))
        assert isinstance(worker.next(), p.OptionRes)
        worker.call(workers.REPORT, workers.ReportRequest(resumable=[self._function]))
        worker.send(p.GrabJobUniq())
        match worker.next():
            case p.JobAssignUniq(handle, workload=workload):
                assert handle == self.handle
                return unwrap(bytes(workload))[0].parts
            case answer:
                assert answer == p.NoJob()
                return None

    def _read(self, reader: Peer, until: int) -> None:
        """Read up to a position."""
        while (position := max(self.seen, default=0) + 1) <= until:
            packet = reader.next()
            assert isinstance(packet, p.WorkData), packet
            self.seen[position] = bytes(packet.data)


def tell_it(nest: Nest, directory: Path, fault: Fault, stream_keep: int) -> bool:
    """Tell the story with that fault. Whether the fault came at all."""
    directory.mkdir()
    story = Story(stream_keep)
    with suppress(NotStarted):
        server = nest.start(directory / "data", fault)
        try:
            story.live(server)
        except (Gone, ConnectionError):
            assert fault.how != "refused", server.why("it died")
            assert server.wait() == -signal.SIGKILL, server.why("it died")
        else:
            server.kill()
    log = (directory / "data.log").read_text()
    server = nest.start(directory / "data")
    story.live(server)
    positions = story.replay(server)
    assert positions == list(range(positions[0], _PARTS + 1))
    assert positions[0] == 1 or stream_keep < 1000 * _PARTS
    server.stop()
    assert "Traceback" not in (directory / "data.log").read_text(), log
    return MARK.decode() in log


@pytest.mark.parametrize("stream_keep", [1 << 20, 2000])
@pytest.mark.parametrize("how", ["killed before", "killed within", "killed after", "refused"])
def test_each_position_keeps_its_part_if_the_server_dies_at_the_nth_write(
    nest: Nest, tmp_path: Path, how: How, stream_keep: int
) -> None:
    numbers = count(1)
    while tell_it(nest, tmp_path / str(number := next(numbers)), Fault("write", number, how), stream_keep):
        pass
    assert next(numbers) > 6


def test_a_flipped_bit_in_parts_is_a_gap_and_named_in_the_log(nest: Nest, tmp_path: Path) -> None:
    data, story = tmp_path / "data", Story(1 << 20)
    server = nest.start(data)
    story.live(server)
    server.stop()
    with closing(sqlite3.connect(data / FILE_NAME, isolation_level=None)) as connection:
        rows = connection.execute("SELECT id, last, count FROM streams ORDER BY last").fetchall()
        key, last, parts = rows[1]
        (content,) = connection.execute("SELECT parts FROM streams WHERE id = ?", (key,)).fetchone()
        changed = bytes([content[0] ^ 1]) + content[1:]
        connection.execute("UPDATE streams SET parts = ? WHERE id = ?", (changed, key))
    server = nest.start(data)
    lost = range(last - parts + 1, last + 1)
    assert story.replay(server) == [position for position in range(1, _PARTS + 1) if position not in lost]
    server.stop()
    handle = re.escape(story.handle.decode())
    (line,) = [line for line in server.log.splitlines() if "is damaged" in line]
    assert re.search(rf"job {handle} of \S+: .*{FILE_NAME} is damaged: the stream of job .*--recover", line)
