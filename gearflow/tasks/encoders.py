"""The encoders of arguments and results. A task's signature decides which one it needs.

They are made at the first use, and imported only then. pydantic takes longer to import than the rest of
gearflow, and a program that only defines tasks or asks a server for its status does not need it.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, cast

from pydantic import BaseModel, RootModel
from pydantic.errors import PydanticUserError
from pydantic_core import SchemaError, ValidationError, from_json
from typing_extensions import TypedDict

from gearflow.errors import TaskDefinitionError
from gearflow.tasks.json_codec import JsonCodec, LostOnTheWay, Schema, top
from gearflow.tasks.payload import Encoder
from gearflow.tasks.signature import TaskSignature

Errors: TypeAlias = list[dict[str, Any]]

_MAX_INPUT: Final = 1024  # characters of a faulty input; longer ones are left out

_WHAT_TRAVELS: Final = (
    "take a pydantic model, a dataclass, or what is made of these and of int, str, list, datetime and so on"
)

_REMEDIES: Final[dict[Any, str]] = {
    "typed-dict-version": "take TypedDict from typing_extensions, and not from typing"
}
"""By pydantic's codes."""

_TO_BYTES: Final[dict[type, str]] = {
    str: "encode it",
    bytearray: "write bytes(...)",
    memoryview: "write bytes(...)",
}


def encoder_of_arguments(signature: TaskSignature, task: str) -> Encoder:
    """The encoder of a task's arguments, which are a dict by parameter name.

    Raises:
        TaskDefinitionError: A type cannot travel, or a default does not fit its type.
    """
    _check_defaults(signature, task)
    annotations = signature.annotations
    match list(annotations.items()):
        case [(name, kind)] if kind is str or kind is bytes:  # as ``is_payload`` says
            return _Sole(name, _Raw(kind))
        case [(name, kind)] if _is_model(kind):
            return _Sole(name, _build(kind, f"the parameter {name!r}", task, _closed))
        case _:
            return _object(annotations, signature.defaults, task)


def is_payload(kind: Any) -> bool:
    """Whether a value of this type is the payload, if it is the only parameter."""
    return kind is str or kind is bytes or _is_model(kind)


def encoder_of_result(kind: Any, what: str, task: str) -> Encoder:
    """The encoder of a task's result, or of each of its values. Raises as ``encoder_of_arguments``."""
    return _Raw(kind) if kind is str or kind is bytes else _build(kind, what, task)


def _object(annotations: Mapping[str, Any], defaults: Mapping[str, Any], task: str) -> Encoder:
    def by_parameter_name(schema: Schema) -> None:
        arguments = top(schema)
        arguments["extra_behavior"] = "forbid"
        for name, field in arguments["fields"].items():
            field["required"] = name not in defaults
            for key in ("validation_alias", "serialization_alias", "serialization_exclude"):
                field.pop(key, None)

    create = cast(Any, TypedDict)  # its names are not known to a type checker
    codec = {0: _NoArguments, 1: _OneArgument}.get(len(annotations), JsonCodec)
    try:
        made = _build(create(task, dict(annotations)), "a parameter", task, by_parameter_name, codec)
        if isinstance(made, _OneArgument):
            (made.name,) = annotations
        return made
    except TaskDefinitionError:
        for name, annotation in annotations.items():
            _build(annotation, f"the parameter {name!r}", task)  # raises for the one at fault
        raise


def _build(
    kind: Any,
    what: str,
    task: str,
    refine: Callable[[Schema], None] = lambda _: None,
    codec: type[JsonCodec] = JsonCodec,
) -> JsonCodec:
    try:
        return codec(kind, refine)
    except LostOnTheWay as error:
        raise TaskDefinitionError(f"task {task!r}: {what} would not arrive as it is: {error}") from error
    except (PydanticUserError, SchemaError, NameError, TypeError) as error:
        reason = str(error).partition("\n")[0].partition(". Set `arbitrary_types_allowed")[0]
        remedy = _REMEDIES.get(getattr(error, "code", None), _WHAT_TRAVELS)
        raise TaskDefinitionError(
            f"task {task!r}: the type of {what} cannot travel as JSON ({reason}); {remedy}"
        ) from error


