"""The arguments of a task in a shell: ``a=1 b=x``, ``'{"a":1}'``, ``@file``, or ``-`` for stdin.

The task's own types read ``key=value``. A value may be plain text or JSON, and the type decides. Each
parameter is read in the way that its type suggests. If that is refused, it is read in the other way. So a
``str`` stays as it is, even if it looks like a number. Dates, enums and decimals are read from their text,
lists and models as JSON. If both are possible (``int | str``, ``Any``), JSON comes first.
"""

import json
import sys
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    NoReturn,
    TypeAlias,
    Union,
    get_args,
    get_origin,
)

from gearflow_cli import imports, output
from gearflow_cli.errors import CliError, ExitCode
from gearflow_cli.options import is_utf8

if TYPE_CHECKING:
    from gearflow.tasks.definition import TaskDefinition

    AnyTask: TypeAlias = TaskDefinition

_ABSENT: Final = object()


@dataclass(frozen=True, slots=True)
class Whole:
    """The whole payload in one argument."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pairs:
    """The texts of values by name."""

    texts: dict[str, str]


Given: TypeAlias = Whole | Pairs
Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def raw(arguments: Sequence[str]) -> bytes:
    """Return the argument as the payload. Raises CliError if there is more than one."""
    if not arguments:
        return b""
    if len(arguments) > 1:
        _refuse(f"--raw takes one argument, not {len(arguments)}; quote it if it contains blanks")
    content = _content(arguments[0])
    return arguments[0].encode("utf-8", "surrogateescape") if content is None else content


def untyped(arguments: Sequence[str], text: str | None = None) -> bytes:
    """Return the payload for a function of unknown types. Values that can be JSON are JSON, others are text.

    ``text`` is the name of the function's only parameter if its payload is a text.

    Raises:
        CliError: The arguments cannot be read, or do not fit the one parameter.
    """
    from gearflow.errors import PayloadInvalid

    if text is not None:
        try:
            return _text(arguments, text)
        except PayloadInvalid as error:
            faults = output.payload_faults(error.errors, [text])
            raise CliError(
                ExitCode.PAYLOAD_INVALID, f"the arguments do not fit ({text}: str):\n{faults}"
            ) from error
    match _read(arguments):
        case Whole(data):
            return data
        case Pairs(texts):
            return _object(
                {name: _quoted(text) if _json(text) is _ABSENT else text for name, text in texts.items()}
            )


def whole(arguments: Sequence[str]) -> bytes | None:
    """Return the payload if one argument is all of it, such as JSON, a file or stdin."""
    if len(arguments) != 1:
        return None
    content = _content(arguments[0])
    return arguments[0].encode() if content is None and _json(arguments[0]) is not _ABSENT else content


def may_be_one_text(arguments: Sequence[str]) -> bool:
    """Whether the arguments are one ``name=text``, of which a function may take the text alone."""
    return len(arguments) == 1 and _json(arguments[0].partition("=")[2]) is _ABSENT


def typed(arguments: Sequence[str], task: "AnyTask") -> Call:
    """Return the positional and keyword arguments for a call of a task, read by its types.

    Raises:
        CliError: They do not fit. The message has every fault.
    """
    from gearflow.errors import PayloadInvalid

    try:
        with imports.user_code(task):
            values = _values(arguments, task)
    except PayloadInvalid as error:
        raise invalid(task, error) from error
    first = [
        values.pop(name)
        for name, parameter in task.payload.signature.parameters.items()
        if parameter.kind is Parameter.POSITIONAL_ONLY and name in values
    ]
    return tuple(first), values


def invalid(task: "AnyTask", error: Any) -> CliError:
    """The failure for the error of arguments that do not fit a task."""
    if not error.errors:
        return CliError(ExitCode.PAYLOAD_INVALID, str(error))
    faults = output.payload_faults(error.errors, list(_types(task)))
    return CliError(
        ExitCode.PAYLOAD_INVALID, f"the arguments do not fit {task.name}{output.signature(task)}:\n{faults}"
    )


# ------------------------------------------------------------------------------------- what was given


def _read(arguments: Sequence[str]) -> Given:
    """Recognize the form of the arguments."""
    if len(arguments) == 1:
        content = _content(arguments[0])
        if content is not None:
            return Whole(content)
        if "=" not in arguments[0] or arguments[0].lstrip()[:1] in tuple('{["'):
            return _read_json(arguments[0])
    return _read_pairs(arguments)


def _content(argument: str) -> bytes | None:
    """Read the content of ``-`` or ``@file``. None for other arguments."""
    if argument == "-":
        if sys.stdin is None:  # the shell closed it: <&-
            _refuse("cannot read standard input: it is closed")
        name, read = "standard input", sys.stdin.buffer.read
    elif argument.startswith("@"):
        name, read = argument[1:], Path(argument[1:]).read_bytes
    else:
        return None
    try:
        return read()
    except OSError as error:
        _refuse(f"cannot read {name}: {error.strerror}")


def _read_json(argument: str) -> Given:
    try:
        json.loads(argument)
    except (ValueError, RecursionError) as error:
        if argument.lstrip()[:1] in tuple("{["):
            raise CliError(ExitCode.PAYLOAD_INVALID, f"the payload is not JSON: {error}") from None
        _refuse(f"{argument!r} is neither key=value nor JSON; --raw sends it as it is")
    return Whole(argument.encode("utf-8", "surrogateescape"))


def _read_pairs(arguments: Sequence[str]) -> Pairs:
    texts: dict[str, str] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not (name and equals):
            _refuse(
                f"{argument!r} is not key=value; write all arguments as key=value, or the payload as one JSON"
            )
        if name in texts:
            _refuse(f"{name!r} is given twice")
        if not is_utf8(argument):
            _refuse(f"{argument!r} is not UTF-8; other bytes can be sent with --raw")
        texts[name] = text
    return Pairs(texts)


def _refuse(message: str) -> NoReturn:
    raise CliError(ExitCode.USAGE, message)


def _json(text: str) -> Any:
    """The value of a JSON text, or ``_ABSENT`` if it is not JSON."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return _ABSENT


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _object(texts: Mapping[str, str]) -> bytes:
    """Build a JSON object from JSON texts, so that numbers keep all their digits."""
    return "{{{}}}".format(", ".join(f"{_quoted(name)}: {text}" for name, text in texts.items())).encode()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


