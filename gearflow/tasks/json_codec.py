"""A Python type as JSON on the wire. Values are validated in both directions, and arrive unchanged.

pydantic's own JSON does not survive every round trip. Bytes that are not UTF-8 cannot be written, inf and
nan become null, and a field with different aliases for reading and writing cannot read its own output. The
settings for this are in the configuration of each model, which its owner chooses for other purposes. So the
core schema of a type is copied. In the copy

* every model, dataclass and TypedDict that does not say otherwise reads and writes bytes as base64 (in
  the URL-safe alphabet, and it also reads the standard one) and inf and nan as strings;
* a field is also read under the key under which it is written.

pydantic-core takes the setting for reading from the nearest configuration, and the settings for writing from
the outermost. It also uses a model's own validator, which ignores the copy's settings, unless this is turned
off. In Python values too, it reads a str as base64 where bytes are expected. That would be a guess, so a
second copy refuses a str there.

A type is refused if pydantic leaves a part of its values out on purpose, as it does with secrets and
excluded fields.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, TypeAlias, cast

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import SchemaSerializer, SchemaValidator
from pydantic_core.core_schema import BytesSchema

Schema: TypeAlias = dict[str, Any]  # a pydantic core schema, which is plain data

_CONFIG: Final[dict[str, str]] = {
    "val_json_bytes": "base64",
    "ser_json_bytes": "base64",
    "ser_json_inf_nan": "strings",
}

_HAS_CONFIG: Final = frozenset({"model", "dataclass", "typed-dict"})

_NOT_SCHEMA: Final = frozenset({"cls", "config", "default", "expected", "function", "members", "metadata"})
"""Keys of a core schema whose values are the user's own objects, not schemas."""

_NOT_WRITTEN: Final = _NOT_SCHEMA | {"computed_fields", "fields", "serialization"}
"""Keys whose values are not written, or are checked by themselves."""

_PLAIN: Final = frozenset(
    {"bool", "bytes", "dict", "float", "int", "list", "none", "nullable", "str", "tuple"}
    | {"typed-dict", "typed-dict-field"}
)
"""Types whose valid values are written alike whatever the settings of the writer are."""

_NOT_PLAIN: Final = frozenset(
    {"extras_schema", "serialization", "serialization_alias", "serialization_exclude"}
)
"""Keys of a core schema that change how a value is written."""

_SECRET: Final = "pydantic.types._serialize_secret"
"""Prefix of the names of the functions that write asterisks."""


class LostOnTheWay(TypeError):
    """A part of the type's values would not be written. The message names it and the remedy."""


