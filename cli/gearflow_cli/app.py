"""The program ``gearflow``, and where its commands are."""

import os
import sys
from collections import UserDict
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer

from gearflow_cli import errors
from gearflow_cli.help import HELP_OPTIONS, CheckCommand, HelpCommand, HelpGroup, Panel
from gearflow_cli.options import option, secured

_COMMANDS: Final = {
    "Run": {"dev": "dev.dev", "server": "server.app", "worker": "worker.worker"},
    "Jobs": {
        "submit": "submit.submit",
        "map": "map.map",
        "result": "result.result",
        "watch": "watch.watch",
        "job": "job.job",
        "cancel": "job.cancel",
        "edit": "job.edit",
    },
    "Operate": {
        "status": "status.status",
        "top": "top.top",
        "web": "web.web",
        "doctor": "doctor.doctor",
        "jobs": "jobs.jobs",
        "workers": "workers.workers",
        "dead": "dead.app",
        "cron": "cron.app",
        "pause": "pause.pause",
        "resume": "pause.resume",
        "purge": "pause.purge",
        "limit": "limit.app",
        "policy": "policy.app",
        "tasks": "tasks.tasks",
        "token": "token.token",
    },
}
"""By the panel of the help: the names of the commands, and where each is in ``commands``."""

_USES_NO_SERVER: Final = {"tasks", "token"}

_CHECKS: Final = {"doctor"}


class _Commands(UserDict[str, Any]):  # the commands are click's, or typer's own in later versions
    """The commands by name. Each is imported when needed, because a process keeps what it imports."""

    def __init__(self) -> None:
        super().__init__({name: panel for panel, names in _COMMANDS.items() for name in names})

    def __getitem__(self, name: str) -> Any:
        if isinstance(self.data[name], str):
            self.data[name] = _import_command(self.data[name], name)
        return self.data[name]


def _import_command(panel: str, name: str) -> Any:
    module, _, attribute = _COMMANDS[panel][name].partition(".")
    command = getattr(import_module(f"gearflow_cli.commands.{module}"), attribute)
    mount = typer.Typer()
    if isinstance(command, typer.Typer):
        mount.add_typer(command, name=name, rich_help_panel=panel)
    else:
        function = command if name in _USES_NO_SERVER else secured(command)
        kind = CheckCommand if name in _CHECKS else HelpCommand
        mount.command(name, cls=kind, rich_help_panel=panel)(function)
    return typer.main.get_group(mount).commands[name]


class _Gearflow(HelpGroup):
    """Imports commands when they are needed, runs them, and reports how they end."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        self.commands = _Commands()

    def list_commands(self, ctx: Any) -> list[str]:  # typer's own would import them all
        return list(self.commands)

    def make_context(self, *args: Any, **extra: Any) -> Any:  # shows the help and the version
        with errors.reporting():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        with errors.reporting():
            return super().invoke(ctx)


app = typer.Typer(
    name="gearflow",
    cls=_Gearflow,
    help="""Run typed Python tasks on a Gearman job server that stores its jobs.

    Examples:
      gearflow dev myapp.tasks          a server and a worker, while you develop
      gearflow submit add a=1 b=2       a job, in another terminal
    """,
    epilog="gearflow COMMAND --help shows the options of a command, and --help-all shows all of them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": list(HELP_OPTIONS)},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"gearflow {version('gearflow')} ({'compiled' if _is_compiled() else 'pure Python'})")
        raise typer.Exit


def _is_compiled() -> bool:
    """Whether the hot modules are compiled, as in the wheels for common machines."""
    from importlib.machinery import EXTENSION_SUFFIXES
    from importlib.util import find_spec

    spec = find_spec("gearflow")  # the search for one of its modules would import it
    places = spec.submodule_search_locations if spec is not None else None
    return any(
        Path(place, "protocol", f"framing{suffix}").exists()
        for place in places or ()
        for suffix in EXTENSION_SUFFIXES
    )


@app.callback()
def _options(
    _version: Annotated[
        bool,
        option(
            Panel.OTHER,
            "--version",
            "Show the version, and whether the hot modules are compiled.",
            env=None,
            callback=_show_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """The entry point of the console script."""
    _open_descriptors()
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # the shell closed it: >&-
            setattr(sys, stream, Path(os.devnull).open("w"))  # noqa: SIM115  (for the life of the process)
    if isinstance(output := cast(object, sys.stdout), TextIOWrapper):
        output.reconfigure(errors="backslashreplace")  # a name may have letters that the locale has not
    try:
        app(prog_name="gearflow")
    finally:
        errors.forget_unread_stderr()


def _open_descriptors() -> None:
    """Open the standard streams that the shell closed (``<&-``). No other file may get their descriptors."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
