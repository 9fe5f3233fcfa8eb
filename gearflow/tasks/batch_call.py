"""One call of a batch task: the payloads of its items in, an outcome for each of them out.

A payload that does not fit its type is an outcome of its own, and the function is called with the others. So
is a result that does not fit.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

from gearflow.errors import PayloadInvalid
from gearflow.tasks.batch import BatchSignature
from gearflow.tasks.context import Context
from gearflow.tasks.definition import TaskDefinition

Outcome: TypeAlias = bytes | BaseException
"""The encoded result of an item, or the exception that takes its place."""


class BatchCall:
    """A call. Made where the function runs, since it validates the payloads. Owns state.

    Args:
        task: The task.
        payloads: Of its items.
        context: Of the run, if the task takes one. Its ``items`` are those of all payloads, and then of those
            that are valid.
    """

    def __init__(self, task: TaskDefinition, payloads: Sequence[bytes], context: Context | None) -> None:
        self._task = task
        self._signature = cast(BatchSignature, task.payload.signature)
        self._context = context
        self._outcomes: list[Outcome] = []
        self._places: list[int] = []  # of those that the function is called with
        self._items: list[Any] = []
        for place, payload in enumerate(payloads):
            try:
                [item] = task.payload.decode(payload).values()
            except PayloadInvalid as error:
                self._outcomes.append(error)
                continue
            self._outcomes.append(b"")
            self._places.append(place)
            self._items.append(item)
        if context is not None:
            context.items = tuple(context.items[place] for place in self._places)

    @property
    def is_empty(self) -> bool:
        """No payload is valid, so there is nothing to call the function for."""
        return not self._items

    def apply(self) -> Any:
        """Call the function. Returns what that returns, or its coroutine. Raises what it raises."""
        return self._signature.call_with(self._items, context=self._context)

    def outcomes(self, returned: Any = None) -> list[Outcome]:
        """The outcomes of all items, with what the function returned unless it was not called.

        Raises:
            PayloadInvalid: It did not return one result for each item.
        """
        if self._items:
            results = self._results(returned)
            for place, result in zip(self._places, results, strict=True):
                self._outcomes[place] = self._outcome(result)
        return self._outcomes

    def _results(self, returned: Any) -> list[Any]:
        found = _as_list(returned)
        if found is None or len(found) != len(self._items):
            what = f"a {_kind(returned)}" if found is None else f"a list of {len(found)}"
            raise PayloadInvalid(
                f"task {self._task.name!r}: it returned {what} for a batch of {len(self._items)} items; "
                "return a list with one result, or an exception in its place, for each item, in their order"
            )
        return found

    def _outcome(self, result: Any) -> Outcome:
        if isinstance(result, BaseException):
            return result
        try:
            return self._task.payload.encode_result(result)
        except PayloadInvalid as error:
            return error


def _as_list(returned: Any) -> list[Any] | None:
    return list(cast("Sequence[Any]", returned)) if isinstance(returned, list | tuple) else None


def _kind(value: object) -> str:
    return type(value).__name__