class JsonCodec:
    """Values of one type <-> JSON, an ``Encoder``. Building it takes about a millisecond.

    ``refine`` may change the copy of the core schema before validator and serializer are built of it.

    Raises (on creation):
        LostOnTheWay: A part of a value would not arrive.
        PydanticUserError, SchemaError: pydantic cannot make JSON of the type.
    """

    __slots__ = (
        "_canonical",
        "_holds_instances",
        "_is_plain",
        "_schema",
        "_serialize",
        "_validate_json",
        "validate",
    )

    def __init__(self, annotation: Any, refine: Callable[[Schema], None] = lambda _: None) -> None:
        kinds: set[str] = set()

        def adapt(node: Schema) -> None:
            kinds.add(node["type"])
            _adapt(node)

        schema = cast(Schema, _copied(TypeAdapter(annotation).core_schema, adapt))
        refine(schema)
        _refuse_losses(schema)
        validator: SchemaValidator = _build(SchemaValidator, schema)
        serializer: SchemaSerializer = _build(SchemaSerializer, schema)
        self._schema = schema
        self._canonical: SchemaSerializer | None = None  # few need it
        self._validate_json = validator.validate_json
        if "bytes" in kinds:
            validator = _build(SchemaValidator, _copied(schema, _want_bytes))
        self.validate: Callable[[Any], Any] = validator.validate_python
        """The value as the type wants it. Raises pydantic's ValidationError."""
        self._serialize = serializer.to_json
        # pydantic takes a model's instance for valid, although its attributes may have changed since.
        self._is_plain = _is_plain(schema)
        self._holds_instances = not kinds.isdisjoint(("model", "dataclass"))

    def dump(self, value: Any) -> bytes:
        """A value as JSON. Raises ValueError, most often pydantic's."""
        if self._is_plain:  # the settings below have nothing to do, and cost four times as much as the rest
            return self._serialize(self.validate(value))
        data = self._serialize(self.validate(value), by_alias=True, round_trip=True, warnings="error")
        if self._holds_instances:
            self._validate_json(data)  # the reader would find the fault, but the writer made it
        return data

    def canonical(self, value: Any) -> bytes:
        """A value as JSON that is the same for equal values: dicts and sets are sorted."""
        serializer = self._canonical
        if serializer is None:
            serializer = self._canonical = _build(SchemaSerializer, _copied(self._schema, _sort_sets))
        data = serializer.to_json(self.validate(value), by_alias=True, round_trip=True, warnings="error")
        return json.dumps(json.loads(data), sort_keys=True).encode()

    def load(self, data: bytes) -> Any:
        """The value of JSON, without one trailing NUL. Raises pydantic's ValidationError."""
        # node-gearman 0.2.2 puts a NUL behind the payload of background jobs
        return self._validate_json(data[:-1] if data.endswith(b"\0") else data)

    def json_schema(self, mode: Literal["validation", "serialization"]) -> dict[str, Any]:
        """The JSON Schema of the input of ``load``, or of the output of ``dump``."""
        return _WireJsonSchema().generate(cast(Any, self._schema), mode=mode)


class _WireJsonSchema(GenerateJsonSchema):
    """Describes bytes by the core schema. pydantic itself reads their settings from the classes."""

    def bytes_schema(self, schema: BytesSchema) -> dict[str, Any]:
        described = super().bytes_schema(schema)
        return {**described, "format": "base64url"} if self._config.ser_json_bytes == "utf8" else described


def top(schema: Schema) -> Schema:
    """The schema of the outermost type, without the schemas that only wrap it."""
    definitions = {definition["ref"]: definition for definition in schema.get("definitions", ())}
    while schema["type"] not in _HAS_CONFIG:
        schema = definitions[schema["schema_ref"]] if schema["type"] == "definition-ref" else schema["schema"]
    return schema


def _build(kind: Callable[..., Any], schema: Any) -> Any:
    try:
        return kind(schema, _CONFIG, _use_prebuilt=False)
    except TypeError:  # a pydantic-core that has no prebuilt validators yet
        return kind(schema, _CONFIG)


def _copied(node: Any, change: Callable[[Schema], None]) -> Any:
    """A deep copy of a core schema. ``change`` gets each schema in it, the inner ones first."""
    if isinstance(node, list):
        return [_copied(item, change) for item in cast("list[object]", node)]
    if isinstance(node, tuple):
        return tuple(_copied(item, change) for item in cast("tuple[object, ...]", node))
    if not isinstance(node, dict):
        return node
    schema = cast(Schema, node)
    if not isinstance(schema.get("type"), str):  # a mapping of field names or tags to schemas
        return {key: _copied(value, change) for key, value in schema.items()}
    copy = {key: value if key in _NOT_SCHEMA else _copied(value, change) for key, value in schema.items()}
    change(copy)
    return copy


def _adapt(schema: Schema) -> None:
    """Give a schema the wire's settings."""
    if schema["type"] in _HAS_CONFIG:
        config: dict[str, Any] = {**_CONFIG, **schema.get("config", {})}
        if config.get("validate_by_alias") is False:  # fields are written under their aliases
            config |= {"validate_by_alias": True, "validate_by_name": True}
        schema["config"] = config
    for name, field in _fields(schema):
        _read_what_is_written(name, field)