# ------------------------------------------------------------------------------------ by a task's types


def _values(arguments: Sequence[str], task: "AnyTask") -> dict[str, Any]:
    """The arguments by name. Raises PayloadInvalid."""
    sole = sole_text(task)
    if sole is not None:
        return task.payload.decode(_text(arguments, sole, task))
    if len(arguments) == 1 and "=" not in arguments[0] and not _is_payload(arguments[0], task):
        _refuse(f"{arguments[0]!r} is neither key=value nor JSON; {task.name} takes {output.signature(task)}")
    match _read(arguments):
        case Whole(data):
            return task.payload.decode(data)
        case Pairs(texts):
            return _Reading(task, texts).values()


def _is_payload(argument: str, task: "AnyTask") -> bool:
    """Whether an argument is the whole payload, or looks as if it were to be."""
    if argument == "-" or argument.startswith("@") or argument.lstrip()[:1] in tuple('{["'):
        return True
    return len(task.payload.signature.parameters) == 1 and _json(argument) is not _ABSENT


def sole_text(task: "AnyTask") -> str | None:
    """The name of a task's only parameter, if its value is the whole payload."""
    match list(task.payload.signature.annotations.items()):
        case [(name, kind)] if kind is str or kind is bytes:
            return name
        case _:
            return None


def _text(arguments: Sequence[str], name: str, task: "AnyTask | None" = None) -> bytes:
    """Return the payload of a function that takes one text, which is the argument without its ``name=``.

    Without an argument it is the parameter's default, if the task is known. Raises PayloadInvalid.
    """
    if len(arguments) == 1:
        content = _content(arguments[0])
        if content is not None:
            return content
        return arguments[0].removeprefix(f"{name}=").encode("utf-8", "surrogateescape")
    from gearflow.errors import PayloadInvalid

    texts = _read_pairs(arguments).texts
    has_default = task is not None and name in task.payload.signature.defaults
    faults = [{"type": "extra_forbidden", "loc": (extra,)} for extra in texts if extra != name]
    if name not in texts and not has_default:
        faults.insert(0, {"type": "missing", "loc": (name,)})
    if faults:
        raise PayloadInvalid("", faults)
    return texts[name].encode() if task is None or name in texts else task.payload.encode((), {})


class _Reading:
    """Reads the values of pairs by the types of a task."""

    def __init__(self, task: "AnyTask", texts: dict[str, str]) -> None:
        types = _types(task)
        self._task = task
        self._texts = texts
        self._readings = {name: _readings(text, types.get(name, Any)) for name, text in texts.items()}

    def values(self) -> dict[str, Any]:
        """Raises PayloadInvalid if no reading fits."""
        from gearflow.errors import PayloadInvalid

        chosen = {name: readings[0] for name, readings in self._readings.items()}
        try:
            return self._decode(chosen)
        except PayloadInvalid as error:
            refused = {str(fault["loc"][0]) for fault in error.errors if fault.get("loc")}
        for name in refused & chosen.keys():
            chosen[name] = self._readings[name][-1]
        try:
            return self._decode(chosen)
        except PayloadInvalid as error:
            refused &= {str(fault["loc"][0]) for fault in error.errors if fault.get("loc")}
        for name in refused & chosen.keys():
            if self._texts[name].lstrip()[:1] not in tuple("{["):
                chosen[name] = _quoted(self._texts[name])  # its faults are easier to understand
        return self._decode(chosen)

    def _decode(self, values: dict[str, str]) -> dict[str, Any]:
        return self._task.payload.decode(_object(values))


def _types(task: "AnyTask") -> dict[str, Any]:
    """The types of a task's parameters, or of the fields of its only model."""
    from pydantic import BaseModel, RootModel

    annotations = task.payload.signature.annotations
    kinds = list(annotations.values())
    if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel):
        model = kinds[0]
        if not issubclass(model, RootModel):
            return {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    return annotations


def _readings(text: str, kind: Any) -> list[str]:
    """The possible meanings of a text for a type, as JSON, the likeliest first."""
    members = _members(kind)
    is_binary = bytes in members and str not in members
    itself = _quoted(urlsafe_b64encode(text.encode()).decode() if is_binary else text)
    value = _json(text)
    if value is _ABSENT or kind is str or members == {bytes}:
        return [itself]
    open_to_choice = len(members) > 1 or not members.isdisjoint({Any, object})
    if open_to_choice and not (isinstance(value, str) and str in members):
        return [text, itself]
    return [itself, text]


def _members(kind: Any) -> set[Any]:
    """The types of a union, or the type itself."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    alias = getattr(kind, "__value__", _ABSENT)  # of 'type X = ...'
    if alias is not _ABSENT:
        return _members(alias)
    if get_origin(kind) in (Union, UnionType):
        return set[Any]().union(*(_members(member) for member in get_args(kind)))
    return {kind}
