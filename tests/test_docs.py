"""What README and ``docs/`` show is true: code runs, sessions print what they show, tables are complete.

How a block is marked in its first line says what is done with it:

* ```` ```python ```` is a program; it runs by itself, against a server that knows no functions, and prints
  what the block ```` ```output ```` behind it shows, if there is one;
* ```` ```python file=examples/x.py ```` stands in that file, word for word;
* ```` ```console ```` is a session in the directory ``examples``, beside a worker for ``myapp.tasks``: what
  stands behind ``$`` is run, the rest is its output, on both channels; ``...`` stands for anything;
* ```` ```json schema=X ```` is the JSON Schema of the model X of the reserved functions;
* ```` ```sh ```` is not run, for it may install something or never end; its syntax is checked, and the
  options of each ``gearflow`` in it with their values, as in ```` ```ini ````, the unit of a service.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import typer.main
from pydantic import BaseModel

import gearflow.errors
from gearflow.broker.job import TRANSITIONS
from gearflow.broker.rights import FUNCTIONS as RIGHTS
from gearflow.client import SyncClient
from gearflow.observe.findings import CheckName
from gearflow.protocol import group_info, jobs, limits, metrics, schedules, server_calls, workers
from gearflow.protocol.envelope import Envelope
from gearflow.protocol.rights import Right
from gearflow.server import JobServer, ServerSettings
from gearflow.stores.postgres.schema import STEPS
from gearflow.stores.sqlite.schema import version as file_version
from gearflow.tasks.options import CallOptions
from gearflow.worker import RunInfo, WorkerSettings
from gearflow.worker.stats import RunOutcome
from gearflow_cli.app import app
from gearflow_cli.errors import ExitCode
from gearflow_cli.help import HELP_OPTIONS
from tests.conftest import ROOT
from tests.reference import PAGE, SECTIONS, python_page

PATIENCE = 60.0  # seconds
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = ROOT / "examples"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    info: str  # what stands behind the fence
    text: str
    output: str | None  # of the block "output" behind it

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


_FENCED = re.compile(r"^```(\S[^\n]*)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text()
        output = None
        for match in reversed(list(_FENCED.finditer(text))):
            line = text.count("\n", 0, match.start()) + 1
            yield Block(page, line, match[1] or "", match[2], output)
            output = match[2] if match[1] == "output" else None


BLOCKS = list(_blocks())


def blocks(language: str, *, marked: str = "") -> list[Any]:
    """The blocks of a language as parameters of a test, those whose mark begins so."""
    return [
        pytest.param(block, id=block.place)
        for block in BLOCKS
        if block.language == language
        and block.info.removeprefix(language).strip().partition("=")[0] == marked
    ]


# --------------------------------------------------------------------------------------------- the code


def test_every_block_says_what_it_is() -> None:
    known = {"python", "console", "sh", "output", "text", "json", "php", "perl", "c", "ini"}
    assert [block.place for block in BLOCKS if block.language not in known] == []


@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs_and_prints_what_is_shown(block: Block, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(block.text)
    with JobServer(port=0) as server:
        done = subprocess.run(
            [sys.executable, str(program)],
            cwd=tmp_path,
            env=_environment(server.address),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert done.returncode == 0, done.stderr
    if block.output is not None:
        assert done.stdout == block.output


@pytest.mark.parametrize("block", blocks("python", marked="file"))
def test_python_that_stands_in_a_file_is_as_there(block: Block) -> None:
    file = ROOT / block.info.partition("=")[2]
    assert block.text in file.read_text()


# -------------------------------------------------------------------------------------------- the shell


@contextmanager
def _worker(address: str) -> Generator[None]:
    """A worker for ``myapp.tasks``, from before the block until after it."""
    command = [sys.executable, "-m", "gearflow_cli", "worker", "myapp.tasks", "-s", address]
    with subprocess.Popen(command, cwd=EXAMPLES, stderr=subprocess.DEVNULL) as process:
        try:
            with SyncClient([address]) as client:
                client.submit("myapp.tasks.add", b'{"a": 1, "b": 2}').result(PATIENCE)
            yield
        finally:
            process.terminate()


@pytest.fixture
def at_work() -> Iterator[str]:
    """The address of a server that has a worker for ``myapp.tasks``, and no jobs."""
    with JobServer(port=0) as server, _worker(server.address):
        yield server.address


def _environment(address: str) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("GEARFLOW_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{mine['PATH']}"
    return mine | {"PATH": path, "GEARMAN_SERVERS": address, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


_BETWEEN = "--- the output of the next command ---"


@pytest.mark.parametrize("block", blocks("console"))
def test_a_session_prints_what_it_shows(block: Block, at_work: str, program: Callable[[str], str]) -> None:
    commands, expected = _session(block.text)
    if any("gearman -" in command for command in commands):
        program("gearman")  # else this is skipped
    host, port = at_work.split(":")  # without these, gearman asks the default port as well
    gearman = f'gearman() {{ command gearman -h {host} -p {port} "$@"; }}'
    script = gearman + "".join(
        f"\n_code=$?; echo '{_BETWEEN}'; (exit $_code); {command}" for command in commands
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=EXAMPLES,
        env=_environment(at_work),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    _, *outputs = done.stdout.split(f"{_BETWEEN}\n")
    for command, shown, output in zip(commands, expected, outputs, strict=True):
        pattern = re.escape(shown).replace(re.escape("..."), ".*")
        assert re.fullmatch(pattern, output, re.DOTALL), f"{command}\nprints\n{output}\nnot\n{shown}"


def _session(text: str) -> tuple[list[str], list[str]]:
    """The commands of a session, and what each of them prints."""
    _, *parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    commands, outputs = zip(*(part.split("\n", 1) for part in parts), strict=True)
    return list(commands), list(outputs)


@pytest.mark.parametrize("block", blocks("sh"))
def test_shell_code_is_well_formed(block: Block) -> None:
    done = subprocess.run(["bash", "-n", "-c", block.text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _commands(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """The commands of ``gearflow`` by name, also those below a command: ``dead list``."""
    for name, command in group.commands.items():
        yield f"{above}{name}", command
        if hasattr(command, "commands"):
            yield from _commands(command, f"{above}{name} ")


COMMANDS = dict(_commands(typer.main.get_command(app)))
OPTIONS = {
    name: {option for parameter in command.params for option in parameter.opts if option[0] == "-"}
    for name, command in COMMANDS.items()
}
_CALL = re.compile(r"(?:^|[;&|`] ?)\s*gearflow ([a-z]\w*)([^`|;&#\n]*)", re.MULTILINE)


def _code_only(text: str) -> str:
    """The blocks and the inline code of a page. Prose is left out: a sentence may begin with ``gearflow``."""
    spans = [" ".join(span.split()) for span in _code(_FENCED.sub("", text))]
    return "\n".join([*spans, *(match[2] for match in _FENCED.finditer(text))])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_gearflow_command_and_option_that_is_shown_exists(page: Path) -> None:
    for command, rest in _CALL.findall(_code_only(page.read_text()).replace("$ gearflow", "; gearflow")):
        assert command in COMMANDS, f"gearflow {command}"
        below = f"{command} {rest.split()[0]}" if rest.strip() else ""
        command = below if below in COMMANDS else command
        given = {word.partition("=")[0] for word in shlex.split(rest) if re.match(r"--?[a-zA-Z]", word)}
        assert given <= OPTIONS[command] | {*HELP_OPTIONS}, f"gearflow {command}{rest}"


@pytest.mark.parametrize("block", [*blocks("sh"), *blocks("ini")])
def test_every_gearflow_command_that_is_shown_can_be_read(block: Block) -> None:
    text = re.sub(r"\$\([^)]*\)", "substituted", block.text.replace("\\\n", ""))
    text = re.sub(r"^ExecStart=\S+/gearflow", "gearflow", text, flags=re.MULTILINE)
    for command, rest in _CALL.findall(text):
        words = shlex.split(rest)
        if words and f"{command} {words[0]}" in COMMANDS:
            command = f"{command} {words.pop(0)}"
        COMMANDS[command].make_context(command, words)  # raises what the program would; runs nothing


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_nothing_that_would_be_taken_for_markup_and_left_out(command: str) -> None:
    texts = [parameter.help or "" for parameter in COMMANDS[command].params]
    assert [text for text in texts if "[" in text] == []


# --------------------------------------------------------------------------------------- reserved functions


MODELS = {
    name: model
    for module in (server_calls, group_info, jobs, limits, metrics, schedules, workers)
    for name, model in vars(module).items()
    if isinstance(model, type) and issubclass(model, BaseModel) and model.model_fields
}


def _schema_of(model: type[BaseModel]) -> Any:
    """The JSON Schema of a model as the page shows it: see there."""
    schema = model.model_json_schema()
    del schema["title"]
    schema.pop("description", None)  # is in the text
    models: dict[str, Any] = schema.pop("$defs", {})  # are on the page as well, but for enums
    enums = {f"#/$defs/{name}": kind for name, kind in models.items() if "enum" in kind}

    def inlined(node: dict[str, Any]) -> dict[str, Any]:
        if (kind := enums.get(str(node.get("$ref")))) is None:
            return node
        del node["$ref"]
        return {"type": kind["type"], "enum": kind["enum"], **node}

    return _shown(json.loads(json.dumps(schema), object_hook=inlined))


def _shown(schema: Any) -> Any:
    """Without titles; a key that need not be there has the schema of its value."""
    match schema:
        case {"anyOf": [kind, {"type": "null"}], "default": None, **more}:
            return _shown({**kind, **more})
        case dict():
            found = cast("dict[str, Any]", schema)
            shown = {name: _shown(value) for name, value in found.items()}
            if isinstance(found.get("title"), str):
                del shown["title"]
            if isinstance(found.get("description"), str):
                shown["description"] = " ".join(found["description"].split())
            return shown
        case list():
            return [_shown(value) for value in cast(Any, schema)]
        case _:
            return schema


@pytest.mark.parametrize("block", blocks("json", marked="schema"))
def test_a_schema_that_is_shown_is_that_of_the_model(block: Block) -> None:
    expected = _schema_of(MODELS[block.info.partition("=")[2]])
    assert json.loads(block.text) == expected, f"it should be\n{json.dumps(expected, indent=2)}"


def test_the_reference_has_the_schema_of_each_request_and_answer_once() -> None:
    shown = [block.info.partition("=")[2] for block in BLOCKS if block.info.startswith("json schema=")]
    assert sorted(shown) == sorted(MODELS)


def test_the_reference_has_every_reserved_function() -> None:
    page = reference("reserved-functions")
    with JobServer(port=0) as server, SyncClient([server.address]) as client:
        info = server_calls.ServerInfo.model_validate_json(
            client.call_reserved(server_calls.INFO, server_calls.InfoRequest())
        )
    assert sorted(re.findall(r"^## (gearflow:\w+)$", page, re.MULTILINE)) == sorted(info.functions)
    listed = re.findall(r"^\| \[`(gearflow:\w+)`\]", page, re.MULTILINE)
    assert sorted(listed) == sorted(info.functions)


def test_the_table_of_rights_is_that_of_the_broker() -> None:
    columns = (Right.VIEW, Right.SUBMIT, Right.WORK, Right.OPERATE)
    named: set[bytes] = set()
    for what, *cells in re.findall(
        r"^\| ([^|]*`gearflow:[^|]*) \|(.*?)\|(.*?)\|(.*?)\|(.*?)\|$",
        section(reference("server"), "## Rights"),
        re.MULTILINE,
    ):
        allowed = {right for right, cell in zip(columns, cells, strict=True) if cell.strip() == "yes"}
        functions = [name.encode() for name in _code(what) if name.startswith("gearflow:")]
        named.update(functions)
        if not re.search(r" with | about | actions ", what):  # else the request decides
            for name in functions:
                assert allowed == {each for each in columns if RIGHTS[name] & _included(each)}, name
    assert named == set(RIGHTS)


def _included(right: Right) -> Right:
    return right | Right.VIEW if right is Right.OPERATE else right


def test_the_reference_has_every_fault_and_every_state() -> None:
    page = reference("reserved-functions")
    faults = section(page, "### Faults")
    assert first_column(faults) == _values(server_calls.Fault, "type")
    states = first_column(section(page, "## gearflow:info"))
    assert states == _values(server_calls.JobInfo, "state")


def _values(model: type[BaseModel], field: str) -> list[str]:
    values: list[str] = model.model_json_schema()["properties"][field]["enum"]
    return values


def test_the_reference_has_every_key_of_an_envelope() -> None:
    (block,) = (block for block in BLOCKS if block.info == "json envelope")
    shown = set(json.loads(block.text)["properties"])
    assert shown == {field.name for field in fields(Envelope)} | {"raw", "earlier"}


# ------------------------------------------------------------------------------------- links and tables


_LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target), link


def test_every_picture_is_shown_small_and_described() -> None:
    shown: set[Path] = set()
    for page in PAGES:
        for description, file in re.findall(r"!\[(.*?)\]\((.*?)\)", _FENCED.sub("", page.read_text())):
            assert len(description.split()) > 3, f"{page.name}: {file}"
            shown.add((page.parent / file).resolve())
    pictures = {ROOT / "docs" / "terminal.svg", *(ROOT / "docs" / "pictures").iterdir()}
    assert {file.name for file in pictures - shown} == set()
    assert {file.name for file in pictures if file.stat().st_size > 150_000} == set()


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def reference(name: str) -> str:
    return (ROOT / "docs" / "reference" / f"{name}.md").read_text()


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its level."""
    level = heading.split(" ")[0]
    _, found, rest = f"\n{text}".partition(f"\n{heading}\n")
    assert found, heading
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def first_column(text: str) -> list[str]:
    """The code in the first column of a table."""
    return [name for row in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE) for name in _code(row)]