def _fields(schema: Schema) -> Iterable[tuple[str, Schema]]:
    match schema:
        case {"type": "model-fields" | "typed-dict", "fields": fields}:
            return cast("dict[str, Schema]", fields).items()
        case {"type": "dataclass-args", "fields": fields}:
            return ((field["name"], field) for field in cast("list[Schema]", fields))
        case _:
            return ()


def _read_what_is_written(name: str, field: Schema) -> None:
    """Add the key under which a field is written to those under which it is read."""
    written = field.get("serialization_alias", name)
    match field.get("validation_alias", name):
        case str(key):
            paths: list[list[str | int]] = [[key]]
        case [str(), *_] as path:
            paths = [cast("list[str | int]", path)]
        case several:
            paths = cast("list[list[str | int]]", several)
    if [written] not in paths:
        field["validation_alias"] = [*paths, [written]]


def _want_bytes(schema: Schema) -> None:
    """Refuse a str where bytes are expected."""
    if schema["type"] == "bytes":
        schema["strict"] = True


def _is_plain(node: Any) -> bool:
    """Whether valid values are written alike whatever the settings are, and never with a warning."""
    if isinstance(node, list | tuple):
        return all(map(_is_plain, cast("Iterable[object]", node)))
    if not isinstance(node, dict):
        return True
    schema = cast(Schema, node)
    if not isinstance(schema.get("type"), str):  # a mapping of field names to schemas
        return all(map(_is_plain, schema.values()))
    if "allow" in (schema.get("extra_behavior"), schema.get("config", {}).get("extra_fields_behavior")):
        return False
    nested = (value for key, value in schema.items() if key not in _NOT_SCHEMA)
    return schema["type"] in _PLAIN and _NOT_PLAIN.isdisjoint(schema) and all(map(_is_plain, nested))


def _refuse_losses(node: Any, where: str = "it") -> None:
    """Raise LostOnTheWay if a part of a value is not written. ``where`` is the field that is checked."""
    if isinstance(node, list | tuple):
        for item in cast("Iterable[object]", node):
            _refuse_losses(item, where)
    if not isinstance(node, dict):
        return
    schema = cast(Schema, node)
    if not isinstance(schema.get("type"), str):  # a mapping of field names or tags to schemas
        _refuse_losses(list(schema.values()), where)
        return
    function = _written_by(schema)
    if function.startswith(_SECRET):
        raise LostOnTheWay(
            f"{where} is a secret, of which pydantic writes only '**********'; send a reference to it, or "
            "take 'str', which can be read on the wire and in the server's file"
        )
    if function and not function.startswith("pydantic."):  # the user's own function, which may write anything
        return
    for name, field in _fields(schema):
        if field.get("serialization_exclude"):
            raise LostOnTheWay(
                f"{_owner(schema)}.{name} has exclude=True, so its value would stay behind; take that off, "
                "or take a model without the field"
            )
        _refuse_losses(field, f"{_owner(schema)}.{name}")
    for key, value in schema.items():
        if key not in _NOT_WRITTEN:
            _refuse_losses(value, where)


def _written_by(schema: Schema) -> str:
    """The function that writes the values of a schema, with its module. Empty if pydantic-core does it."""
    match schema:
        case {"serialization": {"function": function}}:
            return f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', '')}"
        case _:
            return ""


def _owner(schema: Schema) -> str:
    """The class that a schema's fields belong to."""
    name = schema.get("model_name") or schema.get("dataclass_name")
    return str(name or getattr(schema.get("cls"), "__name__", "it"))


def _sort_sets(schema: Schema) -> None:
    """Write sets in an order that does not depend on the process's hash seed."""
    if schema["type"] in ("set", "frozenset") and "serialization" not in schema:
        schema["serialization"] = {"type": "function-wrap", "function": _sorted, "schema": dict(schema)}


def _sorted(value: Any, serialize: Callable[[Any], list[Any]]) -> list[Any]:
    return sorted(serialize(value), key=lambda item: json.dumps(item, sort_keys=True))
