"""The help of every command: short, in one order, and with examples that are right."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from gearflow_cli.app import app
from gearflow_cli.help import HELP_OPTIONS, Panel

ROOT: Any = typer.main.get_command(app)
MOST_LINES = 54
MOST_LINES_OF_ALL = 66


def _commands(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{above}{name}", command
        if hasattr(command, "commands"):
            yield from _commands(command, f"{above}{name} ")


COMMANDS = {"": ROOT, **dict(_commands(ROOT))}
PARAMETERS = [parameter for name, command in COMMANDS.items() if name for parameter in command.params]
every_command = pytest.mark.parametrize("command", COMMANDS)


def shown(command: str, option: str = "--help", columns: int = 100) -> list[str]:
    """The lines of a help."""
    ended = CliRunner().invoke(app, [*command.split(), option], env={"COLUMNS": str(columns)})
    assert ended.exit_code == 0, ended.output
    return [line.rstrip() for line in ended.stdout.splitlines()]


def commands_of(lines: list[str]) -> list[str]:
    """The examples in a help."""
    return [line.strip() for line in lines if line.startswith("   gearflow ")]


@every_command
@pytest.mark.parametrize("option", HELP_OPTIONS)
def test_every_help_fits_on_a_screen(command: str, option: str) -> None:
    lines = shown(command, option)
    assert len(lines) <= (MOST_LINES if option != "--help-all" else MOST_LINES_OF_ALL)
    assert max(map(len, lines)) <= 100


@every_command
def test_a_help_starts_with_the_purpose_and_two_examples(command: str) -> None:
    _, usage, _, purpose, *rest = shown(command)
    assert re.match(r" Usage: gearflow\b", usage)
    assert re.fullmatch(r" [A-Z][^.]*\..*", purpose)
    before, panel, _ = "\n".join(rest).partition("╭")
    assert panel
    assert len(commands_of(before.splitlines())) == 2


@every_command
def test_the_examples_of_a_help_can_be_read(command: str) -> None:
    for example in commands_of(shown(command)):
        _, *words = shlex.split(example.partition("   ")[0])
        name = next(name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS)
        assert name.startswith(command)
        COMMANDS[name].make_context(name, words[len(name.split()) :])  # raises what the program would


@every_command
def test_only_the_long_help_has_the_options_for_tls_and_the_token(command: str) -> None:
    assert not any(re.match(r"│.* --(tls|token)", line) for line in shown(command))
    tls = {
        parameter.opts[0] for parameter in COMMANDS[command].params if parameter.rich_help_panel == Panel.TLS
    }
    long = "\n".join(shown(command, "--help-all"))
    assert tls <= set(re.findall(r"--[\w-]+", long))
    assert ("--help-all also shows" in "\n".join(shown(command))) is bool(tls)


@every_command
def test_variables_stand_on_one_line_at_the_end(command: str) -> None:
    lines = [line for line in shown(command) if line]
    has_variables = any(parameter.envvar for parameter in COMMANDS[command].params)
    assert lines[-1].startswith(" Environment: ") is has_variables
    assert not any("GEARFLOW_" in line or "GEARMAN_" in line for line in lines[:-1])


@every_command
def test_the_values_of_options_have_names_that_are_words(command: str) -> None:
    assert not re.search(r"<\w+>|<int|list\[|_None_| None\b", "\n".join(shown(command, "--help-all")))


def test_a_usage_names_arguments_as_the_help_does() -> None:
    assert " Usage: gearflow watch [OPTIONS] HANDLE..." in shown("watch")
    wrong = CliRunner().invoke(app, ["watch"])
    assert (wrong.exit_code, wrong.stderr.splitlines()[0]) == (2, "Usage: gearflow watch [OPTIONS] HANDLE...")


def test_every_option_has_a_group_and_a_sentence() -> None:
    for parameter in PARAMETERS:
        assert parameter.rich_help_panel in set(Panel), parameter.opts
        assert parameter.help.endswith("."), parameter.opts


def test_a_value_name_means_one_thing() -> None:
    readers: dict[str, set[str]] = {}
    for parameter in PARAMETERS:
        kind: Any = getattr(parameter, "type_descriptor", None) or parameter.type
        name = f"{parameter.metavar}{'' if parameter.nargs == 1 else '...'}"
        readers.setdefault(name, set()).add(str(getattr(kind, "annotation", kind)))
    assert len(readers["DURATION"]) == len(readers["TIME"]) == len(readers["HANDLE"]) == 1
    assert readers["DURATION"] != readers["TIME"]


def test_commands_are_in_panels() -> None:
    text = "\n".join(shown(""))
    panels = re.findall(r"^╭─ (\w+) ─+╮\n((?:│.*│\n)+)", text, re.MULTILINE)
    names = {title: re.findall(r"^│ (\w+)", rows, re.MULTILINE) for title, rows in panels}
    assert names["Run"] == ["dev", "server", "worker"]
    assert names["Jobs"] == ["submit", "map", "result", "watch", "job", "cancel", "edit"]
    assert names["Operate"] == [
        "status",
        "top",
        "web",
        "doctor",
        "jobs",
        "workers",
        "dead",
        "cron",
        "pause",
        "resume",
        "purge",
        "limit",
        "policy",
        "tasks",
        "token",
    ]
