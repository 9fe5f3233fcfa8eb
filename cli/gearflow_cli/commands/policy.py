"""``gearflow policy`` sets the options for all jobs of a function, also in another language."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gearflow_cli import function_names, options, output, server_queries
from gearflow_cli.errors import CliError, ExitCode, tell
from gearflow_cli.help import HelpCommand, HelpGroup
from gearflow_cli.options import how, secured
from gearflow_cli.server_queries import Answers
from gearflow_cli.text import printable

if TYPE_CHECKING:
    from gearflow.protocol.limits import FunctionPolicy, Policy, PolicyRequest

app = typer.Typer(
    cls=HelpGroup,
    no_args_is_help=True,
    help="""Set options for all jobs of a function, such as one in PHP, Perl or C.

    Examples:
      gearflow policy set resize --retries 5 --keep 7d --limit 20 --timeout 60s
      gearflow policy list
    """,
)


@app.command("set", cls=HelpCommand)
@secured
def set_(
    function: options.Function,
    retries: Annotated[
        int | None,
        how("--retries", "How many more runs may follow if a run fails.", "N", env=None, min=0, max=1000),
    ] = None,
    keep: Annotated[
        float | None,
        how(
            "--keep",
            "How long the server keeps the outcome, such as 7d. 0: not at all.",
            "DURATION",
            env=None,
        ),
    ] = None,
    limit: Annotated[
        int | None, how("--limit", "How many of its jobs run at once.", "N", env=None, min=1)
    ] = None,
    timeout: Annotated[
        float | None, how("--timeout", "How long a run may take, such as 60s.", "DURATION", env=None)
    ] = None,
    servers: options.Servers = None,
) -> None:
    """Set options for the jobs of a function whose submission does not have its own.

    What you leave out stays as it is. The options hold for new and for waiting jobs, and survive restarts.

    Examples:
      gearflow policy set resize --retries 5 --keep 7d
      gearflow policy set resize --limit 20 --timeout 60s
    """
    from gearflow.protocol.limits import Policy, PolicyRequest
    from gearflow.tasks import Retry

    if timeout == 0:
        raise CliError(ExitCode.USAGE, "--timeout 0: no run ends in no time; leave it out for no limit")
    plan = None if retries is None else Retry(retries + 1).to_plan()
    policy = Policy(retries=plan, keep=keep, timeout=timeout, limit=limit)
    if policy == Policy():
        raise CliError(ExitCode.USAGE, "give at least one of --retries, --keep, --limit and --timeout")
    addresses = server_queries.addresses_of(servers)
    name = function_names.remembered(function, addresses)
    answers = _ask(addresses, PolicyRequest(action="set", function=name, policy=policy))
    for address, policies in answers.given.items():
        for each in policies:
            output.write_sentence(f"{address}: {each.function}: {_text(each.policy)}")
    if not any(each.workers for policies in answers.given.values() for each in policies):
        tell(f"warning: no worker offers {printable(name)} now; is the name right?", logging.WARNING)
    answers.require_all()


@app.command("list", cls=HelpCommand)
@secured
def list_(servers: options.Servers = None, wide: options.Wide = False, as_json: options.Json = False) -> None:
    """List the policies of the servers.

    Examples:
      gearflow policy list
      gearflow policy list --json
    """
    from gearflow.protocol.limits import PolicyRequest

    addresses = server_queries.addresses_of(servers)
    answers = _ask(addresses, PolicyRequest(action="list"))
    answers.require_one()
    if as_json:
        shown = [
            {"server": address, "policies": [each.model_dump() for each in policies]}
            for address, policies in answers.given.items()
        ]
        output.write_json(shown)
        return
    several = len(addresses) > 1
    header = ["function", "retries", "keep", "limit", "timeout", "workers"]
    rows: list[list[str | int]] = []
    for address, policies in answers.given.items():
        for each in policies:
            row = [each.function, *_cells(each.policy), each.workers]
            rows.append([address, *row] if several else row)
    output.write_table(
        ["server", *header] if several else header,
        rows,
        cut={"function": 20, "server": 15},
        optional=("workers",),
        wide=wide,
        empty="no policies: set one with 'gearflow policy set FUNCTION'",
    )


@app.command(cls=HelpCommand)
@secured
def unset(function: options.Function, servers: options.Servers = None) -> None:
    """Remove the policy of a function.

    Examples:
      gearflow policy unset resize
      gearflow policy unset resize -s jobs.example.com
    """
    from gearflow.protocol.limits import PolicyRequest

    addresses = server_queries.addresses_of(servers)
    name = function_names.remembered(function, addresses)
    answers = _ask(addresses, PolicyRequest(action="unset", function=name))
    for address in answers.given:
        output.write_sentence(f"{address}: removed the policy of {name}")
    answers.require_all()


def _ask(addresses: Sequence[str], request: "PolicyRequest") -> "Answers[tuple[FunctionPolicy, ...]]":
    from gearflow.client.operate import policies

    return server_queries.each(
        addresses, lambda client, server: policies(client, request, server=server), once=True
    )


def _cells(policy: "Policy") -> list[str | int]:
    retries = "-" if policy.retries is None else len(policy.retries.delays)
    return [
        retries,
        _seconds(policy.keep),
        "-" if policy.limit is None else policy.limit,
        _seconds(policy.timeout),
    ]


def _text(policy: "Policy") -> str:
    names = ("retries", "keep", "limit", "timeout")
    cells = zip(names, _cells(policy), strict=True)
    return ", ".join(f"{name} {value}" for name, value in cells if value != "-")


def _seconds(value: float | None) -> Any:
    return "-" if value is None else output.duration(value)
