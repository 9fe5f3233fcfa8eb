"""The command line's top: ``gearflow COMMAND``."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from gearflow_cli import admin, dead, dev, exits, functions, jobs, serve, submit, tasks, work
from gearflow_cli.secured import secured

_ORDER: Final = (
    *("dev", "server", "worker", "submit"),
    *("result", "job", "cancel", "dead"),
    *("status", "pause", "resume", "purge", "tasks"),
)
"""As users meet them; typer would have those with subcommands first."""


class _Reporting(TyperGroup):
    """Runs commands, and reports how they end."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=_ORDER.index)

    def invoke(self, ctx: Any) -> Any:  # click's Context; typer brings its own, or not, by its version
        with exits.reporting():
            return super().invoke(ctx)


app = typer.Typer(
    name="gearflow",
    cls=_Reporting,
    help="A typed task queue on the Gearman protocol, with its own job server.",
    epilog="In three terminals: gearflow server; gearflow worker myapp.tasks; gearflow submit add a=1 b=2.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("dev")(secured(dev.dev))
app.add_typer(serve.app, name="server")
app.command("worker")(secured(work.worker))
app.command("submit")(secured(submit.submit))
app.command("result")(secured(jobs.result))
app.command("job")(secured(jobs.job))
app.command("cancel")(secured(jobs.cancel))
app.add_typer(dead.app, name="dead")
app.command("status")(secured(admin.status))
app.command("pause")(secured(functions.pause))
app.command("resume")(secured(functions.resume))
app.command("purge")(secured(functions.purge))
app.command("tasks")(tasks.tasks)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"gearflow {version('gearflow')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """The entry point of the console script."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # the shell closed it: >&-
            setattr(sys, stream, Path(os.devnull).open("w"))  # noqa: SIM115  (for the life of the process)
    app(prog_name="gearflow")
