"""``gearflow limit`` applies what code declares, and lists and changes the limits of servers."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from gearflow_cli import imports, options, output, server_queries
from gearflow_cli.errors import CliError, ExitCode, tell
from gearflow_cli.help import HelpCommand, HelpGroup, Panel
from gearflow_cli.options import argument, how, is_utf8, jobs, secured
from gearflow_cli.server_queries import Answers
from gearflow_cli.text import printable

if TYPE_CHECKING:
    from gearflow.client import Client
    from gearflow.protocol.limits import LimitChange, LimitInfo, LimitList, LimitRequest
    from gearflow.tasks.definition import TaskDefinition

    AnyTask: TypeAlias = TaskDefinition

app = typer.Typer(
    cls=HelpGroup,
    no_args_is_help=True,
    help="""Limit how many jobs run at once, and how many start in a time.

    Examples:
      gearflow limit apply myapp.tasks
      gearflow limit set shopify 50/m
    """,
)


def _limit_name(value: str) -> str:
    if not value or not is_utf8(value):
        raise typer.BadParameter("give the name of a limit, as 'gearflow limit list' shows it")
    return value


Name: TypeAlias = Annotated[
    str,
    argument(Panel.WHAT, "NAME", "The limit. The start of its name may be left out.", callback=_limit_name),
]


@app.command(cls=HelpCommand)
@secured
def apply(
    modules: options.Modules,
    prune: Annotated[
        bool, how("--prune", "Remove what these modules declared before and do not declare now.", env=None)
    ] = False,
    dry_run: Annotated[bool, how("--dry-run", "Print the changes, and make none.", env=None)] = False,
    servers: options.Servers = None,
    as_json: options.Json = False,
) -> None:
    """Write the limits that tasks declare to the servers. Prints what changes.

    What an operator has set with 'gearflow limit set' goes on to hold.

    Examples:
      gearflow limit apply myapp.tasks --dry-run
      gearflow limit apply myapp.tasks --prune
    """
    request = declared(list(imports.load(modules).values()), modules, prune=prune, dry_run=dry_run)
    answers = _change(servers, lambda _: request)
    if as_json:
        output.write_json(
            [
                {"server": address, "changes": [change.model_dump() for change in changes]}
                for address, changes in answers.given.items()
            ]
        )
    else:
        for address, changes in answers.given.items():
            _show_changes(address, changes, dry_run=dry_run)
            if not changes and not request.functions:
                tell(f"{', '.join(modules)}: no task declares limits; write @task(limits=[...])")
    answers.require_all()


@app.command("list", cls=HelpCommand)
@secured
def list_(
    function: Annotated[
        str | None,
        jobs("--function -f", "The limits of this function, by its full name.", "FUNCTION", env=None),
    ] = None,
    servers: options.Servers = None,
    wide: options.Wide = False,
    as_json: options.Json = False,
) -> None:
    """List the limits of the servers, with what they count now.

    Examples:
      gearflow limit list
      gearflow limit list --function myapp.tasks.sync --json
    """
    from gearflow.client.operate import limits as limits_of

    addresses = server_queries.addresses_of(servers)
    answers = server_queries.each(
        addresses, lambda client, server: limits_of(client, function=function, server=server), once=True
    )
    answers.require_one()
    if as_json:
        shown = [{"server": server, **found.model_dump()} for server, found in answers.given.items()]
        output.write_json(shown)
    else:
        _show_limits(answers.given, several=len(addresses) > 1, wide=wide)


@app.command("set", cls=HelpCommand)
@secured
def set_(
    name: Name,
    limit: Annotated[
        str,
        argument(
            Panel.WHAT, "LIMIT", "A number of jobs at once such as 20, or a rate such as 50/m or 100/30s."
        ),
    ],
    burst: Annotated[
        int | None, how("--burst", "How many starts may follow each other at once.", "N", env=None, min=1)
    ] = None,
    servers: options.Servers = None,
) -> None:
    """Set a limit, until 'gearflow limit unset'. It survives restarts of the server.

    Examples:
      gearflow limit set shopify 50/m
      gearflow limit set myapp.tasks.sync:concurrency 20
    """
    from gearflow.protocol.limits import LimitOverride, LimitRequest, read_limit

    try:
        count, per = read_limit(limit)
    except ValueError as error:
        raise CliError(ExitCode.USAGE, str(error)) from None
    value = LimitOverride(count=count, per=per, burst=burst)
    _act(name, servers, lambda full: LimitRequest(action="set", name=full, value=value))


@app.command(cls=HelpCommand)
@secured
def unset(name: Name, servers: options.Servers = None) -> None:
    """Let the limit that code declares hold again.

    Examples:
      gearflow limit unset shopify
      gearflow limit unset sync:concurrency
    """
    _act(name, servers, _request("unset"))


@app.command(cls=HelpCommand)
@secured
def pause(name: Name, servers: options.Servers = None) -> None:
    """Start no job that needs the limit. Running jobs end, and new jobs wait.

    Examples:
      gearflow limit pause shopify
      gearflow limit pause shopify -s jobs.example.com
    """
    _act(name, servers, _request("pause"))


@app.command(cls=HelpCommand)
@secured
def resume(name: Name, servers: options.Servers = None) -> None:
    """Start the jobs of a paused limit again.

    Examples:
      gearflow limit resume shopify
      gearflow limit resume shopify -s jobs.example.com
    """
    _act(name, servers, _request("resume"))


def apply_here(modules: Sequence[str], address: str, *, is_own: bool) -> None:
    """Apply the limits of modules to one server, and print what changes. Warns if that is not possible.

    A server of one's own forgets what the modules do not declare any more.
    """
    from gearflow.errors import UnsupportedByServer

    request = declared(list(imports.load(modules).values()), modules, prune=is_own)
    if not (request.functions or is_own):
        return
    answers = _change([address], lambda _: request)
    for changes in answers.given.values():
        for change in changes:
            tell(f"limits: {printable(change_text(change))}")
    for error in answers.errors.values():
        if request.functions or not isinstance(error, UnsupportedByServer):
            tell(f"warning: limits are not applied: {printable(error)}", logging.WARNING)


def declared(
    tasks: "Sequence[AnyTask]", modules: Sequence[str], *, prune: bool = False, dry_run: bool = False
) -> "LimitRequest":
    """The request that applies the limits of tasks. Raises as ``TaskDefinition.check``."""
    from gearflow.tasks.declared_limits import apply_request

    for task in tasks:
        if task.limited is not None:
            with imports.user_code(task):
                task.check()
    return apply_request(tasks, imports.origin(modules), prune=prune, dry_run=dry_run)


def _request(action: 'Literal["unset", "pause", "resume"]') -> "Callable[[str], LimitRequest]":
    from gearflow.protocol.limits import LimitRequest

    return lambda name: LimitRequest(action=action, name=name)


def _act(name: str, servers: Sequence[str] | None, make: "Callable[[str], LimitRequest]") -> None:
    """Change one limit on each server, and print the change."""
    answers = _change(servers, make, name)
    for address, changes in answers.given.items():
        _show_changes(address, changes, dry_run=False)
    answers.require_all()


def _change(
    servers: Sequence[str] | None, make: "Callable[[str], LimitRequest]", name: str = ""
) -> "Answers[tuple[LimitChange, ...]]":
    from gearflow.client.operate import change_limits

    async def change(client: "Client", server: str) -> "tuple[LimitChange, ...]":
        full = await _full_name(client, server, name) if name else ""
        return await change_limits(client, make(full), server=server)

    return server_queries.each(server_queries.addresses_of(servers), change, once=True)


async def _full_name(client: "Client", server: str, name: str) -> str:
    """The only limit of a server whose name ends like this, or the name itself."""
    from gearflow.client.operate import limits as limits_of

    names = [limit.name for limit in (await limits_of(client, server=server)).limits]
    if name in names:
        return name
    found = [full for full in names if full.endswith(f".{name}")]
    if len(found) > 1:
        shown = " or ".join(map(printable, found[:5]))
        raise CliError(ExitCode.USAGE, f"{printable(name)} may be {shown}; give the full name")
    return found[0] if found else name


def _show_changes(address: str, changes: "Sequence[LimitChange]", *, dry_run: bool) -> None:
    if not changes:
        output.write_sentence(f"{address}: nothing to change")
        return
    output.write_sentence(f"{address}: {'would change' if dry_run else 'changed'}")
    for change in changes:
        output.write_sentence(f"  {change_text(change)}")


def change_text(change: "LimitChange") -> str:
    """A line of a diff, such as ``~ limit shopify: 100/m -> 50/m``."""
    mark = {"added": "+", "changed": "~", "removed": "-"}[change.change]
    values = " -> ".join(dict.fromkeys(filter(None, (change.before, change.after))))
    what = "function" if change.kind == "function" else "limit"
    note = f" ({change.note})" if change.note else ""
    return f"{mark} {what} {change.name}: {values}{note}"


def _show_limits(found: "dict[str, LimitList]", *, several: bool, wide: bool) -> None:
    header = ["limit", "holds", "declared", "running", "waiting", "keys", "paused", "functions"]
    rows: list[list[str | int]] = []
    for address, limits in found.items():
        for limit in limits.limits:
            row = _row(limit)
            rows.append([address, *row] if several else row)
    if several:
        header.insert(0, "server")
    output.write_table(
        header,
        rows,
        cut={"functions": 12, "limit": 20, "server": 15},
        optional=("keys", "declared", "functions"),
        wide=wide,
        empty="no limits: write them with @task(limits=[...]), and run 'gearflow limit apply MODULE'",
    )


def _row(limit: "LimitInfo") -> list[str | int]:
    holds = limit.text or "none"
    declared_text = str(limit.declared) if limit.declared is not None else "-"
    paused = "yes" if limit.paused else "no"
    functions = ", ".join(limit.functions)
    return [limit.name, holds, declared_text, limit.running, limit.waiting, limit.keys, paused, functions]
