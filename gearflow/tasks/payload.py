"""A task's arguments and result <-> the bytes of a workload, by the task's signature.

Payloads are plain, so workers and clients in any language can take part:

* *raw*: the sole parameter is exactly ``str`` (as UTF-8) or ``bytes``: the workload is the value;
* *model*: the sole parameter is one ``BaseModel``: its own JSON object;
* *none*: no parameters: ``{}``, and an empty workload is accepted;
* everything else: a JSON object by parameter name, with defaults filled in.

A result is raw if it is exactly ``str`` or ``bytes``, else JSON (``None`` is ``null``). The same holds for
each value of a task that yields. Unknown keys are refused. The injected ``Context`` is not a parameter here.
The producer validates a payload, and the worker validates it again, because its callers may be programs that
do not know the types.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final, Protocol, cast

from gearflow.errors import PayloadInvalid
from gearflow.tasks.signature import TaskSignature

_SHOWN_FAULTS: Final = 3  # in the message, while the list has all


class Encoder(Protocol):
    """Values of one type <-> bytes. A value that does not fit raises ValueError, most often pydantic's."""

    def dump(self, value: Any, /) -> bytes:
        """The bytes of a value."""
        ...

    def canonical(self, value: Any, /) -> bytes:
        """Bytes that are the same for equal values."""
        ...

    def load(self, data: bytes, /) -> Any:
        """The value in bytes."""
        ...

    def json_schema(self, mode: Any, /) -> dict[str, Any]:
        """The JSON Schema of the bytes, for reading (``validation``) or writing (``serialization``)."""
        ...


class PayloadCodec:
    """Encodes and decodes a task's arguments and its result.

    Annotations are read at the first use. Then all methods raise TaskDefinitionError if a type cannot travel.
    (pydantic, its serializers and UTF-8 all refuse a value with a ``ValueError``.)
    """

    def __init__(self, signature: TaskSignature, task: str) -> None:
        self.signature = signature
        self._task = task

    def check(self) -> None:
        """Read the annotations now. Raises TaskDefinitionError if one of them cannot travel."""
        self._arguments  # noqa: B018  (made at its first use)
        self._result  # noqa: B018  (the same)

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """The workload of a call.

        Raises:
            TypeError: The arguments do not fit the function's parameters.
            PayloadInvalid: An argument does not fit its type.
        """
        values = self.signature.bind(args, kwargs)
        try:
            return self._arguments.dump(values)
        except ValueError as error:
            raise self._invalid("the arguments do", error) from error

    def canonical(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """Bytes that equal calls share, whatever the order of sets and dicts. Raises as ``encode``."""
        values = self.signature.bind(args, kwargs)
        try:
            return self._arguments.canonical(values)
        except ValueError as error:
            raise self._invalid("the arguments do", error) from error

    def decode(self, workload: bytes) -> dict[str, Any]:
        """The arguments in a workload, by name. Those that it leaves out have defaults.

        Raises:
            PayloadInvalid: The workload does not fit the task's parameters.
        """
        try:
            return cast("dict[str, Any]", self._arguments.load(workload))
        except ValueError as error:
            raise self._invalid("the payload does", error) from error

    def encode_result(self, value: Any) -> bytes:
        """The bytes of a result, or of a value that is yielded.

        Raises:
            PayloadInvalid: It does not fit the task's type.
        """
        try:
            return self._result.dump(value)
        except ValueError as error:
            verb = "yielded" if self.signature.is_stream else "returned"
            raise self._invalid(f"what it {verb} does", error) from error

    def decode_result(self, data: bytes) -> Any:
        """The result, or the value of a part, in bytes. Raises PayloadInvalid if they do not fit its type."""
        try:
            return self._result.load(data)
        except ValueError as error:
            what = "a value" if self.signature.is_stream else "the result"
            raise self._invalid(f"{what} does", error) from error

    def json_schema(self) -> dict[str, Any]:
        """``{"payload": ..., "result": ...}`` with the JSON Schemas of payload and result."""
        return {
            "payload": self._arguments.json_schema("validation"),
            "result": self._result.json_schema("serialization"),
        }

    def written_schema(self) -> dict[str, Any]:
        """The JSON Schema of the payloads that callers send."""
        return self._arguments.json_schema("serialization")

    @cached_property
    def _arguments(self) -> Encoder:
        from gearflow.tasks.encoders import encoder_of_arguments  # only now: it imports pydantic

        return encoder_of_arguments(self.signature, self._task)

    @cached_property
    def _result(self) -> Encoder:
        from gearflow.tasks.encoders import encoder_of_result

        what = "a value" if self.signature.is_stream else "the result"
        return encoder_of_result(self.signature.result, what, self._task)

    def _invalid(self, what: str, error: ValueError) -> PayloadInvalid:
        from gearflow.tasks.encoders import faults_of

        errors = faults_of(error)
        shown = [
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" if fault["loc"] else fault["msg"]
            for fault in errors[:_SHOWN_FAULTS]
        ]
        if more := len(errors) - len(shown):
            shown.append(f"and {more} more")
        return PayloadInvalid(f"task {self._task!r}: {what} not fit its types: {'; '.join(shown)}", errors)
