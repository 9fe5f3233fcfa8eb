"""``gearflow web`` shows job servers in a browser."""

from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from gearflow_cli import logs, options
from gearflow_cli.errors import CliError, ExitCode, tell
from gearflow_cli.help import Panel, variable
from gearflow_cli.options import HttpAddress, LogLevel
from gearflow_cli.process import raise_file_limit

if TYPE_CHECKING:
    from gearflow.web import AccessTokens, Allow


def _option(panel: Panel, name: str, text: str, metavar: str | None = None, **more: Any) -> Any:
    """Declare an option whose variable begins with ``GEARFLOW_WEB_``."""
    return options.option(panel, name, text, metavar, env=variable(name, "GEARFLOW_WEB"), **more)


def _some(panel: Panel, name: str, text: str, metavar: str) -> Any:
    """Declare an option that may be repeated. Its variable has commas between the values."""
    return _option(panel, name, text, metavar, callback=_split)


def _split(values: list[str] | None) -> list[str]:
    return [each.strip() for value in values or () for each in value.split(",") if each.strip()]


def web(
    servers: options.Servers = None,
    listen: Annotated[
        Any,
        _option(
            Panel.WHERE, "--listen", "The address to listen on.", "HOST:PORT", parser=options.http_address
        ),
    ] = "127.0.0.1:8730",
    read_only: Annotated[bool, _option(Panel.HOW, "--read-only", "Let nobody act, only look.")] = False,
    hide_payloads: Annotated[
        bool, _option(Panel.HOW, "--hide-payloads", "Show no payloads, results and parts of streams.")
    ] = False,
    access_token_file: Annotated[
        Path | None,
        _option(
            Panel.HOW, "--access-token-file", "Require a token in this file, from 'gearflow token'.", "FILE"
        ),
    ] = None,
    trust_header: Annotated[
        str | None,
        _option(
            Panel.HOW, "--trust-header", "Or require this header of a proxy, with the user's name.", "HEADER"
        ),
    ] = None,
    trust_proxy: Annotated[
        list[str] | None,
        _some(
            Panel.HOW,
            "--trust-proxy",
            "The proxy's address, if not this machine. May be repeated.",
            "ADDRESS",
        ),
    ] = None,
    operators: Annotated[
        list[str] | None,
        _some(Panel.HOW, "--operator", "Of these users, only this one may act. May be repeated.", "USER"),
    ] = None,
    hosts: Annotated[
        list[str] | None,
        _some(Panel.WHERE, "--host", "A name by which browsers reach it. May be repeated.", "NAME"),
    ] = None,
    prefix: Annotated[
        str, _option(Panel.WHERE, "--prefix", "The path at which a proxy has it, such as /queue.", "PATH")
    ] = "",
    log_level: options.Level = LogLevel.INFO,
    log_json: options.LogJson = False,
) -> None:
    """Show functions, jobs, workers and servers in a browser, and act on them. Also serves /metrics.

    By default it is at http://127.0.0.1:8730/, where everybody on this machine may act. On another address
    it starts only with --access-token-file or --trust-header.

    Examples:
      gearflow web -s a.example.com -s b.example.com
      gearflow web --listen 10.0.0.7:8730 --access-token-file access-tokens
    """
    address = options.http_address(listen) if isinstance(listen, str) else listen
    tokens, allow = _allow(address, access_token_file, trust_header, trust_proxy, operators)
    app = _app(
        servers,
        allow=allow,
        read_only=read_only,
        hide_payloads=hide_payloads,
        hosts=hosts or (),
        prefix=prefix,
    )
    logs.to_stderr(log_level.value, json=log_json)
    raise_file_limit()
    from gearflow_cli.process.web_server import listen, serve

    with listen(address) as listener:
        host = f"[{address.host}]" if ":" in address.host else address.host
        tell(f"the dashboard is at http://{host}:{listener.getsockname()[1]}{prefix}/")
        if not _is_loopback(address.host) and trust_header is None:
            tell("everything is sent unencrypted. Put a proxy with TLS before it")
        serve(app, listener, access_token_file, tokens)


def _allow(
    address: HttpAddress,
    access_token_file: Path | None,
    trust_header: str | None,
    trust_proxy: list[str] | None,
    operators: list[str] | None,
) -> "tuple[AccessTokens | None, Allow]":
    """Who may do what. Refuses to be open to other machines."""
    _require()
    from gearflow.web import AccessTokens, TrustedHeader

    if access_token_file is not None and trust_header is not None:
        raise CliError(ExitCode.USAGE, "give either --access-token-file or --trust-header")
    if trust_header is None and (trust_proxy or operators):
        raise CliError(
            ExitCode.USAGE, "--trust-proxy and --operator are for --trust-header, which is missing"
        )
    try:
        if access_token_file is not None:
            tokens = AccessTokens.read(access_token_file)
            return tokens, tokens
        if trust_header is not None:
            proxies = trust_proxy or ("127.0.0.0/8", "::1")
            return None, TrustedHeader(trust_header, proxies=proxies, operators=operators or None)
    except ValueError as error:
        raise CliError(ExitCode.MISCONFIGURED, str(error)) from None
    if not _is_loopback(address.host):
        raise CliError(
            ExitCode.MISCONFIGURED,
            f"other machines reach {address.host}, and everybody there could read all jobs and act on the "
            "servers. Add --access-token-file FILE, or --trust-header HEADER behind a proxy that asks its "
            "users to sign in. On 127.0.0.1 neither is needed",
        )
    return None, "operate"


def _app(servers: list[str] | None, **settings: Any) -> Any:
    from gearflow.web import app

    try:
        return app(servers or None, **settings)
    except ValueError as error:
        raise CliError(ExitCode.MISCONFIGURED, str(error)) from None


def _require() -> None:
    """Check that the extra is installed. Raises CliError."""
    try:
        from gearflow.web import app as app
    except ImportError as error:
        raise CliError(ExitCode.MISCONFIGURED, str(error)) from None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
