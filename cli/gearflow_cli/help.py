"""Help texts: the purpose, two examples, then the options in groups.

The docstring of a command is its help. It starts with the purpose and ends with ``Examples:``. A long help
(``--help-all``) also has the options for TLS and the token, and those for a group of servers.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

if TYPE_CHECKING:
    from rich.text import Text

    Rows: TypeAlias = list[tuple[Text, Text]]

_LONG: Final = "--help-all"
_MANY: Final = 3
"""So many variables of a command are not all named in its help."""

HELP_OPTIONS: Final = ("-h", "--help", _LONG)


class Panel(StrEnum):
    """The groups of options, in the order in which a help shows them."""

    WHAT = "What to run"
    JOBS = "Which jobs"
    HOW = "How"
    WHERE = "Where"
    GROUP = "Servers that share a database"  # only in the long help
    LIMITS = "Limits"
    OUTPUT = "Output"
    TLS = "TLS and token"  # only in the long help
    OTHER = "Options"


_USAGE: Final = 2
"""The exit code of wrong usage, as typer has it."""

_USAGE_OF_CHECKS: Final = 64
"""That of commands whose exit codes say what they have found. It is EX_USAGE of BSD's sysexits.h."""

_LONG_PANELS: Final = (None, Panel.TLS, Panel.GROUP)
"""Panels that only the long help shows."""


class HelpCommand(TyperCommand):
    """A command with such a help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # the context is click's, or typer's own
        ctx.meta[_LONG] = _LONG in args
        return super().parse_args(ctx, args)

    def get_usage(self, ctx: Any) -> str:  # without the braces of a newer typer, also in its errors
        return super().get_usage(ctx).replace("{", "").replace("}", "")

    def format_help(self, ctx: Any, formatter: object) -> None:
        _show(self, ctx)


class CheckCommand(HelpCommand):
    """A command whose exit codes 1 and 2 say what it has found. So that of wrong usage is another."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        try:
            return super().make_context(*args, **extra)
        except Exception as error:
            if getattr(error, "exit_code", None) == _USAGE:
                vars(error)["exit_code"] = _USAGE_OF_CHECKS
            raise


class HelpGroup(TyperGroup):
    """A command that has commands below it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_LONG] = _LONG in args
        return super().parse_args(ctx, args)

    def get_usage(self, ctx: Any) -> str:  # without the braces of a newer typer, also in its errors
        return super().get_usage(ctx).replace("{", "").replace("}", "")

    def format_help(self, ctx: Any, formatter: object) -> None:
        _show(self, ctx)


def _show(command: TyperCommand | TyperGroup, ctx: Any) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.panel import Panel as Box
    from rich.table import Table
    from rich.text import Text

    is_long = bool(ctx.meta.get(_LONG))
    console = Console(highlight=False)
    usage = Text(command.get_usage(ctx))
    usage.stylize("bold", 0, len("Usage:"))
    console.print(Padding(Text("\n\n").join([usage, *_paragraphs(command.help or "")]), 1))
    parameters = [each for each in command.params if isinstance(each, TyperArgument | TyperOption)]
    shown = [each for each in parameters if is_long or each.rich_help_panel not in _LONG_PANELS]
    parts = [_options(shown)]
    if isinstance(command, TyperGroup):
        parts.insert(0 if command.no_args_is_help else 1, _commands(command, ctx))
    for part in parts:
        width = max((name.cell_len for rows in part.values() for name, _ in rows), default=0)
        for title, rows in part.items():
            grid = Table.grid(padding=(0, 2), expand=True)
            grid.add_column(width=width)
            grid.add_column(ratio=1)
            for row in rows:
                grid.add_row(*row)
            console.print(Box(grid, title=title, title_align="left", border_style="dim"))
    footer = [command.epilog or ""]
    panels = {each.rich_help_panel for each in parameters}
    if not is_long and Panel.TLS in panels:
        more = ", and for servers that share a database" if Panel.GROUP in panels else ""
        footer.append(f"{_LONG} also shows the options for TLS and the token{more}.")
    footer.extend(_about_variables(shown))
    if any(footer):
        console.print(Padding(Text("\n".join(filter(None, footer))), (0, 1)))


def _paragraphs(text: str) -> "Iterable[Text]":
    from rich.text import Text

    for paragraph in text.split("\n\n"):
        is_code = paragraph.startswith("Examples:")
        yield Text(paragraph if is_code else " ".join(paragraph.split()))


def _commands(group: TyperGroup, ctx: Any) -> "dict[str, Rows]":
    """The commands of each group with the first sentence of their help."""
    from rich.text import Text

    panels: dict[str, Rows] = {}
    for name in group.list_commands(ctx):
        command: Any = group.get_command(ctx, name)
        purpose = " ".join((command.help or "").partition("\n\n")[0].split())
        panels.setdefault(command.rich_help_panel or "Commands", []).append(
            (Text(name, "cyan"), Text(purpose))
        )
    return panels


def _options(parameters: Iterable[TyperArgument | TyperOption]) -> "dict[str, Rows]":
    from rich.text import Text

    panels: dict[str, Rows] = {panel: [] for panel in Panel}
    for parameter in parameters:
        about = Text(parameter.help or "")
        if default := _default(parameter):
            about.append(f" [default: {default}]", "dim")
        panels[parameter.rich_help_panel or Panel.OTHER].append((Text(_name(parameter), "cyan"), about))
    return {panel: rows for panel, rows in panels.items() if rows}


def _name(parameter: TyperArgument | TyperOption) -> str:
    """``-p, --port PORT``. The long names of all options stand below each other."""
    if isinstance(parameter, TyperArgument):
        return f"{parameter.metavar}{'' if parameter.nargs == 1 else '...'}"
    long, short, *_ = *parameter.opts, ""
    value = "" if parameter.is_flag else f" {parameter.metavar}"
    return f"{short and f'{short},':3} {'/'.join([long, *parameter.secondary_opts])}{value}"


def _default(parameter: TyperArgument | TyperOption) -> str:
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if isinstance(parameter, TyperOption) and parameter.is_flag:
        return parameter.opts[0] if parameter.default else ""
    return "" if parameter.default is None else str(parameter.default)


def _about_variables(parameters: Iterable[TyperArgument | TyperOption]) -> Iterable[str]:
    """The environment variables. One stands for all that are called like their options, and one of many that
    are so but for the name of the command.
    """
    options = {
        each.envvar: each.opts[0] if isinstance(each, TyperOption) else str(each.metavar)
        for each in parameters
        if isinstance(each.envvar, str)
    }
    regular = sorted((name for name, option in options.items() if name == variable(option)), key=len)
    others = {name: option for name, option in options.items() if name not in regular}
    own = sorted((name for name, option in others.items() if name.endswith(variable(option, ""))), key=len)
    shown = [f"{name} ({option})" for name, option in others.items() if name not in own]
    shown.extend(own if len(own) < _MANY else own[:1])
    if len(regular) > 1:
        shown.append(f"{regular[0]} and so on")
    else:
        shown.extend(regular)
    if shown:
        yield f"Environment: {', '.join(shown)}."


def variable(option: str, prefix: str = "GEARFLOW") -> str:
    """The environment variable of an option."""
    return f"{prefix}_{option.removeprefix('--').upper().replace('-', '_')}"