def _code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_reference_has_every_option_of_a_command(command: str) -> None:
    level = "###" if " " in command else "##"
    own_part = section(reference("command-line"), f"{level} gearflow {command}").partition("\n### ")[0]
    shown = first_column(own_part)
    if "--tls" in OPTIONS[command]:  # it talks to servers
        shown += first_column(section(reference("command-line"), "## TLS and token"))
    options = {word for name in shown for word in name.split() if word.startswith("-")} - {"--no-tls"}
    assert options == OPTIONS[command] - {*HELP_OPTIONS}


VARIABLES = {
    (name, parameter.opts[0]): parameter.envvar
    for name, command in COMMANDS.items()
    for parameter in command.params
    if parameter.opts[0].startswith("--") and parameter.name != "help"
}


def test_the_reference_has_every_option_without_a_variable() -> None:
    rows = re.findall(
        r"^\| (`--.+) \|.*\|$", section(reference("command-line"), "## Environment"), re.MULTILINE
    )
    shown = {word for row in rows for word in _code(row) if word.startswith("--")}
    assert shown == {option for (_, option), variable in VARIABLES.items() if variable is None}
    lacking = {
        name for (name, option), variable in VARIABLES.items() if (option, variable) == ("--function", None)
    }
    assert lacking == {"jobs", "dead list", "dead replay", "dead purge", "limit list"}


