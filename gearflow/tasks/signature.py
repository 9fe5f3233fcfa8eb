"""The parameters of a task's function by name, bound as a call would bind them.

The kinds of the parameters, and whether they are annotated, are checked when the function is decorated. The
annotations are resolved at the first use, so a model may be defined below the task that uses it.
"""

import inspect
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from functools import cached_property
from inspect import Parameter
from typing import Any, Final, NoReturn, get_args, get_origin, get_type_hints

from gearflow.errors import TaskDefinitionError
from gearflow.tasks.context import Context

_POSITIONAL = frozenset({Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD})

SYNC_STREAMS: Final = (Iterator, Generator)
ASYNC_STREAMS: Final = (AsyncIterator, AsyncGenerator)
"""The annotations of functions whose values are a stream."""


def stream_class(function: Callable[..., Any]) -> Any:
    """Which of them a function has as the annotation of its result; None if it has another one.

    It need not be resolved for that: ``"Iterator[Model]"`` may name a model that is defined below.
    """
    annotation = inspect.signature(function).return_annotation
    if isinstance(annotation, str):
        head = annotation.partition("[")[0].strip()
        names = getattr(inspect.unwrap(function), "__globals__", {})
        try:
            annotation = eval(head, names)  # as typing.get_type_hints does with all of it
        except Exception:  # noqa: BLE001  (it is defined later, or where its function is)
            annotation = _BY_NAME.get(head.rpartition(".")[2])
    origin = get_origin(annotation) or annotation
    return origin if origin in _BY_NAME.values() else None


_BY_NAME: Final = {kind.__name__: kind for kind in (*SYNC_STREAMS, *ASYNC_STREAMS)}


