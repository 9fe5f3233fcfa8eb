"""``gearflow cron`` applies schedules that code declares, shows schedules, and has their jobs made."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from gearflow_cli import imports, options, output, server_queries
from gearflow_cli.errors import tell
from gearflow_cli.help import HelpCommand, HelpGroup
from gearflow_cli.options import secured
from gearflow_cli.output import counted
from gearflow_cli.schedule_texts import clock_warnings, difference, state, times, when_text
from gearflow_cli.text import printable

if TYPE_CHECKING:
    from gearflow.client import Client
    from gearflow.client.schedules import ServerChanges
    from gearflow.protocol.schedules import ScheduleInfo, ScheduleSpec

T = TypeVar("T")

app = typer.Typer(
    cls=HelpGroup,
    no_args_is_help=True,
    help="""Run tasks by the clock. The server makes the jobs.

    Examples:
      gearflow cron apply myapp.tasks     what @task(schedule=...) declares
      gearflow cron list
    """,
)


@app.command(cls=HelpCommand)
@secured
def apply(
    modules: options.Modules,
    prune: Annotated[
        bool,
        options.what("--prune", "Delete schedules of this origin that the modules do not declare.", env=None),
    ] = False,
    dry_run: Annotated[
        bool, options.how("--dry-run", "Change nothing. Show what would change.", env=None)
    ] = False,
    origin: Annotated[
        str | None,
        options.what(
            "--origin",
            "The name under which these schedules are kept, and pruned.",
            "NAME",
            default="the package of the first module",
        ),
    ] = None,
    servers: options.Servers = None,
    as_json: options.Json = False,
) -> None:
    """Give the server the schedules that tasks declare. It may run again and again.

    Examples:
      gearflow cron apply myapp.tasks
      gearflow cron apply myapp.tasks myapp.billing --prune --dry-run
    """
    from gearflow.tasks.schedules import schedule_specs

    specs = list(schedule_specs(imports.load(modules).values()))
    if not specs and not prune:
        tell("warning: no task of the modules has a schedule", logging.WARNING)
    done = apply_specs(
        server_queries.addresses_of(servers), specs, origin_of(modules, origin), prune=prune, dry_run=dry_run
    )
    for changes in done:
        if as_json:
            answer = {name: list(names) for name, names in changes.changes.model_dump().items()}
            output.write_json_line({"server": str(changes.server), "dry_run": dry_run} | answer)
    if not as_json:
        _write_changes(done, dry_run=dry_run)
    for spec in specs:
        for warning in clock_warnings(spec):
            tell(printable(f"warning: {warning}"), logging.WARNING)


def origin_of(modules: Sequence[str], origin: str | None = None) -> str:
    """The origin of the schedules that modules declare. No other program may use that of its own."""
    return f"code:{origin or modules[0].partition('.')[0]}"


def apply_specs(
    addresses: Sequence[str],
    specs: "Iterable[ScheduleSpec]",
    origin: str,
    *,
    prune: bool = False,
    dry_run: bool = False,
) -> "list[ServerChanges]":
    """Apply schedules to the servers. Raises as ``gearflow.client.schedules.ClientSchedules``."""
    from gearflow.client.schedules import apply_schedules

    return _ask(
        addresses,
        lambda client: apply_schedules(client, specs, origin=origin, prune=prune, dry_run=dry_run),
    )


def changed_lines(done: "Sequence[ServerChanges]") -> Iterator[str]:
    """What changed, one schedule a line."""
    for server in done:
        before = {name: info.schedule for name, info in server.before.items()}
        for name in server.changes.created:
            yield f"+ {name}  {when_text(server.declared[name].when)}"
        for name in server.changes.changed:
            yield f"~ {name}  {difference(before.get(name), server.declared[name])}"
        for name in server.changes.removed:
            yield f"- {name}" + (f"  {when_text(before[name].when)}" if name in before else "")


def _write_changes(done: "Sequence[ServerChanges]", *, dry_run: bool) -> None:
    for line in changed_lines(done):
        output.write_sentence(line)
    for server in done:
        for name in set(server.elsewhere) - set(server.changes.removed):
            text = f"{name} is also on {server.server}, where it was before; --prune deletes it there"
            tell(printable(f"warning: {text}"), logging.WARNING)
    set_ = sum(len(each.changes.created) + len(each.changes.changed) for each in done)
    removed = sum(len(each.changes.removed) for each in done)
    same = sum(len(each.changes.unchanged) for each in done)
    verbs = ("would set", "delete") if dry_run else ("set", "deleted")
    output.write(f"{verbs[0]} {set_:,}, {verbs[1]} {removed:,}, {same:,} unchanged")


@app.command("list", cls=HelpCommand)
@secured
def list_(
    servers: options.Servers = None,
    wide: options.Wide = False,
    as_json: options.Json = False,
) -> None:
    """List schedules with their next times. With --json, one object a line.

    Examples:
      gearflow cron list
      gearflow cron list --json
    """
    addresses = server_queries.addresses_of(servers)
    answers = server_queries.each(addresses, _all_on, once=True)
    answers.require_one()
    rows: list[list[output.Cell]] = []
    for address, infos in answers.given.items():
        for info in infos:
            if as_json:
                output.write_json_line({"server": address} | info.model_dump(mode="json"))
            server: list[output.Cell] = [address] if len(addresses) > 1 else []
            rows.append(server + _row(info))
    if as_json:
        return
    header = ["name", "when", "next", "last", "ticks", "missed", "overlapped", "state"]
    output.write_table(
        ["server", *header] if len(addresses) > 1 else header,
        rows,
        cut={"name": 16, "when": 12, "server": 15},
        optional=("overlapped", "missed", "ticks", "last"),
        wide=wide,
        empty="no schedules",
    )


async def _all_on(client: "Client", server: str) -> "list[ScheduleInfo]":
    from gearflow.client.schedules import schedules_on

    return [info async for info in schedules_on(client, server)]


def _row(info: "ScheduleInfo") -> list[output.Cell]:
    return [
        info.schedule.name,
        when_text(info.schedule.when),
        _short(info.next[0] if info.next else None),
        _short(info.last),
        info.ticks,
        info.missed,
        info.overlapped + info.skipped,
        state(info),
    ]


def _short(time: float | None) -> str:
    return output.when(time)[: len("2030-12-24 18:00:00")]


@app.command(cls=HelpCommand)
@secured
def show(name: options.ScheduleName, servers: options.Servers = None, as_json: options.Json = False) -> None:
    """Show a schedule with its counts and its payload.

    Examples:
      gearflow cron show nightly
      gearflow cron show myapp.tasks.nightly --json
    """
    info = _ask(server_queries.addresses_of(servers), lambda client: client.schedules.get(name))
    if as_json:
        output.write_json(info.model_dump(mode="json"))
        return
    spec = info.schedule
    known: dict[str, Any] = {
        "name": spec.name,
        "when": when_text(spec.when),
        "state": state(info),
        "function": spec.function if info.has_worker else f"{spec.function}, which no worker offers",
        "origin": info.origin,
        "next": output.when(info.next[0]) if info.next else "never",
        "last": output.when(info.last),
        "last job": info.handle and f"{info.handle}" + (f", {info.state}" if info.state else ""),
        "ticks": info.ticks,
        "missed": info.missed,
        "skipped": info.skipped,
        "overlapped": info.overlapped,
        "queued": output.when(info.queued),
        "if missed": f"{spec.when.missed}, within {spec.when.grace:g} s",
        "if it overlaps": spec.when.overlap,
        "jitter": f"{spec.when.jitter:g} s" if spec.when.jitter else "",
        "start": output.when(spec.when.start),
        "end": output.when(spec.when.end),
        "priority": spec.priority.value,
        "payload": spec.payload,
        "fault": info.fault,
    }
    output.write(
        output.labelled([(key, str(value)) for key, value in known.items() if value not in ("", None)])
    )


@app.command("next", cls=HelpCommand)
@secured
def next_(
    name: options.ScheduleName,
    number: Annotated[
        int, options.how("--number -n", "How many times to show.", "N", env=None, min=1, max=1000)
    ] = 5,
    servers: options.Servers = None,
    as_json: options.Json = False,
) -> None:
    """Show the next times of a schedule, and what daylight saving time does to them.

    Examples:
      gearflow cron next nightly
      gearflow cron next myapp.tasks.nightly -n 20 --json
    """
    info = _ask(
        server_queries.addresses_of(servers),
        lambda client: client.schedules.get(name, times=min(number, 100)),
    )
    zone, found = times(info, number)
    if as_json:
        for time in found:
            output.write_json_line(time._asdict())
        return
    if not found:
        tell(printable(f"{info.schedule.name} is never due again"))
    header = [zone, "UTC", "note"]
    rows: list[list[output.Cell]] = [[time.local, time.utc, time.note] for time in found]
    if any(time.note for time in found):
        output.write(output.columns(header, rows))
    elif rows:
        output.write(output.columns(header[:2], [row[:2] for row in rows]))
    if info.paused:
        tell(printable(f"{info.schedule.name} is paused, so it does not run at these times"))


@app.command(cls=HelpCommand)
@secured
def trigger(
    name: options.ScheduleName, servers: options.Servers = None, as_json: options.Json = False
) -> None:
    """Make a job of a schedule now, and print its handle.

    Examples:
      gearflow cron trigger nightly
      gearflow cron trigger myapp.tasks.nightly --json
    """
    handle = _ask(server_queries.addresses_of(servers), lambda client: client.schedules.trigger(name))
    if as_json:
        output.write_json_line({"handle": handle.handle, "server": str(handle.server)})
    else:
        output.write_sentence(str(handle))


@app.command(cls=HelpCommand)
@secured
def pause(name: options.ScheduleName, servers: options.Servers = None) -> None:
    """Make no more jobs of a schedule.

    Examples:
      gearflow cron pause nightly
      gearflow cron pause myapp.tasks.nightly -s jobs.example.com
    """
    info = _ask(server_queries.addresses_of(servers), lambda client: client.schedules.pause(name))
    output.write_sentence(f"paused {info.schedule.name}")


@app.command(cls=HelpCommand)
@secured
def resume(name: options.ScheduleName, servers: options.Servers = None) -> None:
    """Make jobs of a paused schedule again.

    Examples:
      gearflow cron resume nightly
      gearflow cron resume myapp.tasks.nightly -s jobs.example.com
    """
    info = _ask(server_queries.addresses_of(servers), lambda client: client.schedules.resume(name))
    following = f"; the next time is {output.when(info.next[0])}" if info.next else ""
    output.write_sentence(f"resumed {info.schedule.name}{following}")


@app.command(cls=HelpCommand)
@secured
def backfill(
    name: options.ScheduleName,
    start: Annotated[datetime, options.what("--from", "The first time.", "TIME", env=None)],
    end: Annotated[
        datetime | None, options.what("--to", "The last time.", "TIME", env=None, default="now")
    ] = None,
    servers: options.Servers = None,
    as_json: options.Json = False,
) -> None:
    """Make the jobs of times that have passed.

    Examples:
      gearflow cron backfill nightly --from 2030-12-01
      gearflow cron backfill nightly --from 2030-12-01T00:00Z --to 2030-12-24T00:00Z
    """
    made = _ask(
        server_queries.addresses_of(servers), lambda client: client.schedules.backfill(name, start, end)
    )
    if as_json:
        output.write_json_line(made.model_dump(mode="json"))
        return
    others = f"; {counted(made.joined, 'job')} waited or ran already" if made.joined else ""
    output.write_sentence(f"made {counted(made.jobs, 'job')} of {name}{others}")


@app.command(cls=HelpCommand)
@secured
def delete(name: options.ScheduleName, servers: options.Servers = None) -> None:
    """Delete a schedule. The jobs that it has made stay.

    Examples:
      gearflow cron delete report-42
      gearflow cron delete myapp.tasks.nightly
    """
    _ask(server_queries.addresses_of(servers), lambda client: client.schedules.delete(name))
    output.write_sentence(f"deleted {name}")


def _ask(addresses: Sequence[str], ask: "Callable[[Client], Awaitable[T]]") -> T:
    import anyio

    return anyio.run(_with_client, addresses, ask)


async def _with_client(addresses: Sequence[str], ask: "Callable[[Client], Awaitable[T]]") -> T:
    from gearflow.client import Client

    async with Client(addresses, discover=False) as client:
        return await ask(client)
