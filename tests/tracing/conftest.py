"""Tracing with the SDK's exporter that keeps spans in memory."""

from collections.abc import Callable, Iterator

import anyio
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer

from gearflow.tracing import use_provider


class Spans:
    """The spans that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer: Tracer = self.provider.get_tracer("tests")

    def named(self, name: str) -> list[ReadableSpan]:
        """Those with a name, in the order of their beginnings. A run may end after the next one has begun."""
        found = [span for span in self._exporter.get_finished_spans() if span.name == name]
        return sorted(found, key=lambda span: span.start_time or 0)

    async def ended(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """Wait for so many with a name. A run's ends soon after its caller has the result."""
        with anyio.fail_after(20):
            while len(self.named(name)) < count:  # noqa: ASYNC110  (an exporter has no event)
                await anyio.sleep(0.005)
        found = self.named(name)
        assert len(found) == count, found
        return found


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    use_provider(made.provider)
    yield made
    use_provider(None)
    made.provider.shutdown()


Fresh = Callable[..., str]
