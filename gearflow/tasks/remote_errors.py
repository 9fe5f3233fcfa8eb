"""Exceptions across the wire: the exception of a task <-> the data of WORK_EXCEPTION.

The data is JSON, ``{type, message, traceback, errors}``, where ``type`` is ``module.QualName``, or the bare
name of a builtin. Any other data, in any encoding, is the message of a worker of another kind.

The caller gets a ``TaskFailed``. If the class is known here, the exception is also an instance of that class,
so both ``except KeyError`` and ``except TaskFailed`` catch it. The bytes come from the network, so nothing
that they name is imported or called. Classes are looked up only in the dictionaries of loaded modules and of
classes in them. The class must be an ordinary subclass of ``Exception``, and its own ``__init__``,
``__new__``, ``__setattr__`` and ``__str__`` do not run, because they may need arguments that did not travel.
These stay a plain ``TaskFailed``:

* exceptions that steer control flow (``StopIteration``, ``TryAgain`` and similar), because they would steer
  the caller;
* groups, because their parts did not travel;
* gearflow's own errors about servers and connections, because they would seem to be about the caller's.

An exception in another process of the worker is represented by one in the worker itself, which
``gearflow.worker.processes.errors`` makes. It carries a ``Relayed``: the data for the wire with the right
traceback, and the names of all its classes, also of those that are not known here.
"""

import builtins
import concurrent.futures
import contextlib
import json
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, cast

from gearflow.errors import GearflowError, PayloadInvalid, TaskCrashed, TaskFailed, TaskTimeout
from gearflow.runtime.modules import importable_name, loaded
from gearflow.tasks.control_flow import Control

_ATTRIBUTE: Final = "_gearflow_relayed"


@dataclass(frozen=True, slots=True)
class Relayed:
    """An exception as the process that raised it describes it."""

    data: bytes
    """As ``encode_failure`` gave it there."""

    kinds: tuple[str, ...]
    """Its class and their bases, by name."""


def relay(error: BaseException, original: Relayed) -> None:
    """Have an error stand for one in another process."""
    setattr(error, _ATTRIBUTE, original)


def relayed(error: BaseException) -> Relayed | None:
    """The description from the other process, or None if the exception was raised here."""
    return cast("Relayed | None", vars(error).get(_ATTRIBUTE))


def name_of(kind: type | str) -> str:
    """The name of a class. A name without a module is a builtin's."""
    if isinstance(kind, str):
        return kind if "." in kind else f"builtins.{kind}"
    return f"{importable_name(kind.__module__)}.{kind.__qualname__}"


MAX_TRACEBACK: Final = 65536
"""Characters of a traceback that travel. They are the last ones, next to the fault."""

MAX_MESSAGE: Final = 65536
"""Characters of a message that travel."""

_MAX_FRAMES: Final = 1000
"""Frames of each exception in a traceback. They are the last ones."""

_MAX_CAUSES: Final = 100
"""Exceptions in a traceback that led to one another. They are the last ones."""

_MAX_NAME: Final = 512  # characters in a class name that is looked up

_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement

_CONTROL_FLOW: Final = (StopIteration, StopAsyncIteration, concurrent.futures.CancelledError, Control)


# ------------------------------------------------------------------------------------------ at the worker


def encode_failure(exc: BaseException) -> bytes:
    """The data of WORK_EXCEPTION for a task's exception. Never fails itself."""
    if (original := relayed(exc)) is not None:
        return original.data
    return json.dumps(
        {
            "type": _type_name(exc),
            "message": _message(exc),
            "traceback": _traceback(exc),
            "errors": _errors(exc),
        }
    ).encode()


def _type_name(exc: BaseException) -> str:
    if isinstance(exc, TaskFailed) and exc.type:
        return exc.type  # of the task that this one waited for
    cls = type(exc)
    return cls.__qualname__ if cls.__module__ == "builtins" else name_of(cls)


def _message(exc: BaseException) -> str:
    try:
        message = exc.message if type(exc) is TaskFailed else str(exc)
        return _clean(message[:MAX_MESSAGE])[:MAX_MESSAGE]
    except BaseException:  # noqa: BLE001  (a user's __str__ may raise anything; the failure must still travel)
        return f"<{type(exc).__qualname__} whose str() fails>"


