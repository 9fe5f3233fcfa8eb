"""Lines about jobs, which are many: written in batches, as the records would be."""

import json
import logging
import os
import select
import sys
from pathlib import Path
from typing import Any

import pytest

from gearflow.client import SyncClient
from gearflow.runtime import log_batches
from gearflow.runtime.log_batches import BatchFormatter, BatchHandler, RecordKind
from gearflow.server import JobServer
from gearflow_cli import logs
from tests.cli.shell import Shell

logger = logging.getLogger("gearflow.worker")

pytestmark = pytest.mark.usefixtures("loggers_as_before")


def kind(task: str = "shop.add", attempt: int = 1, message: str = "job done") -> RecordKind:
    fields = {
        "task": task,
        "handle": "",
        "server": "a:1",
        "attempt": attempt,
        "duration": 0.0,
        "outcome": "done",
    }
    return RecordKind(logger, logging.INFO, message, fields, handle="handle", number="duration")


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are written with something else only."""
    monkeypatch.setattr(log_batches, "PERIOD", 1e6)


def formatter() -> BatchFormatter:
    [handler] = logging.root.handlers
    assert isinstance(handler.formatter, BatchFormatter)
    return handler.formatter


@pytest.mark.parametrize("is_json", [False, True])
@pytest.mark.parametrize(
    "task", ["shop.add", "job", "done", "%s %d%%", "größer", "a b", "no\nline", "\x1b[2J", "1.23e-300", '"\\']
)
@pytest.mark.parametrize(
    "handle",
    [b"H:host:1", b"H:a b:1", b"job", b"done", b"\xff", b'H:"', b"H:\\", b"H:\n:1", "H:ö:1".encode(), b""],
)
def test_a_row_becomes_the_line_that_the_record_would_be(is_json: bool, task: str, handle: bytes) -> None:
    logs.to_stderr("info", json=is_json)
    kinds = [kind(task), kind(task, attempt=2, message="job gone")]
    rows = [
        (1e9 + 0.0005 + second, each, text, seconds)
        for second in (0, 0.25, 1)
        for each in kinds
        for text in (handle, b"H:host:2")
        for seconds in (0.12345678, 2.0, 1e-7, 12345.6)
    ]
    for batch in (rows, [row for row in rows if row[2] == handle]):
        records = [each.record(created, text, seconds) for created, each, text, seconds in batch]
        lines = [f"{formatter().format(record)}\n" for record in records]
        assert "".join(formatter().blocks(batch)) == "".join(lines)


@pytest.mark.usefixtures("no_thread")
def test_rows_are_written_before_the_records_that_follow(capsys: pytest.CaptureFixture[str]) -> None:
    logs.to_stderr("info")
    for number in range(3):
        kind().log(b"H:a:%d" % number, 0.5)
    assert "H:a:0" in capsys.readouterr().err  # none was written lately
    logger.info("a record")
    logger.warning("another")
    kind().log(b"H:a:3", 0.5)
    logs.flush()
    said = [line.split()[2:4] for line in capsys.readouterr().err.splitlines()]
    assert said == [["job", "done"], ["job", "done"], ["a", "record"], ["another"], ["job", "done"]]


def test_rows_are_written_soon_though_the_event_loop_is_blocked() -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as stream, open(reader, "rb", 0) as lines:  # noqa: PTH123  (a Path has no descriptor)
        logs.to_stderr("info")
        handler = logging.root.handlers[0]
        assert isinstance(handler, BatchHandler)
        handler.setStream(stream)
        seen = b""
        for number in range(2):
            kind().log(b"H:a:%d" % number, 0.5)
        while b"H:a:1" not in seen:
            assert select.select([lines], [], [], 10)[0]
            seen += lines.read(65536)
        handler.setStream(sys.stderr)


@pytest.mark.usefixtures("no_thread")
@pytest.mark.parametrize("where", ["", "gearflow", "gearflow.worker"])
def test_the_handler_of_a_user_gets_a_record_for_each_row(where: str) -> None:
    class Users(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((record.getMessage(), vars(record)["handle"], vars(record)["duration"]))

    seen: list[object] = []
    logs.to_stderr("info")
    lines = kind()
    for number in range(2):
        lines.log(b"H:a:%d" % number, 0.5)
    handler = Users()
    logging.getLogger(where).addHandler(handler)
    try:
        lines.log(b"H:a:2", 0.5)
    finally:
        logging.getLogger(where).removeHandler(handler)
    lines.log(b"H:a:3", 0.5)
    assert seen == [("job done", "H:a:2", 0.5)]


@pytest.mark.usefixtures("no_thread")
@pytest.mark.parametrize("place", ["logger", "handler"])
def test_the_filter_of_a_user_decides_about_each_row(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    def without_ones(record: logging.LogRecord) -> bool:
        return not str(vars(record)["handle"]).endswith("1")

    logs.to_stderr("info")
    lines = kind()
    for _ in range(2):
        lines.log(b"H:a:1", 0.5)
    filtered = logger if place == "logger" else logging.root.handlers[0]
    filtered.addFilter(without_ones)
    try:
        for number in (1, 2):
            lines.log(b"H:b:%d" % number, 0.5)
    finally:
        filtered.removeFilter(without_ones)
    logs.flush()
    err = capsys.readouterr().err
    assert [name for name in ("H:a:1", "H:b:1", "H:b:2") if name in err] == ["H:a:1", "H:b:2"]
    assert err.count("H:a:1") == 2


@pytest.mark.usefixtures("no_thread")
def test_what_replaces_a_part_of_logging_sees_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    def traced(self: logging.Logger, record: logging.LogRecord) -> None:
        seen.append(record.getMessage())

    seen: list[str] = []
    logs.to_stderr("info")
    monkeypatch.setattr(logging.Logger, "callHandlers", traced)
    kind().log(b"H:a:1", 0.5)
    assert seen == ["job done"]
    monkeypatch.undo()

    class Made(logging.LogRecord):
        def getMessage(self) -> str:  # noqa: N802  (its name in logging)
            seen.append("made")
            return super().getMessage()

    before = logging.getLogRecordFactory()
    try:
        logging.setLogRecordFactory(Made)
        kind().log(b"H:a:1", 0.5)
    finally:
        logging.setLogRecordFactory(before)
    assert "made" in seen


@pytest.mark.usefixtures("no_thread")
def test_no_write_to_a_pipe_is_too_long_to_be_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    class Writes:
        def write(self, text: str) -> None:
            written.append(text)

        def flush(self) -> None: ...

    written: list[str] = []
    logs.to_stderr("info")
    handler: Any = logging.root.handlers[0]
    monkeypatch.setattr(handler, "stream", Writes())
    kinds = [kind(), kind("größer" * 10)]
    for number in range(200):
        kinds[number % 2].log(b"H:a:%d" % number, 0.5)
    handler.flush()
    lines = "".join(written).splitlines()
    assert len(lines) == 200
    assert all(f"H:a:{number} " in line for number, line in enumerate(lines))
    assert max(len(text.encode()) for text in written) <= select.PIPE_BUF
    assert len(written) < 50


@pytest.mark.usefixtures("no_thread")
def test_a_forked_child_does_not_write_the_rows_of_its_parent(capfd: pytest.CaptureFixture[str]) -> None:
    logs.to_stderr("info")
    handler: Any = logging.root.handlers[0]
    handler.setStream(os.fdopen(os.dup(2), "w"))
    for number in range(2):
        kind().log(b"H:a:%d" % number, 0.5)
    child = os.fork()
    if child == 0:
        logger.warning("a child")
        logs.flush()
        os._exit(0)
    os.waitpid(child, 0)
    logger.warning("a parent")
    handler.stream.close()
    err = capfd.readouterr().err
    assert [err.count(text) for text in ("H:a:0", "H:a:1", "a child", "a parent")] == [1, 1, 1, 1]


TASKS = """
import logging
from gearflow import task

@task(name="quick")
async def quick(number: int) -> int:
    if number == 7:
        logging.getLogger("shop").info("lucky")
    return number
"""


@pytest.mark.parametrize(
    "options", [(), ("--log-json",), ("--processes", "2")], ids=["text", "json", "fleet"]
)
def test_a_worker_that_is_stopped_has_a_line_for_each_job(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "module.py").write_text(TASKS)
    count = 150  # what a pipe holds that nobody reads
    with JobServer(port=0) as server, SyncClient([server.address]) as client:
        shell = Shell(tmp_path, {"GEARMAN_SERVERS": server.address})
        with shell.start("worker", "module", *options) as worker:
            worker.until("registered")
            jobs = [client.submit("quick", json.dumps({"number": n}).encode()) for n in range(count)]
            handles = [job.handle for job in jobs]
            for job in jobs:
                job.result()
            worker.process.terminate()
            code, err = worker.end()
    assert code == 0
    lines = [line for line in err.splitlines() if "job done" in line]
    assert len(lines) == count
    for handle in handles:
        assert sum(f"{handle} " in line or f'"{handle}"' in line for line in lines) == 1
    assert "lucky" in err
