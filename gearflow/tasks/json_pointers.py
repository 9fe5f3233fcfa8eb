"""JSON pointers into the payloads of a task, checked against its types.

A pointer such as ``/customer`` names a field of a workload as callers write it. Of a task with several
parameters the first name is that of a parameter. A pydantic model that is the only parameter is itself the
payload.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from gearflow.errors import TaskDefinitionError

if TYPE_CHECKING:
    from gearflow.tasks.payload import PayloadCodec

_DEPTH: Final = 4  # of the fields that an error offers
_SHOWN: Final = 8  # of them

_NO_FIELDS: Final = frozenset({"string", "number", "integer", "boolean", "null"})


def check(pointer: str, payload: "PayloadCodec", task: str) -> None:
    """Check that a pointer leads to a text or a number in the payloads of a task.

    Raises:
        TaskDefinitionError: It does not. The message offers the nearest one that does. Or a type of the task
            cannot travel.
    """
    shown = f"task {task!r}: the key {pointer!r}"
    match list(payload.signature.annotations.items()):
        case []:
            raise TaskDefinitionError(f"{shown} names a field, and the task has no parameters")
        case [(name, kind)] if kind is str or kind is bytes:
            raise TaskDefinitionError(
                f"{shown} names a field, and the payload is the {kind.__name__} itself; write a function of "
                f"the argument, 'lambda {name}: ...', or take a second parameter"
            )
        case _:
            pass
    top = _Place.top(payload.written_schema())
    places = [top]
    for token in pointer[1:].split("/"):
        name = token.replace("~1", "/").replace("~0", "~")
        places = [below for place in places for below in place.below(name)]
    if not places:
        _refuse(f"{shown} names a field that its payload does not have", pointer, top)
    if not any(place.may_be_scalar for place in places):
        _refuse(f"{shown} names an object or a list, and a key is a text or a number", pointer, top)


def _refuse(fault: str, pointer: str, top: "_Place") -> NoReturn:
    known = list(dict.fromkeys(top.pointers(_DEPTH)))
    alike = [
        each
        for each in known
        if each.endswith(pointer) or pointer.endswith(each) or each.startswith(f"{pointer}/")
    ]
    if near := alike or get_close_matches(pointer, known, n=1):
        raise TaskDefinitionError(f"{fault}; did you mean {near[0]!r}?")
    if not known:
        raise TaskDefinitionError(f"{fault}; there is none that is a text or a number")
    more = ", ..." if len(known) > _SHOWN else ""
    raise TaskDefinitionError(f"{fault}; there are {', '.join(map(repr, known[:_SHOWN]))}{more}")


@dataclass(frozen=True, slots=True)
class _Place:
    """A place in a JSON schema."""

    node: dict[str, Any]
    definitions: dict[str, Any]

    @classmethod
    def top(cls, schema: dict[str, Any]) -> "_Place":
        return cls(schema, schema.get("$defs", {}))

    def branches(self) -> "list[_Place]":
        """What may be there: this, what it refers to, or its alternatives."""
        if "$ref" in self.node:
            name = str(self.node["$ref"]).rpartition("/")[2].replace("~1", "/").replace("~0", "~")
            return self._at(self.definitions[name]).branches()
        parts = [part for word in ("anyOf", "oneOf", "allOf") for part in self.node.get(word, ())]
        return [each for part in parts for each in self._at(part).branches()] if parts else [self]

    def below(self, name: str) -> "list[_Place]":
        """The places that a part of a pointer leads to. A schema that says nothing takes any."""
        return [self._at(found) for each in self.branches() if (found := each.field(name)) is not False]

    def field(self, name: str) -> Any:
        """The schema of a field, or False if there is none."""
        fields = self.node.get("properties", {})
        match self.node.get("type"):
            case "array":
                return self.node.get("items", True) if name.isdecimal() else False
            case kind if kind in _NO_FIELDS or "enum" in self.node or "const" in self.node:
                return False
            case _:
                return fields.get(name, self.node.get("additionalProperties", not fields))

    @property
    def may_be_scalar(self) -> bool:
        """Whether a text or a number may be there."""
        return any(each.node.get("type") not in ("object", "array", "null") for each in self.branches())

    def pointers(self, depth: int, prefix: str = "") -> list[str]:
        """The pointers to all fields that may be a text or a number."""
        found = [prefix] if prefix and self.may_be_scalar else []
        for each in self.branches() if depth else ():
            for name, schema in each.node.get("properties", {}).items():
                escaped = name.replace("~", "~0").replace("/", "~1")
                found += self._at(schema).pointers(depth - 1, f"{prefix}/{escaped}")
        return found

    def _at(self, schema: Any) -> "_Place":
        return _Place(cast("dict[str, Any]", schema) if isinstance(schema, dict) else {}, self.definitions)
