"""gearflow's server answers as gearmand does, word for word, but for the differences that the docs name."""

import re
import shutil
from typing import Final

import pytest

from gearflow.protocol.constants import PacketType
from gearflow.server import JobServer
from tests.conftest import ROOT, missing
from tests.protocol.transcripts import FILE, Conversation, gearmand_says, played, read, version

CONVERSATIONS: Final = read(FILE.read_text())
WORDS: Final = set(FILE.read_text().split())

conversations: Final = pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda each: each.title)


@conversations
def test_gearflow_answers_as_gearmand_or_as_the_docs_say(conversation: Conversation) -> None:
    with JobServer(port=0) as server:
        for step, answers in played(conversation, ("127.0.0.1", server.port)):
            assert answers == step.expected, step.line


@conversations
def test_gearmand_still_answers_as_it_is_recorded(conversation: Conversation) -> None:
    program = shutil.which("gearmand", path="/usr/sbin:/usr/bin")
    if program is None:
        missing("gearmand is not installed")
    if version(program) not in FILE.read_text():
        pytest.skip(f"{version(program)} is not the version that was recorded")
    recorded = [step.answers for step in conversation.steps]
    said = gearmand_says(program, conversation)
    if said != recorded:  # for a moment it lists a connection that has closed, such as that of its start
        said = gearmand_says(program, conversation)
    assert said == recorded


def test_each_difference_is_a_row_of_the_docs() -> None:
    page = (ROOT / "docs" / "reference" / "gearmand-differences.md").read_text()
    rows = set(re.findall(r"^\| (.*?) \|", page, re.MULTILINE))
    assert {step.difference for each in CONVERSATIONS for step in each.steps} - {""} <= rows


def test_a_step_without_a_difference_has_none_written_down() -> None:
    assert not [step for each in CONVERSATIONS for step in each.steps if step.ours and not step.difference]


def test_titles_are_different() -> None:
    assert len({each.title for each in CONVERSATIONS}) == len(CONVERSATIONS)


@pytest.mark.parametrize("kind", PacketType, ids=lambda kind: kind.name)
def test_each_packet_occurs(kind: PacketType) -> None:
    assert kind.name in WORDS


@pytest.mark.parametrize("code", ["UNKNOWN_OPTION", "JOB_NOT_FOUND", "QUEUE_ERROR", "ARGUMENT_TOO_LARGE"])
def test_each_error_occurs(code: str) -> None:
    assert code in WORDS
