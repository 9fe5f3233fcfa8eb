"""What empty pages teach is true: their code runs, and their commands exist."""

import re
from collections.abc import Iterator
from html import unescape
from typing import Final

import pytest
import typer.main

import gearflow
from gearflow_cli.app import app
from tests.conftest import ROOT

TEMPLATES: Final = sorted((ROOT / "gearflow" / "web" / "templates").glob("*.html"))
COMMANDS: Final = typer.main.get_command(app)


def lessons(beginning: str) -> Iterator[str]:
    """The examples of all templates that begin in this way."""
    for template in TEMPLATES:
        for example in re.findall(r"<pre>(.*?)</pre>", template.read_text(), re.DOTALL):
            if example.startswith(beginning):
                yield unescape(example)


@pytest.mark.parametrize("example", [*lessons("@task")])
def test_the_code_of_an_empty_page_declares_a_task(example: str) -> None:
    known = {name: getattr(gearflow, name) for name in gearflow.__all__}
    exec(example, {"__name__": "lesson", **known})


@pytest.mark.parametrize("line", [line for example in lessons("gearflow ") for line in example.splitlines()])
def test_the_commands_of_an_empty_page_exist(line: str) -> None:
    names = getattr(COMMANDS, "commands")  # noqa: B009  (of a group of commands)
    words = line.split()
    assert words[1] in names
    groups = getattr(names[words[1]], "commands", None)
    assert groups is None or not words[2:] or words[2] in groups


def test_there_are_lessons() -> None:
    assert len([*lessons("@task")]) == 2
    assert len([*lessons("gearflow ")]) > 5
