"""A web shop that operators can watch: a dashboard in its own site, metrics, traces, and a hidden field.

    pip install 'gearflow[web,metrics,otel]' opentelemetry-sdk
    python examples/watched.py

Programs of your own get the same from ``gearflow server --metrics``, ``gearflow worker --metrics`` and
``gearflow web``.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.request import Request as Get
from urllib.request import urlopen

import uvicorn
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import gearflow.web
from gearflow import JobServer, TaskFailed, connect, task
from gearflow.client.operate import jobs
from gearflow.protocol.jobs import JobFilter
from gearflow.worker import Worker

SPANS = InMemorySpanExporter()  # in production, an exporter to your collector
RATES = {"EUR": 100}  # cents


@task(name="shop.charge", redact={"card"})
def charge(amount: int, currency: str, card: str) -> int:
    """Charges a card. Operators do not see its number."""
    return amount * RATES[currency]


async def buy(request: Request) -> PlainTextResponse:
    """``POST /orders?currency=EUR``: the page of the shop on which customers buy."""
    with trace.get_tracer("shop").start_as_current_span("POST /orders"):
        ref = await charge.abackground(7, request.query_params["currency"], card="4111")
    return PlainTextResponse(ref.handle)


@asynccontextmanager
async def serve(address: str) -> AsyncGenerator[str]:
    """Run the site, with the dashboard at /queue. Yields its address."""
    dashboard = gearflow.web.app([address], allow="operate")  # in production, a function that asks who it is
    site = Starlette(routes=[Route("/orders", buy, methods=["POST"]), Mount("/queue", dashboard)])
    server = uvicorn.Server(uvicorn.Config(site, port=0, log_level="warning", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  (uvicorn has no event for it)
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


async def ask(url: str, data: bytes | None = None) -> str:
    """What a browser gets from a page. With data, it sends a form of that page."""

    def read() -> str:
        with urlopen(Get(url, data, {"Sec-Fetch-Site": "same-origin"} if data is not None else {})) as answer:
            text: str = answer.read().decode()
            return text

    return await asyncio.to_thread(read)


async def main() -> None:
    """Customers buy, one order fails, an operator sees why, and the order is charged after the repair."""
    logging.getLogger("gearflow.worker").setLevel(logging.CRITICAL)  # it would tell of the failure, too
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(SPANS))
    trace.set_tracer_provider(provider)
    async with (
        JobServer(port=0) as server,
        Worker([charge], servers=[server.address]),
        connect(server.address) as client,
        serve(server.address) as site,
    ):
        for currency in ("EUR", "EUR", "NOK"):
            ref = charge.ref(await ask(f"{site}/orders?currency={currency}", b""))
            try:
                print(currency, await ref.aresult(timeout=30))
            except TaskFailed as error:
                print(currency, "failed:", error)

        dead = JobFilter(states=("dead",))
        (letter,) = (await jobs(client, dead, payload=200)).jobs
        print("what operators see:", letter.payload)
        for line in sorted((await ask(f"{site}/queue/metrics")).splitlines()):
            if line.startswith("gearflow_jobs_finished_total") and not line.endswith(" 0.0"):
                print(line)

        RATES["NOK"] = 9  # a new version of the worker, as it were
        await ask(f"{site}/queue/jobs/{letter.job.handle}/replay", f"server={server.address}".encode())
        print("NOK after a replay in the dashboard:", await ref.aresult(timeout=30))

    spans = SPANS.get_finished_spans()
    names = {span.context.span_id: span.name for span in spans if span.context}
    for span in sorted(spans, key=lambda span: span.start_time or 0)[-4:]:
        above = [f"below {names[span.parent.span_id]}"] if span.parent else []
        above += [f"linked to {names[link.context.span_id]}" for link in span.links]
        print("span:", span.name, *above)


if __name__ == "__main__":
    asyncio.run(main())
