"""Traces of calls and runs, by OpenTelemetry.

There are spans once the program has set up a tracer provider, as its SDK or ``opentelemetry-instrument``
does. Until then each call and each run costs one look at the modules that are imported. gearflow needs the
package opentelemetry-api only, which the extra ``otel`` installs.

A call has the span ``send FUNCTION``, whose context travels with the job. A run has ``process FUNCTION``. It
is a child of the call's span if the caller waits for the job, and in a trace of its own that links to it
otherwise. The names of the attributes are those of the semantic conventions for messaging.
"""

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider  # an extra

    from gearflow.tracing.spans import Tracing

__all__ = ["use_provider"]

API: Final = "opentelemetry.trace"
"""The module that is imported by a program which may have a tracer provider."""

_given: "TracerProvider | None" = None
_tracing: "Tracing | None" = None
_is_unset = False  # nobody had set up the global provider


def find_tracing() -> "Tracing | None":
    """What makes spans. None if the program has set up no tracer provider."""
    if _tracing is None and _given is None and API not in sys.modules:
        return None
    return _tracing or _look()


def current_trace() -> dict[str, str] | None:
    """The trace context of now, as headers. None if there is none."""
    tracing = find_tracing()
    return None if tracing is None else tracing.current() or None


def use_provider(provider: "TracerProvider | None") -> None:
    """Make spans with a tracer provider of their own.

    Args:
        provider: The provider. None means the global one, which is the default.
    """
    global _given, _tracing
    _given, _tracing = provider, None


def _look() -> "Tracing | None":
    global _tracing, _is_unset
    provider = _given
    if provider is None:
        api = sys.modules[API]
        # The public function reads the environment, too, which costs as much as all else in a call.
        if _is_unset and getattr(api, "_TRACER_PROVIDER", api) is None:
            return None
        if not hasattr(api, "use_span"):  # another thread is importing it
            return None
        provider = api.get_tracer_provider()
        if isinstance(provider, api.ProxyTracerProvider):
            _is_unset = True
            return None
    from gearflow.tracing.spans import Tracing

    _tracing = Tracing(provider)
    return _tracing
