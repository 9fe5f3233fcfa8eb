"""Traces of calls and runs, by OpenTelemetry.

There are spans once the program has set up a tracer provider, as its SDK or ``opentelemetry-instrument``
does. Until then each call and each run costs one look at the modules that are imported. gearflow needs the
package opentelemetry-api only, which the extra ``otel`` installs.

A call has the span ``send FUNCTION``, whose context travels with the job. A run has ``process FUNCTION``. It
is a child of the call's span if the caller waits for the job, and in a trace of its own that links to it
otherwise. The names of the attributes are those of the semantic conventions for messaging.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider  # an extra

    from gearflow.tracing.spans import Tracing

__all__ = ["use_provider"]

API: Final = "opentelemetry.trace"
"""The module of a tracer provider. Where each microsecond counts, look for it in ``sys.modules`` first."""

_given: "TracerProvider | None" = None
_tracing: "Tracing | None" = None
_unset: Any = None  # the module, if it had no global provider at the last look


def find_tracing() -> "Tracing | None":
    """What makes spans. None if the program has set up no tracer provider."""
    if _tracing is not None:
        return _tracing
    # The public function reads the environment, too, which costs as much as all else in a call.
    if _given is None and _unset is not None and _unset._TRACER_PROVIDER is None:
        return None
    return _look()


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
    if provider is not None:
        import_module(API)  # or nobody looks for the provider
    _given, _tracing = provider, None


def _look() -> "Tracing | None":
    global _tracing, _unset
    provider = _given
    if provider is None:
        api = sys.modules.get(API)
        if api is None or not hasattr(api, "use_span"):  # another thread is importing it
            return None
        provider = api.get_tracer_provider()
        if isinstance(provider, api.ProxyTracerProvider):
            _unset = api if hasattr(api, "_TRACER_PROVIDER") else None
            return None
    from gearflow.tracing.spans import Tracing

    _tracing = Tracing(provider)
    return _tracing