def _check_defaults(signature: TaskSignature, task: str) -> None:
    for name, default in signature.defaults.items():
        kind = signature.annotations[name]
        try:
            _build(kind, f"the parameter {name!r}", task).validate(default)
        except ValidationError as error:
            shown = kind.__name__ if isinstance(kind, type) else str(kind)
            raise TaskDefinitionError(
                f"task {task!r}: the default {default!r} of {name!r} does not fit {shown} "
                f"({error.errors()[0]['msg']}); give another default, or a type that it fits"
                + (f": '{name}: {shown} | None = None'" if default is None else "")
            ) from error


class _Raw:
    """One str or bytes, unchanged."""

    __slots__ = ("_kind", "_validate")

    def __init__(self, kind: type[str] | type[bytes]) -> None:
        self._kind = kind
        self._validate = JsonCodec(kind).validate

    def dump(self, value: Any) -> bytes:
        valid: str | bytes = self._validate(value)
        return valid.encode() if isinstance(valid, str) else valid

    def canonical(self, value: Any) -> bytes:
        return self.dump(value)

    def load(self, data: bytes) -> Any:
        return data.decode() if self._kind is str else data

    def json_schema(self, _mode: Any) -> dict[str, Any]:
        media = {str: "text/plain; charset=utf-8", bytes: "application/octet-stream"}
        return {"type": "string", "contentMediaType": media[self._kind]}


class _Sole:
    """The only argument, by itself."""

    __slots__ = ("_encoder", "_name")

    def __init__(self, name: str, encoder: Encoder) -> None:
        self._name = name
        self._encoder = encoder

    def dump(self, values: dict[str, Any]) -> bytes:
        return self._encoder.dump(values[self._name])

    def canonical(self, values: dict[str, Any]) -> bytes:
        return self._encoder.canonical(values[self._name])

    def load(self, data: bytes) -> dict[str, Any]:
        return {self._name: self._encoder.load(data)}

    def json_schema(self, mode: Any) -> dict[str, Any]:
        return self._encoder.json_schema(mode)


class _NoArguments(JsonCodec):
    """An empty workload means the same as ``{}``."""

    __slots__ = ()

    def load(self, data: bytes) -> Any:
        return {} if data in (b"", b"\0") else JsonCodec.load(self, data)


class _OneArgument(JsonCodec):
    """A bare value that is no object means the only argument: ``3`` the same as ``{"a": 3}``."""

    __slots__ = ("name",)
    name: str

    def load(self, data: bytes) -> Any:
        if data[:1] != b"{":  # as gearflow's callers begin it
            data = self._by_name(data)
        return JsonCodec.load(self, data)

    def _by_name(self, data: bytes) -> bytes:
        bare = data.removesuffix(b"\0").strip(b" \t\r\n")
        if not bare or bare.startswith(b"{"):
            return data
        from_json(bare)  # it is one value, so it cannot bring other keys along
        return b"{%b:%b}" % (json.dumps(self.name).encode(), bare)


def _is_model(kind: Any) -> bool:
    # A RootModel has no JSON object of its own.
    return isinstance(kind, type) and issubclass(kind, BaseModel) and not issubclass(kind, RootModel)


def _closed(schema: Schema) -> None:
    """Refuse unknown keys, unless the model has its own setting."""
    top(schema)["config"].setdefault("extra_fields_behavior", "forbid")


def faults_of(error: ValueError) -> Errors:
    """The faults as data for JSON, without inputs that are long or cannot be shown."""
    if not isinstance(error, ValidationError):
        return [{"type": "value_error", "loc": [], "msg": str(error)}]
    try:
        faults: Errors = json.loads(error.json(include_url=False))
    except ValueError:  # an input that is no JSON
        faults = json.loads(error.json(include_url=False, include_input=False))
    for fault, kind in zip(faults, _kinds_of_input(error), strict=True):
        fault["msg"] = fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        if fault["type"] == "bytes_type" and kind in _TO_BYTES:
            fault["msg"] = f"Input should be bytes, and is a {kind.__name__}; {_TO_BYTES[kind]}"
        if len(str(fault.get("input"))) > _MAX_INPUT:
            del fault["input"]
    return faults


def _kinds_of_input(error: ValidationError) -> list[type]:
    faults = error.errors(include_url=False, include_context=False)
    return [type(fault["input"]) for fault in faults]
