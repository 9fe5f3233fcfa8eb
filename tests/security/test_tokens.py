"""The files of tokens: what their lines grant, what is no such file, and that nothing shows a token."""

import re
from pathlib import Path

import pytest

from gearflow.protocol.rights import ALL, NO_RIGHT, Grant, Right, Tokens, digest_of, read_rights, rights_text
from gearflow.security.tokens import (
    BadTokens,
    exposed,
    new_token,
    parse_tokens,
    read_token,
    read_tokens,
    token_line,
)

TOKEN = "0123456789abcdef"
OTHER = "fedcba9876543210"


def rights_of(content: str, token: str = TOKEN) -> Right:
    """What a token may do according to a file of that content."""
    grant = parse_tokens(content, "FILE").find(token.encode())
    return grant.rights if grant else NO_RIGHT


@pytest.mark.parametrize(
    ("words", "rights"),
    [
        ("view", Right.VIEW),
        ("submit", Right.SUBMIT),
        ("work", Right.WORK),
        ("submit,work", Right.SUBMIT | Right.WORK),
        ("operate", Right.OPERATE | Right.VIEW),
        ("all", ALL),
    ],
)
def test_a_line_gives_a_token_the_rights_before_it(words: str, rights: Right) -> None:
    assert rights_of(f"{words}:{TOKEN}") == rights
    assert rights_of(f"{words}:{TOKEN}", OTHER) == NO_RIGHT
    assert rights_of(token_line(TOKEN, rights, "web shop")) == rights
    assert rights_text(rights) == words


def test_all_rights_one_by_one_are_all() -> None:
    assert read_rights("submit,work,operate") == ALL
    assert rights_text(read_rights("view,operate")) == "operate"


@pytest.mark.parametrize("content", [TOKEN, f"\n  {TOKEN} \n\n", f"# the token\r\n{TOKEN}\r\n"])
def test_a_token_alone_has_all_rights(content: str) -> None:
    assert rights_of(content) == ALL


def test_a_hash_alone_has_all_rights() -> None:
    assert rights_of(f"sha256:{digest_of(TOKEN.encode()).hex()}") == ALL


@pytest.mark.parametrize("token", ["open sesame, 32 thieves", "what:ever", "submitter:x", "a#b"])
def test_a_token_alone_may_have_any_characters_that_can_be_printed(token: str) -> None:
    assert rights_of(token, token) == ALL


def test_each_line_is_a_token_of_its_own() -> None:
    content = f"# comment\n\nsubmit:{TOKEN}  web shop \n{token_line(OTHER, Right.WORK)}\n"
    tokens = parse_tokens(content, "FILE")
    assert [(grant.rights, grant.name) for grant in tokens] == [(Right.SUBMIT, "web shop"), (Right.WORK, "")]
    assert [str(grant) for grant in tokens] == ["submit (web shop)", "work"]
    assert rights_of(content, OTHER) == Right.WORK


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "there is no token in FILE"),
        ("# all of them\n\n", "there is no token in FILE"),
        (f"submit:{TOKEN}\n{OTHER}", "line 2 of FILE is not RIGHTS:TOKEN NAME"),
        (f"submit:{TOKEN}\nview,purge:{OTHER}", "line 2 of FILE is not RIGHTS:TOKEN NAME"),
        (f"submit:{TOKEN}\nview: {OTHER}", "line 2 of FILE is not RIGHTS:TOKEN NAME"),
        (f"sumbit:sha256:{'0' * 64}", "line 1 of FILE is not RIGHTS:TOKEN NAME"),
        ("submit:sha256:0123", "line 1 of FILE: the token has a damaged hash"),
        (f"submit:sha256:{'A' * 64}", "line 1 of FILE: the token has a damaged hash"),
        (f"submit:{'x' * 1025}", "line 1 of FILE: the token has 1025 bytes"),
        (f"submit:{TOKEN} tab\tname", "line 1 of FILE: the name has characters that cannot be printed"),
        (f"submit:{TOKEN} shop\n{token_line(TOKEN, Right.WORK)}", "as submit (shop), and as work"),
    ],
)
def test_a_file_that_grants_no_clear_rights_is_refused_and_not_shown(content: str, fault: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)) as refused:
        parse_tokens(content, "FILE")
    for secret in (TOKEN, OTHER, "0" * 64, "x" * 1025):
        assert secret not in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTokens, match=re.escape("none cannot be read: no such file or directory")):
        read_tokens(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(BadTokens, match="it is not UTF-8"):
        read_tokens(tmp_path / "bytes")


def test_the_mark_that_some_editors_put_before_a_file_is_no_part_of_it(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"submit:{TOKEN}\n", encoding="utf-8-sig", newline="\r\n")
    assert [grant.rights for grant in read_tokens(file)] == [Right.SUBMIT]
    file.write_text(TOKEN, encoding="utf-8-sig")
    assert read_token(file) == TOKEN


@pytest.mark.parametrize(
    ("mode", "line", "misuse"),
    [
        (0o600, TOKEN, ""),
        (0o644, TOKEN, "can read the tokens"),
        (0o644, token_line(TOKEN), ""),
        (0o666, token_line(TOKEN), "can change it"),
    ],
)
def test_a_file_that_everybody_can_misuse_is_known(tmp_path: Path, mode: int, line: str, misuse: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# the tokens\n{line}\n")
    file.chmod(mode)
    assert misuse in exposed(file)
    assert bool(exposed(file)) == bool(misuse)
    assert not exposed(tmp_path / "none")


def test_a_client_reads_a_token_and_not_the_file_of_a_server(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"# of the web shop\n{TOKEN}\n")
    assert read_token(file) == TOKEN
    for content in (f"submit:{TOKEN}", token_line(TOKEN), f"# two\nview:{TOKEN}\nwork:{OTHER}"):
        file.write_text(content)
        with pytest.raises(ValueError, match="this is the file of a server"):
            read_token(file)


def test_a_new_token_is_long_and_another_each_time() -> None:
    assert len({new_token() for _ in range(10)}) == 10
    assert len(new_token()) == 64


def test_a_line_has_no_token_in_it_and_no_token_that_could_be_guessed() -> None:
    assert TOKEN not in token_line(TOKEN, Right.VIEW, "name")
    for token, name in ((TOKEN[:15], ""), ("", ""), (TOKEN, "two\nlines"), (TOKEN, " ")):
        with pytest.raises(ValueError, match=r"16 characters|is empty|no blanks"):
            token_line(token, Right.VIEW, name)


def test_a_token_is_found_by_itself_alone() -> None:
    tokens = Tokens.of(TOKEN.encode())
    assert tokens.find(TOKEN.encode()) is not None
    for other in ("", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), digest_of(TOKEN.encode()).hex()):
        assert tokens.find(other.encode()) is None
    assert "digest" not in repr(Grant(b"digest"))
