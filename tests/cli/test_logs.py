"""The log on stderr, as lines and as JSON."""

import asyncio
import json
import logging
import os
from typing import Any

import pytest

from gearflow.worker.processes.errors import pack, unpack
from gearflow_cli import logs
from gearflow_cli.tracebacks import own_lines

logger = logging.getLogger("gearflow.worker")


pytestmark = pytest.mark.usefixtures("loggers_as_before")


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Any:
    """What was written since: a JSON object for each line."""

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    return read


def test_a_line_has_the_fields_that_the_sentence_does_not_tell(capsys: pytest.CaptureFixture[str]) -> None:
    logs.to_stderr("info")
    logger.info("no connection to %s", "a:1", extra={"server": "a:1", "duration": 0.12345, "reason": "a b"})
    line = capsys.readouterr().err
    assert line[9:] == "INFO    no connection to a:1  duration=0.123 reason='a b'\n"


def test_a_field_that_only_looks_like_a_part_of_the_sentence_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.to_stderr("info")
    logger.info(
        "replaced: %d of at most %d MiB", 31, 3, extra={"worker": 3, "task": "place", "outcome": "of"}
    )
    assert capsys.readouterr().err[9:] == "INFO    replaced: 31 of at most 3 MiB  worker=3 task=place\n"


def test_a_message_can_neither_look_like_a_record_nor_rule_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.to_stderr("info")
    fake = "no\n12:00:00 INFO    job done\x00\x1b[2J\r\u2028."
    logger.warning("job %s", "failed", exc_info=ValueError(fake), extra={"reason": fake})
    logger.warning("%s", fake)
    first, *exception, second, rest = capsys.readouterr().err.split("\n")[:-1]
    escaped = r"  12:00:00 INFO    job done\x00\x1b[2J\r\u2028."
    assert first[9:] == f"WARNING job failed  reason={fake!r}"
    assert exception == ["  ValueError: no", escaped]
    assert second[9:] == "WARNING no"
    assert rest == escaped


def test_groups_in_groups_are_formatted_once_and_cut_as_by_python() -> None:
    asked: list[str] = []

    class Counting(Exception):
        def __str__(self) -> str:
            asked.append("str")
            return "the innermost"

    error: Exception = Counting()
    for level in range(100):
        error = ExceptionGroup[Exception](f"level {level}", [error])
    shown = own_lines(error)
    assert "level 99" in shown
    assert "level 89" in shown
    assert "level 88" not in shown
    assert shown.endswith("... and 1 more")
    assert len(asked) <= 1
    wide = own_lines(ExceptionGroup("many", [ValueError(f"member {number}") for number in range(100)]))
    assert wide.count("ValueError: member") == 15
    assert wide.endswith("... and 85 more")


def test_a_huge_message_of_an_exception_is_cut_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    logs.to_stderr("info")
    logger.warning("job failed", exc_info=ValueError("x" * 5_000_000))
    line = capsys.readouterr().err
    assert len(line) < 20_000
    assert line.endswith("x... (5,000,012 characters)\n")


def test_what_failed_in_a_process_is_shown_as_in_a_thread(capsys: pytest.CaptureFixture[str]) -> None:
    logs.to_stderr("info")
    failure = _failure()
    logger.warning("job failed", exc_info=failure)
    logger.warning("job failed", exc_info=unpack(pack(failure), "H:a:1"))
    lines = capsys.readouterr().err.splitlines()
    assert "test_logs.py" in lines[1]
    assert lines[-1] == "  ValueError: no"
    assert lines[1 : len(lines) // 2] == lines[len(lines) // 2 + 1 :]


def _failure() -> ValueError:
    try:
        raise ValueError("no")
    except ValueError as error:
        return error


def test_json_has_time_level_logger_message_and_fields(written: Any) -> None:
    logs.to_stderr("info", json=True)
    logger.info("job %s", "done", extra={"task": "add", "attempt": 1, "duration": 0.25})
    [line] = written()
    assert line.pop("time").endswith("Z")
    assert line.pop("process") == os.getpid()
    assert line == {
        "level": "info",
        "logger": "gearflow.worker",
        "message": "job done",
        "task": "add",
        "attempt": 1,
        "duration": 0.25,
    }


def test_json_keeps_an_exception_on_its_line(written: Any) -> None:
    logs.to_stderr("info", json=True)
    try:
        dict[str, int]()["lost"]
    except KeyError:
        logger.warning("job failed", exc_info=True)
    [line] = written()
    assert line["level"] == "warning"
    assert line["exception"].endswith("\nKeyError: 'lost'")
    assert "in test_json_keeps_an_exception_on_its_line" in line["exception"]


def test_json_shows_what_json_does_not_know_as_text(written: Any) -> None:
    logs.to_stderr("info", json=True)
    logger.info("odd", extra={"where": {"a"}, "level": "mine", "name_of_line": "two\nlines"})
    [line] = written()
    assert (line["where"], line["level"], line["name_of_line"]) == ("{'a'}", "info", "two\nlines")


@pytest.mark.parametrize("json", [False, True])
@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("debug", ["a detail", "chatter", "a fault", "a failure"]),
        ("info", ["chatter", "a fault", "a failure"]),
        ("warning", ["a fault", "a failure"]),
        ("error", ["a failure"]),
    ],
)
@pytest.mark.parametrize("name", ["somebody", "gearflow.worker"])
def test_the_level_holds_for_every_logger(
    name: str, level: str, heard: list[str], json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.to_stderr(level, json=json)
    somebody = logging.getLogger(name)
    somebody.debug("a detail")
    somebody.info("chatter")
    somebody.warning("a fault")
    somebody.error("a failure")
    err = capsys.readouterr().err
    assert [text for text in ("a detail", "chatter", "a fault", "a failure") if text in err] == heard


def say_debug(name: str, pathname: str) -> None:
    """As code in that file says it."""
    said = logging.makeLogRecord({"name": name, "levelno": logging.DEBUG, "msg": name, "pathname": pathname})
    logging.getLogger(name).handle(said)


def test_details_of_libraries_are_left_out_unless_a_level_is_set_for_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.to_stderr("debug", modules=["installed_shop.tasks"])
    library = "/srv/venv/lib/python3.11/site-packages/library/core.py"
    say_debug("asyncio", asyncio.__file__)
    say_debug("chatty", library)
    chosen = logging.getLogger("chosen")
    chosen.setLevel(logging.DEBUG)
    say_debug("chosen.part", library)
    say_debug("installed_shop.till", library)
    say_debug("mine", __file__)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[-1] for line in lines] == ["chosen.part", "installed_shop.till", "mine"]
