"""``@task(redact=...)``: the fields of a task's payloads that gearflow's server does not show to operators.

A field is named as in the payload, and the name counts at every depth: ``card`` is a parameter, a field of a
model that is a parameter, or one of a model in a list. ``*`` stands for the whole payload. Workers report the
names, and the server keeps them. The payloads themselves stay as they are.

A misspelled name would show what is to be hidden. So names are compared with the types of the task.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, cast

from gearflow.errors import TaskDefinitionError

if TYPE_CHECKING:
    from gearflow.tasks.payload import PayloadCodec

WHOLE: Final = "*"
"""In place of the name of a field: the whole payload."""

_SHOWN: Final = 8
"""Names in an error."""


def read_fields(name: str, value: Any) -> frozenset[str]:
    """Names of fields. Raises ValueError for anything else."""
    if isinstance(value, set | frozenset | list | tuple):
        given = frozenset(cast("Iterable[Any]", value))
        if all(isinstance(each, str) and each for each in given):
            return given
    raise ValueError(f"{name}={value!r}: it is a set of the names of fields, such as {{'card', 'iban'}}")


def check_fields(fields: frozenset[str], payload: "PayloadCodec", task: str) -> None:
    """Check that the payloads of a task have these fields, as far as its types say what they have.

    Raises:
        TaskDefinitionError: They do not. The message offers the nearest name.
    """
    known = set(payload.signature.annotations)
    if _collect(payload.written_schema(), known) and _collect(payload.json_schema()["payload"], known):
        unknown = sorted(fields - known - {WHOLE})
        if unknown:
            near = get_close_matches(unknown[0], known, n=1)
            shown = ", ".join(map(repr, sorted(known)[:_SHOWN])) or "none"
            hint = f"did you mean {near[0]!r}?" if near else f"there are {shown}"
            raise TaskDefinitionError(
                f"task {task!r}: redact= names a field {unknown[0]!r} that its payload does not have; {hint}"
            )


def reported_fields(fields: frozenset[str], payload: "PayloadCodec") -> list[str]:
    """The fields as servers get them. A parameter that is itself the payload stands for all of it."""
    from gearflow.tasks.encoders import is_payload  # only now: it imports pydantic

    match list(payload.signature.annotations.items()):
        case [(name, kind)] if WHOLE in fields or (name in fields and is_payload(kind)):
            return [WHOLE]
        case _:
            return sorted(fields)


def _collect(schema: Any, known: set[str]) -> bool:
    """Add the names of all fields in a JSON schema. Returns whether there can be no other ones."""
    if not isinstance(schema, dict):
        return schema is False
    node = cast("dict[str, Any]", schema)
    fields: dict[str, Any] = node.get("properties", {})
    known.update(fields)
    below = [*fields.values(), *node.get("$defs", {}).values(), *node.get("prefixItems", ())]
    below += [each for word in _ALTERNATIVES for each in node.get(word, ())]
    if "items" in node:
        below.append(node["items"])
    is_closed = not _is_open(node)
    for each in below:
        is_closed = _collect(each, known) and is_closed
    return is_closed


def _is_open(node: dict[str, Any]) -> bool:
    """Whether a value may have fields that its schema does not name."""
    if node.get("type") == "object":
        return node.get("additionalProperties", "properties" not in node) is not False
    return not node.keys() & _SAYS_WHAT


_ALTERNATIVES: Final = ("anyOf", "oneOf", "allOf")
_SAYS_WHAT: Final = {"type", "$ref", "enum", "const", *_ALTERNATIVES}