def test_the_reference_has_every_variable_with_a_name_of_its_own() -> None:
    text = section(reference("command-line"), "## Environment")
    own = {
        variable
        for (_, option), variable in VARIABLES.items()
        if variable not in (None, f"GEARFLOW_{option[2:].upper().replace('-', '_')}")
    }
    assert own == {
        word for word in _code(text) if re.fullmatch(r"GEARMAN_\w+|GEARFLOW_((SERVER|WEB)_\w+|TASKS)", word)
    }


def test_a_variable_means_the_same_to_all_commands() -> None:
    meanings: dict[str, set[str]] = {}
    for command in COMMANDS.values():
        for parameter in command.params:
            if parameter.envvar is not None:
                meanings.setdefault(parameter.envvar, set()).add(parameter.help)
    several = {variable for variable, texts in meanings.items() if len(texts) > 1}
    # a module is a module; who wants a token, and who tells it, have to have the same; so with new code
    assert several == {"GEARFLOW_TASKS", "GEARFLOW_TOKEN_FILE", "GEARFLOW_RELOAD"}


def test_the_reference_has_every_command() -> None:
    shown = re.findall(r"^##+ gearflow ([\w ]+)$", reference("command-line"), re.MULTILINE)
    assert sorted(shown) == sorted(COMMANDS)


