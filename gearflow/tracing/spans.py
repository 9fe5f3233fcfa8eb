"""The spans of calls and runs. It imports OpenTelemetry, so only ``find_tracing`` imports it.

Nothing here fails a call or a run. OpenTelemetry's own functions log what goes wrong.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from types import TracebackType
from typing import Any, Final, Self

from opentelemetry import context, propagate, trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.util.types import AttributeValue

from gearflow.errors import PayloadInvalid
from gearflow.protocol.trace import encode_trace, fitting, is_attached

SCHEMA: Final = "https://opentelemetry.io/schemas/1.45.0"
"""The semantic conventions whose names the attributes have."""

SYSTEM: Final = "gearman"


class Tracing:
    """Makes spans with a tracer provider."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("gearflow", version("gearflow"), SCHEMA)

    def send(self, function: str, *, attached: bool, count: int = 1) -> "SendSpan":
        """Begin the span of a submission, below the current span.

        Args:
            function: The function of its jobs. Empty if they have several.
            attached: Whether the caller waits for the jobs.
            count: The number of jobs.
        """
        attributes = _attributes("send", function, count)
        name = f"send {function}" if function else "send"
        span = self._tracer.start_span(name, kind=SpanKind.PRODUCER, attributes=attributes)
        return SendSpan(span, attached)

    def process(
        self,
        function: str,
        traces: Sequence[Mapping[str, str]],
        *,
        handle: str,
        attempt: int,
        server: tuple[str, int],
        count: int = 1,
        may_be_child: bool = True,
    ) -> "RunSpan":
        """Begin the span of a run, and make it the current one for what follows in this context.

        Args:
            function: The function.
            traces: The trace contexts of the calls, without those that have none.
            handle: The handle of the job, or of the first.
            attempt: The number of the run.
            server: The host and the port of the server that has given the job.
            count: The number of calls.
            may_be_child: Whether the run may be a child of its call. Else it links to it.
        """
        base = context.Context()
        links: list[Link] = []
        for each in traces:
            found = propagate.extract(each, context.Context())
            if len(traces) == 1:
                base = found  # with its baggage
            caller = trace.get_current_span(found).get_span_context()
            if caller.is_valid:
                links.append(Link(caller))
        if len(traces) == len(links) == 1 and may_be_child and attempt == 1 and is_attached(traces[0]):
            links = []
        else:
            base = trace.set_span_in_context(trace.INVALID_SPAN, base)
        attributes = _attributes("process", function, count)
        attributes["messaging.message.id"] = handle
        attributes["gearflow.attempt"] = attempt
        attributes["server.address"], attributes["server.port"] = server
        span = self._tracer.start_span(
            f"process {function}", base, kind=SpanKind.CONSUMER, attributes=attributes, links=links
        )
        current = trace.set_span_in_context(span, base)
        context.attach(current)  # and not detached, since each run has context variables of its own
        return RunSpan(span, current)

    def current(self) -> dict[str, str]:
        """The trace context of now, as headers. Empty if there is no span."""
        headers: dict[str, str] = {}
        if trace.get_current_span().get_span_context().is_valid:
            propagate.inject(headers)
        return fitting(headers)

    def go_on(self, headers: Mapping[str, str]) -> None:
        """Make the span of a run that another process has begun the current one in this context."""
        context.attach(propagate.extract(headers, context.Context()))


class SendSpan:
    """The span of a submission that is under way.

    Attributes:
        trace: The trace context for its jobs, as a JSON object.
    """

    __slots__ = ("_span", "trace")

    def __init__(self, span: Span, attached: bool) -> None:
        self._span = span
        headers: dict[str, str] = {}
        propagate.inject(headers, trace.set_span_in_context(span))
        self.trace: bytes = encode_trace(headers, attached=attached) if headers else b""

    def accepted(self, handle: str, host: str, port: int) -> None:
        """A server has accepted the only job."""
        self._span.set_attributes(
            {"messaging.message.id": handle, "server.address": host, "server.port": port}
        )

    def failed(self, error: BaseException) -> None:
        """The submission has failed, or its job."""
        _fail(self._span, error)

    def end(self) -> None:
        """The submission is over, or the wait for its job."""
        self._span.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.failed(error)
        self.end()


class RunSpan:
    """The span of a run.

    Attributes:
        trace_id: The id of its trace, as 32 hexadecimal digits.
    """

    __slots__ = ("_context", "_span", "trace_id")

    def __init__(self, span: Span, current: context.Context) -> None:
        self._span = span
        self._context = current
        self.trace_id: str = trace.format_trace_id(span.get_span_context().trace_id)

    def headers(self) -> dict[str, str]:
        """The trace context of what runs in it, for another process."""
        headers: dict[str, str] = {}
        propagate.inject(headers, self._context)
        return headers

    def end(self, outcome: str, failure: BaseException | None) -> None:
        """The run has ended. ``failure`` is what counts as an error of it."""
        self._span.set_attribute("gearflow.outcome", str(outcome))  # exporters expect no StrEnum
        if failure is not None:
            _fail(self._span, failure)
        self._span.end()


def _attributes(operation: str, function: str, count: int) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
    }
    if function:
        attributes["messaging.destination.name"] = function
    if count != 1:
        attributes["messaging.batch.message_count"] = count
    return attributes


def _fail(span: Span, error: BaseException) -> None:
    if not span.is_recording():
        return
    span.set_attribute("error.type", _type_of(error))
    if isinstance(error, PayloadInvalid):  # its message may have a part of the payload
        span.set_status(Status(StatusCode.ERROR))
    elif isinstance(error, Exception):
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))


def _type_of(error: BaseException) -> str:
    """The class of an exception, or of the one that a task has raised."""
    sent = getattr(error, "exception", None)  # of a JobFailed
    if isinstance(sent, bytes):
        try:
            said: Any = json.loads(sent)
            if isinstance(said["type"], str):
                return said["type"]
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