def _traceback(exc: BaseException) -> str:
    if isinstance(exc, GearflowError) and exc.__traceback__ is not None and not _has_users_frames(exc):
        return ""  # the message says it all
    try:
        whole = "".join(summary_of(exc, _users_frames(exc.__traceback__)).format())
        text = _clean(whole[-MAX_TRACEBACK - 1 :])
    except BaseException:  # noqa: BLE001  (formatting calls the user's code as well)
        return ""
    return text if len(text) <= MAX_TRACEBACK else f"...{text[-MAX_TRACEBACK:]}"


def summary_of(exc: BaseException, frames: TracebackType | None) -> traceback.TracebackException:
    """Return what Python prints of an exception, so that printing it takes little time.

    The worker's event loop waits for it. It has the last frames and the last causes, and reads lines of code
    only when it is printed. Python itself prints only the first members and levels of a group.
    """
    summary = traceback.TracebackException(
        type(exc), exc, _last_of(frames), limit=-_MAX_FRAMES, lookup_lines=False, compact=True
    )
    last: traceback.TracebackException | None = summary
    for _ in range(_MAX_CAUSES - 1):
        last = (last.__cause__ or last.__context__) if last is not None else None
    if last is not None:
        last.__cause__ = last.__context__ = None
    return summary


def _last_of(frames: TracebackType | None) -> TracebackType | None:
    """Return the last frames of a traceback. An exception that is raised again and again has ever more."""
    ahead = frames
    for _ in range(_MAX_FRAMES):
        if ahead is None:
            return frames
        ahead = ahead.tb_next
    while ahead is not None and frames is not None:
        ahead, frames = ahead.tb_next, frames.tb_next
    return frames


