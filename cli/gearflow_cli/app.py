"""The command line's top: ``gearflow COMMAND``."""

import os
import sys
from collections import UserDict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from gearflow_cli import errors
from gearflow_cli.options import secured

_COMMANDS: Final = {
    "dev": ("dev", "dev"),
    "server": ("server", "app"),
    "worker": ("worker", "worker"),
    "submit": ("submit", "submit"),
    "result": ("job", "result"),
    "job": ("job", "job"),
    "cancel": ("job", "cancel"),
    "dead": ("dead", "app"),
    "status": ("status", "status"),
    "pause": ("pause", "pause"),
    "resume": ("pause", "resume"),
    "purge": ("pause", "purge"),
    "tasks": ("tasks", "tasks"),
}
"""The module of each in ``commands``, and its name there, in the order in which users meet them."""

_TALKS_TO_NOBODY: Final = {"tasks"}


class _Commands(UserDict[str, Any]):  # of commands of click's; typer brings its own, or not, by its version
    """By name; each is made when it is asked for, since a program keeps for good what it has imported."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(_COMMANDS))

    def __getitem__(self, name: str) -> Any:
        if self.data[name] is None:
            self.data[name] = _made(name)
        return self.data[name]


def _made(name: str) -> Any:
    """A command with what it needs imported."""
    module, attribute = _COMMANDS[name]
    command = getattr(import_module(f"gearflow_cli.commands.{module}"), attribute)
    mount = typer.Typer()
    if isinstance(command, typer.Typer):
        mount.add_typer(command, name=name)
    else:
        mount.command(name)(command if name in _TALKS_TO_NOBODY else secured(command))
    return typer.main.get_group(mount).commands[name]


class _Gearflow(TyperGroup):
    """Makes commands when they are needed, runs them, and reports how they end."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        self.commands = _Commands()

    def list_commands(self, ctx: Any) -> list[str]:  # typer's own would make them all
        return list(self.commands)

    def make_context(self, *args: Any, **extra: Any) -> Any:  # which shows help, and the version
        with errors.reporting():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        with errors.reporting():
            return super().invoke(ctx)


app = typer.Typer(
    name="gearflow",
    cls=_Gearflow,
    help="A typed task queue on the Gearman protocol, with its own job server.",
    epilog="In three terminals: gearflow server; gearflow worker myapp.tasks; gearflow submit add a=1 b=2.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    _open_descriptors()
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # the shell closed it: >&-
            setattr(sys, stream, Path(os.devnull).open("w"))  # noqa: SIM115  (for the life of the process)
    try:
        app(prog_name="gearflow")
    finally:
        errors.forget_unread_stderr()


def _open_descriptors() -> None:
    """Have nothing else come by the descriptors of standard streams that the shell closed, as with <&-."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest one that is free: this
