"""A function that workers offer: its name on servers, its types and its options.

``Task`` and ``StreamTask`` add the verbs that call it.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, ClassVar, Self, Unpack, cast

from gearflow.client import JobKey, JobName, JobRequest, ServerAddress
from gearflow.schedules import Schedule
from gearflow.tasks import submission
from gearflow.tasks.context import Context
from gearflow.tasks.limits import Key, Limit, TaskLimits, check_pointers
from gearflow.tasks.options import CallOptions, Options, Place
from gearflow.tasks.payload import PayloadCodec
from gearflow.tasks.redaction import check_fields
from gearflow.tasks.ref import parse
from gearflow.tasks.retry import Retry
from gearflow.tasks.schedules import check_schedules
from gearflow.tasks.signature import TaskSignature

if TYPE_CHECKING:
    from gearflow.tasks.batch import Batch


class TaskDefinition:
    """The members that all tasks have. It is a frozen value that ``@task`` makes.

    Attributes:
        name: The function's name on servers.
        function: Your function.
        payload: Converts arguments and results to workloads and back.
        is_async: Whether the function runs on the event loop.
        is_stream: Whether the function yields values.
        timeout: Seconds a run may take if the call does not say. None means any time.
        retries: When a failed run is repeated if the call does not say. None means never.
        keep: Seconds for which the outcome of a background call is kept if the call does not say.
        stream_keep: Bytes of the values of a background call that are kept if the call does not say.
        resumable: Whether a further run goes on behind the values that were taken.
        foreign: Whether another program runs the task. The function is then a signature without a body.
        executor: Where a worker runs the function if it does not run on the event loop.
        schedules: When gearflow's server runs the task by itself.
        call_options: The options of its calls, which ``options()`` changes.
        limited: The limits that the task declares, with their names. None if there are none.
        redact: The fields of payloads that servers do not show. None if the task does not say.
        batch: How many jobs a worker collects for one run of the function. None means that each job has a
            run of its own.
    """

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    is_stream: bool = False
    stream_keep: int | None = None
    resumable: bool = False
    batch: "Batch | None" = None
    signature_type: ClassVar[type[TaskSignature]] = TaskSignature

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str,
        timeout: float | None = None,
        retries: Retry | None = None,
        keep: float | None = None,
        foreign: bool = False,
        executor: Place = "thread",
        options: Options = Options(),  # noqa: B008  (frozen)
        limited: TaskLimits | None = None,
        schedule: tuple[Schedule, ...] = (),
        redact: frozenset[str] | None = None,
    ) -> None:
        update_wrapper(cast(Any, self), function)
        self.name = name
        self.function = function
        self.payload = PayloadCodec(self.signature_type(function, name), name)
        self.is_async: bool = inspect.iscoroutinefunction(function)
        self.timeout = timeout
        self.retries = retries
        self.keep = keep
        self.foreign = foreign
        self.executor = executor
        self.call_options = options
        self.limited = limited
        self.schedules = schedule
        self.redact = redact

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limits that the task declares. Each has a name."""
        return () if self.limited is None else self.limited.limits

    @property
    def fair(self) -> Key | None:
        """The key of the groups of jobs that take turns."""
        return None if self.limited is None else self.limited.fair

    @property
    def takes_context(self) -> bool:
        """Whether the worker passes a ``Context`` to the function."""
        return self.payload.signature.takes_context

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def options(self, **opts: Unpack[CallOptions]) -> Self:
        """Return the same task with these options for the calls that you make through it.

        Raises:
            TypeError: There is no such option.
            ValueError: A value is not valid.
        """
        return self._with(opts)

    def check(self) -> None:
        """Check the types of parameters and result now, not at the first use.

        Raises:
            TaskDefinitionError: A type cannot travel, a default does not fit its type, a key of a limit names
                or ``redact`` a field that is not there, or the arguments of a schedule make no call.
        """
        self.payload.check()
        check_schedules(self)
        if self.limited is not None:
            check_pointers(self.limited, self.payload, self.name)
        if self.redact:
            check_fields(self.redact, self.payload, self.name)

    def json_schema(self) -> dict[str, Any]:
        """Return ``{"payload": ..., "result": ...}`` with the JSON Schemas of payload and result.

        The result of a task that yields is each of its values.
        """
        return self.payload.json_schema()

    def prepare(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, earlier: int = 0) -> JobRequest:
        """A call whose caller waits, ready to be sent. Raises as ``gearflow.tasks.submission.attached``."""
        return submission.attached(self, args, kwargs, earlier=earlier)

    def prepare_chunk(self, payloads: Sequence[bytes]) -> JobRequest:
        """Several such calls that share a job. Raises as ``prepare``."""
        return submission.attached_chunk(self, payloads)

    def prepare_background(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> JobRequest:
        """A background call, ready to be sent. Raises as ``prepare``."""
        return submission.detached(self, args, kwargs)

    def _run_here(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call the function here. The reports of a ``Context`` go nowhere."""
        context = (self._context_here(),) if self.takes_context else ()
        return self.function(*context, *args, **kwargs)

    def _context_here(self, items: tuple[Context, ...] = ()) -> Context:
        return Context(handle="", function=self.name, send=_to_nobody, items=items)

    def _job(self, handle: str | None, unique: str | None, server: ServerAddress | str | None) -> JobName:
        """The job that the arguments of ``ref()`` name."""
        if (handle is None) == (unique is None):
            raise ValueError("ref() takes a handle or a unique")
        if handle is not None:
            return parse(handle, server)
        where = ServerAddress.parse(server) if isinstance(server, str) else server
        return JobKey(self.name, submission.on_the_wire(unique or ""), where)

    def _with(self, given: Mapping[str, Any]) -> Self:
        """The same task with these options for its calls. Raises as ``options``."""
        changed = copy.copy(self)
        changed.call_options = self.call_options.updated(given, streams=self.is_stream)
        return changed

    @property
    def _shown(self) -> str:
        return self.name.rpartition(".")[2]


def _to_nobody(_packet: object) -> None:
    """Drop the reports of a local run."""
