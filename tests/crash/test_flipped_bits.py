"""One bit of the file flips while no server runs. The server names what is damaged, and nothing else is lost.

Damage is noticed when a server starts, which then refuses, or when the row is read. Then the log has the
handle, the function, the fault and the remedy.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls
from gearflow.protocol.server_calls import DeadRequest, InfoRequest, PauseRequest, ResultRequest
from gearflow.server.settings import FILE_NAME
from tests.crash.nest import Nest, NotStarted, Server
from tests.server.wire import Wire

_REMEDY: Final = "'gearflow server --recover --data "
_LONG: Final = b"." * 5000
"""More than the checksum of the row covers."""


class Flip(NamedTuple):
    """Where a bit flips."""

    table: str
    column: str
    job: bytes = b""
    bit: int = 1


_AT_START: Final = (
    Flip("jobs", "function", b"waits"),
    Flip("jobs", "function", b"waits", bit=0x80),  # no UTF-8 any more
    Flip("jobs", '"unique"', b"waits"),
    Flip("jobs", "priority", b"waits"),
    Flip("jobs", "submitted", b"waits"),
    Flip("jobs", "workload", b"waits"),
    Flip("jobs", "workload", b"failed"),
    Flip("paused", "functions"),
    Flip("meta", "reserved"),
)

_WHEN_READ: Final = (
    Flip("jobs", "workload", b"waits, long"),
    Flip("jobs", "workload", b"failed, long"),
    Flip("records", "function", b"done"),
    Flip("records", "function", b"done", bit=0x80),
    Flip("records", '"unique"', b"done"),
    Flip("records", "outcome", b"done"),
    Flip("records", "ended", b"done"),
    Flip("records", "body", b"done"),
    Flip("records", "body", b"done, long"),
    Flip("records", "function", b"failed"),
    Flip("records", '"unique"', b"failed", bit=0x80),
    Flip("records", "outcome", b"failed"),
    Flip("records", "body", b"failed"),
    Flip("records", "body", b"failed, long"),
)


class Left(NamedTuple):
    """What a server left behind. Jobs are named by what becomes of them, and so are their uniques."""

    data: Path
    handles: dict[bytes, str]  # by name


def body_of(name: bytes) -> bytes:
    """The payload of a job, or its result, or its failure."""
    return b"body of " + name + (_LONG if name.endswith(b"long") else b"")


@pytest.fixture(scope="module")
def left(nest: Nest, tmp_path_factory: pytest.TempPathFactory) -> Left:
    data = tmp_path_factory.mktemp("left") / "data"
    server = nest.start(data)
    handles: dict[bytes, str] = {}
    with Wire(server.port) as client, Wire(server.port) as worker:
        worker.send(p.CanDo(b"app.done"), p.CanDo(b"app.failed"))
        for name in (
            name + more for name in (b"waits", b"done", b"failed") for more in (b"", b", long", b"!")
        ):
            function = b"app." + re.split(rb"\W", name)[0]
            client.send(p.SubmitJobBg(function, name, body_of(name)))
            handle = client.handle()
            handles[name] = handle.decode()
            if function != b"app.waits":
                worker.send(p.GrabJob())
                assert isinstance(worker.receive(), p.JobAssign)
                end = p.WorkComplete if function == b"app.done" else p.WorkException
                worker.send(end(handle, body_of(name)))
                worker.sync()
        ask(client, server_calls.PAUSE, PauseRequest(function="app.paused"))
    server.stop()
    return Left(data, handles)


def flipped(left: Left, flip: Flip, data: Path) -> Path:
    """A copy in which that bit has flipped."""
    shutil.copytree(left.data, data)
    path = data / FILE_NAME
    number = left.handles[flip.job].rpartition(":")[2] if flip.job else None
    where = f"WHERE number = {number}" if number else ""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        kind, old = connection.execute(
            f"SELECT typeof({flip.column}), CASE typeof({flip.column}) WHEN 'text' THEN "
            f"CAST({flip.column} AS BLOB) ELSE {flip.column} END FROM {flip.table} {where}"
        ).fetchone()
        new = with_other_bit(old, flip.bit)
        value = "CAST(? AS TEXT)" if kind == "text" else "?"
        connection.execute(f"UPDATE {flip.table} SET {flip.column} = {value} {where}", (new,))
    return data


def with_other_bit(value: bytes | float, bit: int) -> bytes | int | float:
    match value:
        case bytes():
            return bytes([value[0] ^ bit]) + value[1:]
        case int():
            return value ^ bit
        case float():
            (number,) = struct.unpack("<q", struct.pack("<d", value))
            changed: float = struct.unpack("<d", struct.pack("<q", number ^ bit))[0]
            return changed


# ---------------------------------------------------------------------------------------------- what is asked


def ask(client: Wire, function: bytes, request: server_calls.Message) -> tuple[bool, bytes]:
    """Whether a call of a reserved function succeeded, and its answer."""
    client.send(p.OptionReq(b"exceptions"), p.SubmitJob(function, b"", request.to_wire()))
    assert isinstance(client.receive(), p.OptionRes)
    client.handle()
    match client.receive():
        case p.WorkComplete(_, answer):
            return True, bytes(answer)
        case p.WorkException(_, answer):
            return False, bytes(answer)
        case other:
            raise AssertionError(other)


def answer(client: Wire, function: bytes, request: server_calls.Message) -> dict[str, Any]:
    good, text = ask(client, function, request)
    assert good, text
    read: dict[str, Any] = json.loads(text)
    return read


def check_all(server: Server, left: Left, damaged: bytes) -> None:
    """Everything but one job is as it was left. The answers about that one and the log report the damage."""
    with Wire(server.port) as client, Wire(server.port) as worker:
        given = worker.grab_all(b"app.waits")
        for name, handle in left.handles.items():
            info = answer(client, server_calls.INFO, InfoRequest(handle=handle))
            result = ask(client, server_calls.RESULT, ResultRequest(handle=handle, timeout=0))
            if name == damaged:
                assert _REMEDY in info["damage"], info
                assert info["state"] in ("damaged", "raised")
            else:
                assert "damage" not in info
                assert info["unique"] == name.decode()
                if name.startswith(b"waits"):
                    assert given.pop(handle.encode()) == body_of(name)
                else:
                    assert result == (name.startswith(b"done"), body_of(name))
        assert not given
        letters = answer(client, server_calls.DEAD, DeadRequest(action="list"))["letters"]
        assert {letter["handle"] for letter in letters} == {
            handle
            for name, handle in left.handles.items()
            if name.startswith(b"failed") or info_dead(name, damaged)
        }
        assert [letter["handle"] for letter in letters if "damage" in letter] == (
            [left.handles[damaged]] if not damaged.startswith(b"done") else []
        )
        for letter in letters:
            shown = answer(client, server_calls.DEAD, DeadRequest(action="show", handle=letter["handle"]))
            assert shown["job"] == letter
    handle = left.handles[damaged]
    (line,) = [line for line in server.log.splitlines() if handle in line]
    assert re.search(rf"job {handle} of \S+[: ].*{FILE_NAME} is damaged: .*{_REMEDY}", line), line


def info_dead(name: bytes, damaged: bytes) -> bool:
    """Whether a job that waited is a dead letter, because it could not be given out."""
    return name == damaged and name.startswith(b"waits")


# ------------------------------------------------------------------------------------------------- the tests


def name_of(flip: Flip) -> str:
    return f"{flip.table}-{flip.column}-{flip.job.decode()}-{flip.bit}"


@pytest.mark.parametrize("flip", _AT_START, ids=name_of)
def test_a_server_does_not_start_with_a_flipped_bit_that_it_reads_then(
    nest: Nest, left: Left, tmp_path: Path, flip: Flip
) -> None:
    data = flipped(left, flip, tmp_path / "data")
    with pytest.raises(NotStarted) as refused:
        nest.start(data)
    assert f"{data / FILE_NAME} is damaged: " in str(refused.value)
    assert _REMEDY in str(refused.value)


@pytest.mark.parametrize("flip", _WHEN_READ, ids=name_of)
def test_a_flipped_bit_is_reported_when_its_row_is_read_and_all_else_is_served(
    nest: Nest, left: Left, tmp_path: Path, flip: Flip
) -> None:
    server = nest.start(flipped(left, flip, tmp_path / "data"))
    check_all(server, left, flip.job)
    server.stop()