def test_the_reference_has_every_exit_code() -> None:
    shown = first_column(section(reference("command-line"), "## Exit codes"))
    assert [int(code) for code in shown if code.isdigit()] == [int(code) for code in ExitCode]


def test_the_reference_has_every_setting_of_the_server_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)`", section(reference("server"), "## Settings"), re.MULTILINE)
    assert rows == [(name, repr(field.default)) for name, field in ServerSettings.model_fields.items()]


def test_the_reference_has_every_setting_of_the_worker_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)`", section(reference("worker"), "## Settings"), re.MULTILINE)
    assert [name for name, _ in rows] == list(WorkerSettings.model_fields)
    assert [(name, default) for name, default in rows if name != "client_id"] == [
        (name, repr(field.default))
        for name, field in WorkerSettings.model_fields.items()
        if field.default_factory is None
    ]


def test_the_reference_has_every_field_of_a_run() -> None:
    shown = first_column(section(reference("worker"), "## RunInfo"))
    assert shown == [field.name for field in fields(RunInfo)]


def test_the_how_to_has_every_outcome_of_a_run() -> None:
    page = (ROOT / "docs" / "how-to" / "logging.md").read_text()
    shown = [message for message in first_column(page) if message.startswith("job ")]
    assert sorted(shown) == sorted(f"job {outcome}" for outcome in RunOutcome)