class TaskSignature:
    """The parameters of a function, without the injected ``Context``, and its result. A frozen value.

    Attributes:
        is_stream: The function returns an iterator, whose values are sent one by one.

    Raises (on creation):
        TaskDefinitionError: A parameter or the result has no annotation, or there is ``*args`` or
            ``**kwargs``. Names and types are needed to send values.
    """

    def __init__(self, function: Callable[..., Any], task: str) -> None:
        self._function = function
        self._task = task
        self._all = inspect.signature(function)
        for parameter in self._all.parameters.values():
            self._check(parameter)
        if self._all.return_annotation is Parameter.empty:
            self._refuse("the result has no annotation: add '-> TYPE', '-> None' if there is no result")
        self.is_stream = stream_class(function) is not None
        if self.is_stream and not isinstance(self._all.return_annotation, str):
            self._value_of(self._all.return_annotation)

    def _check(self, parameter: Parameter) -> None:
        if parameter.kind is Parameter.VAR_POSITIONAL:
            self._refuse(
                f"*{parameter.name} has no names to send values under; take a list, "
                f"'{parameter.name}: list[T]'"
            )
        if parameter.kind is Parameter.VAR_KEYWORD:
            self._refuse(
                f"**{parameter.name} has no fixed names; take a dict, '{parameter.name}: dict[str, T]'"
            )
        if parameter.annotation is Parameter.empty:
            remedy = (
                "a task is a function of its own, so take @task off the method"
                if parameter.name in {"self", "cls"}
                else f"write '{parameter.name}: TYPE', or 'Any' if it may be any JSON"
            )
            self._refuse(f"the parameter {parameter.name!r} has no annotation; {remedy}")

    def _refuse(self, fault: str) -> NoReturn:
        raise TaskDefinitionError(f"{self._function.__qualname__} cannot be the task {self._task!r}: {fault}")

    # --------------------------------------------------------------------------------- read at first use

    @cached_property
    def _hints(self) -> dict[str, Any]:
        try:
            return get_type_hints(self._function, include_extras=True)
        except NameError as error:
            module = sys.modules.get(self._function.__module__)
            where = getattr(module, "__file__", None) or self._function.__module__
            self._refuse(
                f"{error.name!r} in an annotation is not defined in {where}; "
                "import or define it at the module's top level"
            )

    @cached_property
    def takes_context(self) -> bool:
        """Whether the first parameter is annotated ``Context``: the worker gives it, callers do not."""
        for name in self._all.parameters:
            if any(part is Context for part in get_args(self._hints[name])):
                self._refuse(f"annotate {name!r} as 'Context' alone: a run has one, and a local call as well")
        contexts = [name for name in self._all.parameters if self._hints[name] is Context]
        if not contexts:
            return False
        first = next(iter(self._all.parameters.values()))
        if contexts != [first.name] or first.kind not in _POSITIONAL:
            self._refuse(f"the Context must be the first parameter, and the only one: move {contexts[-1]!r}")
        return True

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters that callers pass, by name, in order."""
        parameters = list(self._all.parameters.values())
        return {parameter.name: parameter for parameter in parameters[self.takes_context :]}

    @cached_property
    def annotations(self) -> dict[str, Any]:
        """The types of ``parameters``, resolved."""
        return {name: self._hints[name] for name in self.parameters}

    @property
    def sole_text(self) -> str | None:
        """The name of the only parameter if it is a ``str``: the payload is then the text itself."""
        match list(self.annotations.items()):
            case [(name, kind)] if kind is str:
                return name
            case _:
                return None

    @property
    def returns(self) -> Any:
        """The annotation of what the function returns, resolved. ``None`` is ``NoneType``."""
        return self._hints["return"]

    @cached_property
    def result(self) -> Any:
        """The type of the result, or of each value of a stream."""
        return self._value_of(self.returns) if self.is_stream else self.returns

    def _value_of(self, iterator: Any) -> Any:
        arguments = get_args(iterator)
        if not arguments:
            name = getattr(get_origin(iterator) or iterator, "__name__", "Iterator")
            self._refuse(f"it does not say what it yields: write '-> {name}[TYPE]'")
        return arguments[0]

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The values that callers may leave out."""
        return {
            name: parameter.default
            for name, parameter in self.parameters.items()
            if parameter.default is not Parameter.empty
        }

    @cached_property
    def _positional(self) -> tuple[str, ...]:
        return tuple(name for name, parameter in self.parameters.items() if parameter.kind in _POSITIONAL)

    @cached_property
    def _arity(self) -> int:
        """The number of parameters, if all may be passed by position."""
        return len(self.parameters) if len(self._positional) == len(self.parameters) else -1

    @cached_property
    def _by_keyword(self) -> frozenset[str]:
        return frozenset(
            name
            for name, parameter in self.parameters.items()
            if parameter.kind is not Parameter.POSITIONAL_ONLY
        )

    @cached_property
    def _positional_only(self) -> tuple[str, ...]:
        return tuple(name for name in self.parameters if name not in self._by_keyword)

    # ------------------------------------------------------------------------------------------- binding

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, with defaults filled in.

        Raises:
            TypeError: They do not fit the parameters. The message is that of the plain call.
        """
        # ten times as fast as inspect.Signature.bind, which only explains faults here
        if not kwargs and len(args) == self._arity:
            if len(args) == 1:  # the usual case, in a third of the time
                return {self._positional[0]: args[0]}
            return dict(zip(self._positional, args, strict=True))
        values = dict(zip(self._positional, args, strict=False))
        if kwargs:
            if not (kwargs.keys() <= self._by_keyword and values.keys().isdisjoint(kwargs)):
                self._misused(args, kwargs)
            values.update(kwargs)
        if len(values) < len(self.parameters):
            values = {**self.defaults, **values}
        if len(values) != len(self.parameters) or len(args) > len(self._positional):
            self._misused(args, kwargs)
        return values

    def apply_to(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """Call another function with the arguments of a call, as the task's own function takes them."""
        by_name = {name: arguments[name] for name in self.parameters if name not in self._positional}
        return function(*(arguments[name] for name in self._positional), **by_name)

    def check_takes_one(self) -> None:
        """Raise TypeError if the function cannot be called with one item alone, as ``map`` does."""
        required = [name for name in self.parameters if name not in self.defaults]
        if not self._positional or not set(required) <= {self._positional[0]}:
            wanted = ", ".join(map(repr, required)) or "nothing"
            raise TypeError(
                f"{self._task}() wants {wanted}, and map() and background_many() give each call one item; "
                "write starmap() if each item is a tuple of all arguments, or take one tuple or model as the "
                "only parameter, 'def f(p: tuple[int, int])'"
            )

    def _misused(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> NoReturn:
        signature = inspect.Signature(list(self.parameters.values()))
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._task}(): {error}") from None
        raise AssertionError(f"{self._task}{signature} takes {args} and {kwargs} after all")

    def apply(self, arguments: Mapping[str, Any], *, context: Context | None = None) -> Any:
        """Call the function with arguments by name. Missing ones take the function's own defaults."""
        injected = (context,) if self.takes_context else ()
        if not self._positional_only:
            return self._function(*injected, **arguments)
        keywords = {**self.defaults, **arguments}
        first = [keywords.pop(name) for name in self._positional_only]
        return self._function(*injected, *first, **keywords)
