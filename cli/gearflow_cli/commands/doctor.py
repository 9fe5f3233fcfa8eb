"""``gearflow doctor`` checks servers, and says what is wrong and what helps.

Its exit code says how bad the worst finding is. So that of wrong usage is another one than other commands
have.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

import typer

from gearflow_cli import options, output, server_queries
from gearflow_cli.commands.status import LimitView
from gearflow_cli.output import counted
from gearflow_cli.text import printable

if TYPE_CHECKING:
    from gearflow.observe import Checkup, Finding


class Health(IntEnum):
    """The exit codes."""

    WELL = 0
    WARNINGS = 1
    ERRORS = 2


_COLOURS: Final = {"error": "bold red", "warning": "yellow"}
"""Of severities, on a terminal."""


def doctor(servers: options.Servers = None, as_json: options.Json = False) -> None:
    """Check job servers, and say what is wrong with them and what helps.

    The exit code is 0 if all is well, 1 if there are warnings, and 2 if there are errors. It changes nothing,
    so a token with the right view is enough.

    Examples:
      gearflow doctor
      gearflow doctor -s one.example.com -s two.example.com --json
    """
    import anyio

    from gearflow.client import Client
    from gearflow.observe import examine, findings_of

    addresses = server_queries.addresses_of(servers)

    async def look() -> "list[Checkup]":
        async with Client(addresses, discover=False) as client:
            return await examine(client, addresses, server_queries.TIMEOUT)

    checkups = anyio.run(look)
    findings = findings_of(checkups, _differing(checkups))
    if as_json:
        servers_shown = [facts(checkup) for checkup in checkups]
        output.write_json({"servers": servers_shown, "findings": [asdict(finding) for finding in findings]})
    else:
        _show(checkups, findings)
    severities = {finding.severity for finding in findings}
    health = Health.ERRORS if "error" in severities else Health.WARNINGS if severities else Health.WELL
    raise typer.Exit(health)


def _differing(checkups: "Sequence[Checkup]") -> dict[str, list[str]]:
    """By server, the functions whose workers declare other limits than the server has."""
    views = [checkup.view for checkup in checkups if checkup.view.limits is not None]
    return {view.address: LimitView(view.limits, view.workers).differing for view in views if view.limits}


def facts(checkup: "Checkup") -> dict[str, Any]:
    """What is known of a server, for programs. None stands for what it does not tell."""
    view = checkup.view
    info, metrics = view.info, view.metrics
    store = metrics.store if metrics is not None else None
    return {
        "server": view.address,
        "kind": view.kind,
        "version": view.version,
        "error": view.error,
        "round_trip": view.round_trip,
        "clock": view.clock,
        "encrypted": checkup.encrypted,
        "certificate_expires": checkup.certificate,
        "rights": list(info.rights or ["all"]) if info is not None else None,
        "durable": info.durable if info is not None else None,
        "sync": store.sync if store is not None else None,
        "file": store.size if store is not None else None,
        "disk_free": store.free if store is not None else None,
        "connections": metrics.connections if metrics is not None else None,
        "functions": len(view.functions),
        "workers": len(view.workers),
        "schedules": len(view.schedules) if view.schedules is not None else None,
        "group": info.group if info is not None else None,
        "standbys": [standby.state for standby in view.group.standbys] if view.group is not None else None,
    }


def _show(checkups: "Sequence[Checkup]", findings: "Sequence[Finding]") -> None:
    for checkup in checkups:
        if checkup.view.answers:
            output.write_sentence(f"{checkup.view.address}: {_in_words(checkup)}")
    for finding in findings:
        _say(finding)
        output.write(f"  remedy: {printable(finding.remedy)}")
    count = Counter(finding.severity for finding in findings)
    parts = [counted(count[severity], severity) for severity in ("error", "warning") if count[severity]]
    output.write(", ".join(parts) or "all is well")


def _say(finding: "Finding") -> None:
    text = printable(f": {finding.server}: {finding.text}")
    if output.is_terminal():
        from rich.text import Text

        output.show(Text.assemble((finding.severity, _COLOURS[finding.severity]), text))
    else:
        output.write(f"{finding.severity}{text}")


def _in_words(checkup: "Checkup") -> str:
    """What is known of a server, for people."""
    from gearflow.quantities import duration, size

    view = checkup.view
    info, metrics = view.info, view.metrics
    parts = [view.version or view.kind]
    if info is not None:
        store = metrics.store if metrics is not None else None
        sync = f" (sync {store.sync})" if store is not None and store.sync else ""
        where = "a database" if info.group else "a file" if info.durable else "memory"
        parts.append(f"jobs live in {where}{sync}")
        if store is not None and store.free is not None:
            parts.append(f"{size(store.free)} of disk left")
    else:
        parts.append("its promises are not known")
    if view.round_trip is not None:
        parts.append(f"round trip {duration(view.round_trip)}")
    if view.clock is not None:
        parts.append(f"clock {view.clock:+.3f} s")
    if checkup.certificate is not None:
        parts.append(f"certificate for {(checkup.certificate - time.time()) / 86400:.0f} days")
    parts.append(f"{counted(len(view.functions), 'function')}, {counted(len(view.workers), 'worker')}")
    return ", ".join(parts)