def test_the_how_to_has_every_check_of_the_doctor() -> None:
    page = (ROOT / "docs" / "how-to" / "check-servers.md").read_text()
    assert first_column(section(page, "## Checks")) == list(get_args(CheckName))


def test_the_reference_has_every_option_of_a_call() -> None:
    assert set(first_column(section(reference("tasks"), "## Options"))) == set(CallOptions.__annotations__)


def test_the_reference_has_every_error() -> None:
    assert sorted(first_column(reference("errors"))) == sorted(gearflow.errors.__all__)


def test_the_python_reference_says_what_the_docstrings_say() -> None:
    assert PAGE.read_text() == python_page(), "write it again with: python -m tests.reference"


def test_the_python_reference_explains_everything() -> None:
    empty = [line for line in python_page().splitlines() if line.startswith("|") and "|  |" in line]
    assert empty == []


@pytest.mark.parametrize(
    "package",
    [
        "gearflow",
        "gearflow.client",
        "gearflow.errors",
        "gearflow.server",
        "gearflow.tasks",
        "gearflow.worker",
    ],
)
def test_the_python_reference_has_every_public_name(package: str) -> None:
    listed = {name: section.package for section in SECTIONS for name in section.names}
    module = import_module(package)
    for name in module.__all__:
        assert name in listed, name
        assert getattr(import_module(listed[name]), name) is getattr(module, name), name


def test_the_how_to_has_the_versions_of_what_is_kept() -> None:
    page = (ROOT / "docs" / "how-to" / "run-the-server.md").read_text()
    found = re.search(r"files of version (\d+), and tables of version (\d+)", page)
    assert found is not None
    assert [int(number) for number in found.groups()] == [file_version(), len(STEPS)]


def test_the_states_of_a_job_are_those_of_the_broker() -> None:
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`\w+`) \|.*\|(.*)\|$", section(page, "## The life of a job"), re.MULTILINE)
    shown = {_code(state)[0]: set(_code(following)) for state, following in rows}
    assert shown == {state.name: {step.name for step in steps} for state, steps in TRANSITIONS.items()}


def test_the_code_map_has_every_folder() -> None:
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text()
    assert sorted(_mapped(section(page, "## Code map"))) == sorted(_folders())


def test_the_modules_that_are_named_exist() -> None:
    for page in (ROOT / "docs" / "explanation").glob("*.md"):
        for name in _code(_FENCED.sub("", page.read_text())):
            package = name.partition("/")[0]
            if re.fullmatch(r"[a-z_]+(/[a-z_]+)+(\.py|/)?", name) and (ROOT / "gearflow" / package).is_dir():
                module = ROOT / "gearflow" / name.removesuffix(".py")
                assert module.is_dir() or module.with_suffix(".py").exists(), f"{page.name}: {name}"


def _mapped(text: str) -> Iterator[str]:
    """The paths of the folders in a listing that is indented by folder."""
    parents: list[tuple[int, str]] = []
    for indent, name in re.findall(r"^( *)([\w/]+/)(?: |$)", text, re.MULTILINE):
        while parents and parents[-1][0] >= len(indent):
            parents.pop()
        parents.append((len(indent), name))
        yield "".join(parent for _, parent in parents)


def _folders() -> Iterator[str]:
    """The packages, with a slash behind each."""
    for package in ("gearflow", "cli/gearflow_cli"):
        for module in (ROOT / package).rglob("__init__.py"):
            yield f"{module.parent.relative_to(ROOT)}/"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_of_the_checkout_that_is_named_exists(page: Path) -> None:
    for name in _code(_FENCED.sub("", page.read_text())):
        if re.fullmatch(r"(tests|docs|cli|\.ci)/[\w/.-]+", name):
            assert (ROOT / name).exists(), name
