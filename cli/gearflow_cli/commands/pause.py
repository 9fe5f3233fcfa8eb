"""``gearflow pause``, ``resume`` and ``purge``, for the waiting jobs of a function on each server."""

from gearflow_cli import function_names, options, output, server_queries
from gearflow_cli.commands.status import functions_of
from gearflow_cli.output import counted


def pause(function: options.Function, servers: options.Servers = None) -> None:
    """Stop giving out jobs of a function. Running jobs end, and new jobs wait.

    Examples:
      gearflow pause send_invoice
      gearflow pause myapp.tasks.send_invoice -s jobs.example.com
    """
    _pause(function, servers, paused=True)


def resume(function: options.Function, servers: options.Servers = None) -> None:
    """Give out the jobs of a paused function again.

    Examples:
      gearflow resume send_invoice
      gearflow resume myapp.tasks.send_invoice -s jobs.example.com
    """
    _pause(function, servers, paused=False)


def purge(function: options.Function, servers: options.Servers = None, yes: options.Yes = False) -> None:
    """Cancel the waiting and the delayed jobs of a function, after a question.

    Examples:
      gearflow purge send_invoice
      gearflow purge send_invoice --yes
    """
    from gearflow.client.operate import purge as purge_on

    addresses = server_queries.addresses_of(servers)
    name = function_names.known(function, addresses)
    if not yes:
        waiting = sum(
            row.waiting
            for answer in functions_of(addresses).values()
            if not isinstance(answer, str)
            for row in answer
            if row.name == name
        )
        output.confirm(f"Cancel the waiting jobs of {name}, {waiting} now, on {', '.join(addresses)}?")
    answers = server_queries.each(addresses, lambda client, server: purge_on(client, name, server=server))
    for address, jobs in answers.given.items():
        output.write_sentence(f"{address}: cancelled {counted(jobs, 'job')} of {name}")
    answers.require_all()


def _pause(function: str, servers: list[str] | None, *, paused: bool) -> None:
    from gearflow.client.operate import pause as pause_on

    addresses = server_queries.addresses_of(servers)
    name = function_names.known(function, addresses)
    answers = server_queries.each(
        addresses, lambda client, server: pause_on(client, name, paused, server=server)
    )
    for address, jobs in answers.given.items():
        verb = "paused" if paused else "resumed"
        output.write_sentence(f"{address}: {verb} {name}; {counted(jobs, 'job')} waiting")
    answers.require_all()
