"""The options of TLS and the token, which all commands share that talk to servers.

Each says the same as an environment variable, and so sets it. Whatever the command starts finds it there:
clients, workers, and their processes.
"""

import inspect
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gearflow_cli.exits import ExitCode, Failure

_PANEL: Final = "TLS and token"


def _file(name: str, what: str) -> Any:
    return typer.Option(
        f"--{name}",
        metavar="FILE",
        envvar=f"GEARFLOW_{name.upper().replace('-', '_')}",
        help=what,
        rich_help_panel=_PANEL,
    )


def _options(
    *,
    tls: Annotated[
        bool | None,
        typer.Option(
            "--tls/--no-tls",
            envvar="GEARFLOW_TLS",
            show_default="no, unless another option of TLS is given",
            help="Speak TLS with servers.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    tls_ca: Annotated[
        Path | None, _file("tls-ca", "Trust the authorities in it, in place of those that the system trusts.")
    ] = None,
    tls_cert: Annotated[
        Path | None, _file("tls-cert", "Our own certificate, for servers that want one.")
    ] = None,
    tls_key: Annotated[Path | None, _file("tls-key", "Its key, if it is not in the same file.")] = None,
    tls_server_name: Annotated[
        str | None,
        typer.Option(
            "--tls-server-name",
            metavar="NAME",
            envvar="GEARFLOW_TLS_SERVER_NAME",
            help="The name in the servers' certificates, if it is not their host's.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        _file(
            "token-file", "The token to tell servers that want one; in GEARFLOW_TOKEN it may stand itself."
        ),
    ] = None,
) -> None:
    """Set the environment by them, and look whether all can be used.

    Raises:
        Failure: It cannot.
    """
    prefer(token_file)
    given = {
        "GEARFLOW_TLS": None if tls is None else str(int(tls)),
        "GEARFLOW_TLS_CA": tls_ca,
        "GEARFLOW_TLS_CERT": tls_cert,
        "GEARFLOW_TLS_KEY": tls_key,
        "GEARFLOW_TLS_SERVER_NAME": tls_server_name,
    }
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    if any(name.startswith(("GEARFLOW_TLS", "GEARFLOW_TOKEN")) for name in os.environ):
        check()


def prefer(token_file: Path | None) -> None:
    """Have the token be that in a file, if the command line names one."""
    if token_file is not None and str(token_file) != os.environ.get("GEARFLOW_TOKEN_FILE"):
        os.environ.pop("GEARFLOW_TOKEN", None)
        os.environ["GEARFLOW_TOKEN_FILE"] = str(token_file)


def check() -> None:
    """Look whether what the environment says of TLS and the token can be used.

    Raises:
        Failure: It cannot.
    """
    from gearflow.client import Security

    try:
        Security.of()
    except ValueError as error:
        raise Failure(ExitCode.MISCONFIGURED, str(error)) from None


def secured(command: Callable[..., None]) -> Callable[..., None]:
    """The command with these options behind its own."""
    own, shared = (inspect.signature(function, eval_str=True) for function in (command, _options))

    @wraps(command)
    def secured_command(*args: Any, **kwargs: Any) -> None:
        _options(**{name: kwargs.pop(name) for name in shared.parameters})
        command(*args, **kwargs)

    parameters = [*own.parameters.values(), *shared.parameters.values()]
    vars(secured_command)["__signature__"] = own.replace(parameters=parameters)
    secured_command.__annotations__ = command.__annotations__ | _options.__annotations__
    return secured_command
