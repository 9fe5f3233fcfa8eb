"""Tasks as ``gearflow map`` calls them: with a line for each call, and with the bytes of its result.

With a module, the task's own types read a line and check it. Without one, a line is JSON, or the text that
the function takes. ``--raw`` sends lines as they are.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from gearflow_cli import arguments, function_names, imports
from gearflow_cli.lines import Line

if TYPE_CHECKING:
    from gearflow.client import JobRequest
    from gearflow.tasks.definition import TaskDefinition

    AnyTask: TypeAlias = TaskDefinition


class LineTask:
    """A task, or a function of which only the name is known, that takes a line."""

    def __init__(
        self,
        name: str,
        task: "AnyTask | None",
        options: Mapping[str, Any],
        *,
        takes_text: bool,
    ) -> None:
        from gearflow.tasks.options import Options

        self.name = name
        self.payload = self
        self._task = task if task is None else task.options(**options)
        self._options = Options().updated(options)
        self._takes_text = takes_text

    @property
    def returns_text(self) -> bool:
        """Whether a result is a text, and never JSON."""
        return self._task is not None and self._task.payload.signature.result is str

    def is_nothing(self, line: Line) -> bool:
        """Whether a line is between values, and no value itself."""
        return not self._takes_text and not line.data.strip()

    def decode_result(self, data: bytes) -> bytes:
        """The bytes themselves."""
        return data

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """The payload for a line. Raises PayloadInvalid if the line does not fit."""
        line: Line = args[0]
        task = self._task
        if task is None:
            return line.data
        with imports.user_code(task):
            return task.payload.encode((), task.payload.decode(line.data))

    def prepare(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, earlier: int = 0) -> "JobRequest":
        """A call whose caller waits. Raises PayloadInvalid if the line does not fit."""
        return self.request(args[0], earlier=earlier)

    def prepare_chunk(self, payloads: Sequence[bytes]) -> "JobRequest":
        """Several such calls that share a job."""
        assert self._task is not None  # as --chunk requires
        return self._task.prepare_chunk(payloads)

    def request(self, line: Line, *, detached: bool = False, earlier: int = 0) -> "JobRequest":
        """The call for a line. Raises PayloadInvalid if it does not fit."""
        from gearflow.client import JobRequest
        from gearflow.protocol.uniques import fresh_unique

        task = self._task
        if task is not None:
            with imports.user_code(task):
                arguments = task.payload.decode(line.data)
                if detached:
                    return task.prepare_background((), arguments)
                return task.prepare((), arguments, earlier=earlier)
        if not self._takes_text:
            _check_json(line)
        options = self._options
        # gearmand's queue plugins overwrite the rows of background jobs without a unique
        unique = fresh_unique() if detached else ""
        asked = None if options.is_plain else options.asked
        return JobRequest(self.name, line.data, unique, options.priority, asked, detached=detached)


class Reducer:
    """A task that makes one value of several. The values are JSON."""

    def __init__(self, name: str, task: "AnyTask | None") -> None:
        self.name = name
        self.payload = self
        self._task = task

    def decode_result(self, data: bytes) -> bytes:
        """The bytes themselves."""
        return data

    def prepare(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "JobRequest":
        """A call for several values, whose caller waits. Raises PayloadInvalid if they do not fit."""
        from gearflow.client import JobRequest

        values: Sequence[bytes] = args[0]
        array = b"[%b]" % b",".join(as_value(value) for value in values)
        task = self._task
        if task is None:
            return JobRequest(self.name, array, detached=False)
        with imports.user_code(task):
            name = next(iter(task.payload.signature.parameters), "")
            return task.prepare((), task.payload.decode(b"{%b:%b}" % (json.dumps(name).encode(), array)))


def as_value(result: bytes, *, is_text: bool = False) -> bytes:
    """A result as JSON on one line: itself if it is JSON, else a text."""
    if not is_text:
        try:
            value = json.loads(result)
        except (ValueError, RecursionError):
            pass
        else:
            return json.dumps(value).encode() if b"\n" in result else result
    return json.dumps(result.decode("utf-8", "backslashreplace"), ensure_ascii=False).encode()


def _check_json(line: Line) -> None:
    from gearflow.errors import PayloadInvalid

    try:
        json.loads(line.data)
    except (ValueError, RecursionError) as error:
        fault = (
            f"it is not JSON ({error}); name the task's module with -m, or send lines as they are with --raw"
        )
        raise PayloadInvalid(fault) from None


def takes_text(name: str, task: "AnyTask | None", addresses: Sequence[str]) -> bool:
    """Whether the payload of the function is a text or bytes. Without its task, the workers say it."""
    if task is None:
        return function_names.takes(name, addresses).text is not None
    return arguments.sole_text(task) is not None