def _users_frames(frames: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the task's function on, or all of it if there is no such part."""
    return _below_ours(frames) or frames


def _has_users_frames(exc: BaseException | None) -> bool:
    """Whether the error or one that led to it passed through code that is not gearflow's."""
    while exc is not None:
        if _below_ours(exc.__traceback__) is not None:
            return True
        exc = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    return False


def _below_ours(frames: TracebackType | None) -> TracebackType | None:
    """Return the traceback without gearflow's own frames at its top."""
    while frames is not None and str(frames.tb_frame.f_globals.get("__name__")).startswith("gearflow."):
        frames = frames.tb_next
    return frames


def _errors(exc: BaseException) -> Sequence[Mapping[str, Any]]:
    try:
        pydantic = sys.modules.get("pydantic_core")  # not loaded, it has raised nothing
        if pydantic is not None and isinstance(exc, pydantic.ValidationError):
            return cast(
                "list[dict[str, Any]]",
                json.loads(cast(Any, exc).json(include_url=False, include_input=False)),
            )
        if isinstance(exc, PayloadInvalid | TaskFailed):
            json.dumps(exc.errors)
            return exc.errors
    except (TypeError, ValueError, RecursionError):
        pass  # a list is nice to have
    return []


def _clean(text: str) -> str:
    """Text with lone surrogates escaped, because they cannot be printed."""
    return text.encode("utf-8", "backslashreplace").decode()


# ------------------------------------------------------------------------------------------ at the caller


def decode_failure(data: bytes | None, handle: str) -> TaskFailed:
    """The exception to raise for a job that failed with ``data``. None means WORK_FAIL."""
    fields = _fields(data)
    failure = _rebuild(fields.pop("kind"), **fields, handle=handle)
    if failure.traceback:
        failure.add_note(f"\nOn the worker (job {handle}):\n\n{failure.traceback.rstrip()}")
    return failure


def as_failed(error: PayloadInvalid) -> TaskFailed:
    """The failure of a call whose value does not fit, as if the worker had found that, and not the caller."""
    return _rebuild(_type_name(error), str(error), errors=error.errors)


def _fields(data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {"kind": None, "message": "the worker ended the job as failed, and gave no reason"}
    try:
        received = json.loads(data)
    except (ValueError, RecursionError):
        received = None
    if not (isinstance(received, dict) and isinstance(cast(Any, received).get("message"), str)):
        return {"kind": None, "message": data.decode("utf-8", "backslashreplace").rstrip("\0")}
    wire = cast("dict[str, Any]", received)
    kind, trace, errors = wire.get("type"), wire.get("traceback"), wire.get("errors")
    return {
        "kind": _clean(kind) if isinstance(kind, str) else None,
        "message": _clean(wire["message"]),
        "traceback": _clean(trace) if isinstance(trace, str) else None,
        "errors": _dicts(errors),
    }


def _dicts(errors: Any) -> list[dict[str, Any]]:
    if not isinstance(errors, list):
        return []
    return [
        cast("dict[str, Any]", error) for error in cast("list[object]", errors) if isinstance(error, dict)
    ]


def _rebuild(kind: str | None, message: str, **fields: Any) -> TaskFailed:
    fields = {"traceback": None, "errors": [], **fields}
    cls = _class_named(kind) if kind else None
    if cls is TaskTimeout or cls is TaskCrashed:
        return cls(message, type=kind, **fields)
    remote = _remote_class(cls) if cls is not None else None
    failure = _bare_instance(remote, message) if remote is not None else None
    if failure is None:
        return TaskFailed(message, type=kind, **fields)
    # not by TaskFailed.__init__: its super() is the user's class here
    failure.args = (message,)
    for name, value in {"type": kind, "message": message, **fields}.items():
        setattr(failure, name, value)
    return failure


def _restored(kind: str | None, fields: dict[str, Any], notes: list[str]) -> TaskFailed:
    failure = _rebuild(kind, **fields)
    for note in notes:
        failure.add_note(note)
    return failure


def _class_named(name: str) -> type | None:
    """The class of that name, if it is in a loaded module."""
    if len(name) > _MAX_NAME:
        return None
    parts = name.split(".")
    if len(parts) == 1:
        return _member(vars(builtins), parts)
    for cut in range(len(parts) - 1, 0, -1):
        module = loaded(".".join(parts[:cut]))
        if module is not None:
            return _member(getattr(module, "__dict__", {}), parts[cut:])
    return None


def _member(namespace: Mapping[str, Any], path: list[str]) -> type | None:
    found: Any = None
    for part in path:
        found = namespace.get(part)
        if type(found) is not type:  # nor anything with a metaclass, which could run code when subclassed
            return None
        namespace = vars(found)
    return cast(type, found)


class _Remote(TaskFailed):
    """The base of all rebuilt classes. Of the user's class, only ``isinstance`` works."""

    # Found before properties of the user's class, so that TaskFailed can set its attributes.
    type = None
    message = ""
    traceback = None
    errors = []  # noqa: RUF012  (a place holder: each instance gets its own)
    handle = None

    __setattr__ = Exception.__setattr__
    __getattribute__ = Exception.__getattribute__
    __hash__ = Exception.__hash__
    __eq__ = Exception.__eq__

    def __init_subclass__(cls) -> None:
        pass  # and not the user's, which may keep a register of its subclasses

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles the received fields, because the class cannot be found by its name."""
        fields = {name: getattr(self, name) for name in ("message", "traceback", "errors", "handle")}
        return _restored, (self.type, fields, getattr(self, "__notes__", []))

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({self.message!r})"


@lru_cache(maxsize=1024)
def _remote_class(cls: type) -> type[TaskFailed] | None:
    """A class that is both TaskFailed and ``cls``, or None if there should not or cannot be one."""
    if not issubclass(cls, Exception) or issubclass(cls, (*_CONTROL_FLOW, BaseExceptionGroup)):
        return None
    if (
        issubclass(cls, GearflowError)
        and cls is not PayloadInvalid
        and cls.__module__.startswith("gearflow.")
    ):
        return None
    namespace = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    try:
        return type(cls.__name__, (_Remote, cls), namespace)
    except TypeError:  # a final class
        return None


def _bare_instance(cls: type[TaskFailed], message: str) -> TaskFailed | None:
    """An instance made by the nearest class written in C: past the ``__new__`` and ``__init__`` of others."""
    for native in cls.__mro__:
        if native.__flags__ & _HEAP_TYPE:
            continue
        try:
            failure = cast(TaskFailed, cast(Any, native).__new__(cls, message))
        except TypeError:  # MemoryError: Python asks for the one of a class further down
            continue
        with contextlib.suppress(TypeError):  # UnicodeDecodeError and such want more: their fields stay empty
            cast(Any, native).__init__(failure, message)
        return failure
    return None  # pydantic's ValidationError, and whatever else is made by its own factory alone
