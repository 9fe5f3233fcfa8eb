"""``gearflow token``, and what its tokens allow in the shell."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gearflow.protocol.rights import Right
from gearflow.security.tokens import read_tokens, token_line
from gearflow_cli.app import app
from tests.authority import Authority
from tests.cli.shell import Shell


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loggers_as_before: None) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {**os.environ})
    return CliRunner()


def test_a_new_token_has_all_rights_if_none_are_named(run: CliRunner) -> None:
    made = run.invoke(app, ["token"])
    token = made.stdout.strip()
    assert re.fullmatch("[0-9a-f]{64}", token)
    line = made.stderr.splitlines()[-1]
    assert made.stderr == f"gearflow: the line for the file of a server (--token-file) is:\n{line}\n"
    assert line == token_line(token)


def test_lines_are_added_to_the_file_of_a_server(run: CliRunner) -> None:
    shop = run.invoke(app, ["token", "submit", "--name", "web shop", "--add", "tokens"])
    Path("tokens").write_text(Path("tokens").read_text().rstrip())  # as an editor may leave it
    worker = run.invoke(app, ["token", "submit,work", "--add", "tokens"])
    assert "added a line to tokens; send HUP to the servers that read it" in worker.stderr
    tokens = read_tokens("tokens")
    found = [tokens.find(made.stdout.strip().encode()) for made in (shop, worker)]
    assert [(grant.rights, grant.name) for grant in found if grant] == [
        (Right.SUBMIT, "web shop"),
        (Right.SUBMIT | Right.WORK, ""),
    ]
    assert Path("tokens").stat().st_mode & 0o777 == 0o600
    assert shop.stdout.strip() not in Path("tokens").read_text()


def test_a_token_that_somebody_has_is_hashed(run: CliRunner) -> None:
    hashed = run.invoke(app, ["token", "operate", "--hash"], input="a token of my own\n")
    assert hashed.stdout == f"{token_line('a token of my own', Right.OPERATE)}\n"
    assert hashed.stderr == ""


def test_a_token_as_json(run: CliRunner) -> None:
    made = json.loads(run.invoke(app, ["token", "operate,view", "--name", "x", "--json"]).stdout)
    assert made == {
        "token": made["token"],
        "line": token_line(made["token"], Right.OPERATE | Right.VIEW, "x"),
        "rights": ["operate"],
        "name": "x",
    }


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["purge"], 2, "there is no right 'purge'; there are view, submit, work, operate, all"),
        (["view", "--hash"], 2, "the token has less than 16 characters"),
        (["view", "--name", "two\nlines"], 2, "the name of a token has characters that can be printed"),
        (["view", "--add", "bare"], 78, "Write all: before a token for everything. No line was added"),
        (["view", "--add", "none/tokens"], 74, "none/tokens cannot be written: no such file or directory"),
        (["view", "--save", "bare"], 74, "bare cannot be written: file exists"),
    ],
)
def test_what_is_wrong_is_told_and_changes_nothing(
    run: CliRunner, options: list[str], code: int, told: str
) -> None:
    Path("bare").write_text("a bare token\n")
    ended = run.invoke(app, ["token", *options], input="short\n")
    assert (ended.exit_code, ended.stdout) == (code, "")
    assert told in ended.stderr
    assert Path("bare").read_text() == "a bare token\n"


# ----------------------------------------------------------------------------------------- with a server


@pytest.fixture(params=["plain", "tls"])
def options(request: pytest.FixtureRequest, authority: Authority, tmp_path: Path) -> list[str]:
    """The options of a server, with and without TLS."""
    return ["--tls-cert", str(authority.server)] if request.param == "tls" else []


def test_each_token_does_what_it_may_until_hup_takes_it_away(
    run: CliRunner, options: list[str], authority: Authority, tmp_path: Path
) -> None:
    for rights in ("submit", "view", "operate"):
        made = run.invoke(
            app, ["token", rights, "--name", f"the {rights}", "--add", "tokens", "--save", rights]
        )
        assert (made.exit_code, made.stdout, Path(rights).stat().st_mode & 0o777) == (0, "", 0o600)
    arguments = ["--memory", "-p", "0", "--token-file", "tokens", "--log-level", "info", *options]
    with Shell(tmp_path).start("server", *arguments) as server:
        found = re.search(r"listens on (\S+) and wants (TLS, )?the token; ", server.until("listens on"))
        assert found is not None
        known = ["-s", found[1], *(["--tls-ca", str(authority.ca)] if options else [])]

        def code(*arguments: str, token: str) -> tuple[int, str]:
            os.environ.pop("GEARFLOW_TOKEN_FILE", None)
            ended = run.invoke(app, [*arguments, *known, "--token-file", token])
            return ended.exit_code, ended.stderr

        assert code("submit", "a.new", "--bg", token="submit")[0] == 0
        assert code("status", token="view")[0] == 0
        assert code("pause", "a.new", token="operate")[0] == 0
        for arguments, token in (
            (["submit", "a.new", "--bg"], "view"),
            (["pause", "a.new"], "submit"),
            (["purge", "a.new", "--yes"], "view"),
        ):
            exit_code, told = code(*arguments, token=token)
            assert (exit_code, f"the token of this connection has: {token}" in told) == (69, True), told
        text = Path("tokens").read_text()
        Path("tokens").write_text(text.replace("submit:", "# submit:"))
        server.signal(signal.SIGHUP)
        server.until("reloaded the tokens")
        assert "it does not accept our token" in code("submit", "a.new", "--bg", token="submit")[1]
        assert code("status", token="view")[0] == 0
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0
