"""Tasks that run in processes of their own, which import this module."""

import logging

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from gearflow import task
from gearflow.runtime.run_records import run_fields
from gearflow.tracing import use_provider


@task(name="tests.trace_in_process", executor="process")
def trace_in_process(word: str) -> str:
    """Set up tracing in this process, or raise."""
    if word == "fail":
        raise LookupError(word)
    use_provider(TracerProvider())
    return word


@task(name="tests.seen_in_process", executor="process")
def seen_in_process() -> tuple[str, str, dict[str, str | int]]:
    """The ids of the current trace and span, and the fields of the run."""
    logging.getLogger("tests.tracing").warning("in a process", extra={"attempt": "mine"})
    span = trace.get_current_span().get_span_context()
    fields = {name: value for name, value in run_fields().items() if isinstance(value, str | int)}
    return trace.format_trace_id(span.trace_id), trace.format_span_id(span.span_id), fields
