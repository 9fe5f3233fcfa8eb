"""``gearflow token`` makes tokens for servers, and the lines that grant them rights."""

import os
import sys
from pathlib import Path
from typing import Annotated

from gearflow_cli import options, output
from gearflow_cli.errors import CliError, ExitCode, tell
from gearflow_cli.help import Panel
from gearflow_cli.options import argument, how

_HUP = "send HUP to the servers that read it"


def token(
    rights: Annotated[
        str,
        argument(
            Panel.HOW,
            "RIGHTS",
            "What the token allows: view, submit, work, operate or all, or several with commas between them.",
        ),
    ] = "all",
    name: Annotated[
        str, how("--name", "How logs and errors call the token, such as its user.", "TEXT", env=None)
    ] = "",
    add: Annotated[
        Path | None,
        how("--add", "Append the line to this file of a server.", "FILE", env=None),
    ] = None,
    save: Annotated[
        Path | None,
        how("--save", "Write the token to this new file, and do not print it.", "FILE", env=None),
    ] = None,
    given: Annotated[
        bool, how("--hash", "Read a token that you have from standard input, and make none.", env=None)
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Make a token, and the line with its hash for the file of a server.

    Give the token to a client or worker. Put the line into the file that servers read with --token-file.

    Examples:
      gearflow token submit --name "web shop" --add tokens --save shop.token
      gearflow token operate
    """
    from gearflow.protocol.rights import read_rights, right_words
    from gearflow.security.tokens import new_token, token_line

    try:
        granted = read_rights(rights)
    except ValueError as error:
        raise CliError(ExitCode.USAGE, str(error)) from None
    secret = _given() if given else new_token()
    try:
        line = token_line(secret, granted, name.strip())
    except ValueError as error:
        raise CliError(ExitCode.USAGE, str(error)) from None
    if save is not None:
        _write(save, f"{secret}\n", os.O_EXCL)
    if add is not None:
        _append(add, line)
    if as_json:
        made = {} if given or save is not None else {"token": secret}
        output.write_json({**made, "line": line, "rights": right_words(granted), "name": name.strip()})
    elif given or save is None:
        output.write(line if given else secret)
    if add is not None:
        tell(f"added a line to {add}; {_HUP}")
    elif not given and not as_json:
        tell(f"the line for the file of a server (--token-file) is:\n{line}")


def _given() -> str:
    """A token that somebody has already. It is not shown while it is typed."""
    if sys.stdin is not None and sys.stdin.isatty():
        from getpass import getpass

        return getpass("token: ").strip()
    return sys.stdin.readline().strip() if sys.stdin is not None else ""


def _append(file: Path, line: str) -> None:
    """Append a line to the file of a server. Raises CliError if it would not be one of tokens."""
    from gearflow.security.tokens import parse_tokens

    try:
        content = file.read_text(encoding="utf-8-sig") if file.exists() else ""
        start = "\n" if content and not content.endswith("\n") else ""
        parse_tokens(f"{content}{start}{line}", str(file))
    except ValueError as error:
        raise CliError(ExitCode.MISCONFIGURED, f"{error}. No line was added") from None
    _write(file, f"{start}{line}\n", os.O_APPEND)


def _write(file: Path, text: str, flag: int) -> None:
    """Write to a file, which is for its owner alone if it is new. Raises CliError."""
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | flag, 0o600), "w") as opened:
            opened.write(text)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise CliError(ExitCode.IO_ERROR, f"{file} cannot be written: {reason}") from None
