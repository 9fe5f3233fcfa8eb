"""``docs/pictures/traces.svg`` shows the spans of a program, as they come out of the exporter.

    WRITE_SCREENS=1 python -m pytest tests/tracing/test_picture.py

writes it again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

from gearflow import JobServer, Retry, connect, task
from gearflow.worker import Worker
from tests import drawing
from tests.tracing.conftest import Spans


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_the_picture_shows_a_call_and_a_background_job_that_is_retried(spans: Spans) -> None:
    mails = 0

    @task(name="orders.charge")
    async def charge(customer: int) -> str:
        with spans.tracer.start_as_current_span("POST bank.example"):
            return f"receipt {customer}"

    @task(name="orders.mail", retries=Retry(3, backoff=0.01))
    async def send(text: str) -> None:
        nonlocal mails
        mails += 1
        if mails == 1:
            raise ConnectionError("the mail server is away")

    async with (
        JobServer(port=0) as server,
        connect(server.address),
        Worker([charge, send], servers=[server.address]),
    ):
        with spans.tracer.start_as_current_span("POST /checkout"):
            receipt = await charge.acall(4711)
            mail = await send.abackground(receipt)
        await mail.aresult(timeout=20)
        ended = [
            *await spans.ended("POST /checkout"),
            *await spans.ended("send orders.charge"),
            *await spans.ended("process orders.charge"),
            *await spans.ended("POST bank.example"),
            *await spans.ended("send orders.mail"),
            *await spans.ended("process orders.mail", 2),
        ]
    rows = list(rows_of(ended))
    assert [(row.depth, row.name, row.is_worker, row.link) for row in rows] == [
        (0, "POST /checkout", False, None),
        (1, "send orders.charge", False, None),
        (2, "process orders.charge", True, None),
        (3, "POST bank.example", True, None),
        (1, "send orders.mail", False, None),
        (0, "process orders.mail", True, 4),
        (0, "process orders.mail", True, 4),
    ]
    assert [row.note for row in rows[5:]] == ["attempt 1, ConnectionError", "attempt 2"]
    drawing.compare("traces", drawn(rows))


@dataclass(frozen=True)
class Row:
    """A span in the picture."""

    name: str
    depth: int
    is_worker: bool  # or of the caller
    note: str
    link: int | None  # the row of the span that it is linked to


def rows_of(spans: Sequence[ReadableSpan]) -> Iterator[Row]:
    """The spans, each one below its parent."""
    ids = [span.context.span_id for span in spans if span.context]
    seen: list[Row] = []
    for span in spans:
        above = seen[ids.index(span.parent.span_id)] if span.parent else None
        attributes = span.attributes or {}
        notes = [f"attempt {attributes['gearflow.attempt']!r}"] if span.links else []
        notes += [str(attributes["error.type"])] if "error.type" in attributes else []
        row = Row(
            span.name,
            above.depth + 1 if above else 0,
            span.kind is SpanKind.CONSUMER or bool(above and above.is_worker),
            ", ".join(notes),
            ids.index(span.links[0].context.span_id) if span.links else None,
        )
        seen.append(row)
        yield row


_LINE: Final = 30
_TOP: Final = 48
_PLACES: Final = ((340, 640), (356, 520), (380, 500), (400, 480), (540, 600), (680, 730), (770, 830))
"""Where the bar of each row begins and ends. They show the order, and not the time."""

_STYLE: Final = """
text { font: 14px system-ui, sans-serif; fill: #1f2430 }
.dim { fill: #5b6372 } .note { font-size: 12px }
.paper { fill: #ffffff; stroke: #d5d9e2 } .rule { stroke: #d5d9e2 }
.caller { fill: #2f6fde } .worker { fill: #178a5a }
.link { stroke: #9a4fd0; stroke-width: 2; stroke-dasharray: 5 4; fill: none } .head { fill: #9a4fd0 }
@media (prefers-color-scheme: dark) {
text { fill: #e8eaf0 } .dim { fill: #a3abbb }
.paper { fill: #161a22; stroke: #39404e } .rule { stroke: #39404e }
.caller { fill: #6ba0ff } .worker { fill: #43c48c }
.link { stroke: #c995f2 } .head { fill: #c995f2 } }
"""


def drawn(rows: Sequence[Row]) -> str:
    """The picture, for light and dark pages."""
    height = _TOP + _LINE * len(rows) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {height}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" x="0.5" y="0.5" width="859" height="{height - 1}" rx="8"/>',
        '<rect class="caller" x="16" y="18" width="14" height="14" rx="3"/>',
        '<rect class="worker" x="126" y="18" width="14" height="14" rx="3"/>',
        '<text x="36" y="30">the caller</text><text x="146" y="30">the worker</text>',
        '<path class="link" d="M240 25 H270"/><text x="280" y="30">a link</text>',
        '<text class="dim" x="844" y="30" text-anchor="end">lines separate traces</text>',
    ]
    for number, (row, (start, end)) in enumerate(zip(rows, _PLACES, strict=True)):
        top = _TOP + number * _LINE
        middle = top + _LINE // 2
        if row.depth == 0:
            parts.append(f'<path class="rule" d="M16 {top} H844"/>')
        note = f'<tspan class="note dim" dx="8">{row.note}</tspan>' if row.note else ""
        parts.append(f'<text x="{16 + 18 * row.depth}" y="{middle + 5}">{row.name}{note}</text>')
        kind = "worker" if row.is_worker else "caller"
        size = f'width="{end - start}" height="14"'
        parts.append(f'<rect class="{kind}" x="{start}" y="{middle - 7}" {size} rx="3"/>')
        if row.link is not None:
            below = _TOP + row.link * _LINE + _LINE // 2 + 7
            at = _PLACES[row.link][0] + 20 * (number - row.link)
            parts.append(f'<path class="link" d="M{start} {middle} H{at} V{below + 8}"/>')
            parts.append(f'<path class="head" d="M{at - 5} {below + 9} L{at} {below + 1} l5 8 z"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"
