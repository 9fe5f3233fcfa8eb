"""Spans of calls and runs: which there are, and how they hang together. On C gearmand and gearflow's own."""

import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from gearflow import Batch, Every, task
from gearflow.client import Client, JobRequest, connect
from gearflow.errors import NoServer, TaskFailed
from gearflow.protocol import packets as p
from gearflow.protocol.envelope import Envelope, unwrap
from gearflow.tasks import Retry, Snooze
from gearflow.testing.peer import ScriptedPeer
from gearflow.tracing import use_provider
from gearflow.worker import Worker
from tests.tracing.conftest import Spans
from tests.tracing.tasks import seen_in_process, trace_in_process


def id_of(span: ReadableSpan) -> tuple[int, int]:
    found = span.get_span_context()
    assert found is not None
    return found.trace_id, found.span_id


def parent_of(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def context_of(span: trace.Span) -> tuple[int, int]:
    found = span.get_span_context()
    return found.trace_id, found.span_id


def links_of(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def current() -> tuple[int, int]:
    found = trace.get_current_span().get_span_context()
    return found.trace_id, found.span_id


async def taken(server: str, function: str) -> bytes:
    """The workload of a waiting job, as a worker of another library gets it."""
    host, _, port = server.rpartition(":")
    async with await ScriptedPeer.connect(host, int(port)) as worker:
        await worker.send(p.CanDo(function.encode()), p.GrabJob())
        job = await worker.expect_a(p.JobAssign)
        await worker.send(p.WorkComplete(job.handle, b""))
    return job.workload


async def test_a_run_is_a_child_of_a_call_that_waits(any_server: str, function: str, spans: Spans) -> None:
    seen: list[tuple[int, int]] = []

    @task(name=function)
    async def double(number: int) -> int:
        seen.append(current())
        return 2 * number

    async with connect(any_server), Worker([double], servers=[any_server]):
        with spans.tracer.start_as_current_span("request") as request:
            assert await double.acall(2) == 4
        (sent,) = await spans.ended(f"send {function}")
        (run,) = await spans.ended(f"process {function}")
    assert parent_of(sent) == (request.get_span_context().trace_id, request.get_span_context().span_id)
    assert parent_of(run) == id_of(sent)
    assert seen == [id_of(run)]
    assert links_of(run) == []
    assert (sent.kind, run.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert sent.attributes is not None
    handle = sent.attributes["messaging.message.id"]
    host, _, port = any_server.rpartition(":")
    of_both = {
        "messaging.system": "gearman",
        "messaging.destination.name": function,
        "messaging.message.id": handle,
        "server.address": host,
        "server.port": int(port),
    }
    assert sent.attributes == {
        **of_both,
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
    }
    assert run.attributes == {
        **of_both,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "gearflow.attempt": 1,
        "gearflow.outcome": "done",
    }
    assert {type(value) for value in (run.attributes or {}).values()} == {str, int}


async def test_a_thread_has_the_span_of_its_run(any_server: str, function: str, spans: Spans) -> None:
    @task(name=function)
    def where() -> tuple[int, int]:
        return current()

    async with connect(any_server), Worker([where], servers=[any_server]):
        job = await where.asubmit()
        seen = await job
        (sent,) = await spans.ended(f"send {function}")
        (run,) = await spans.ended(f"process {function}")
    assert seen == id_of(run)
    assert parent_of(run) == id_of(sent)


async def test_a_process_goes_on_with_the_span_of_its_run(bundled: str, spans: Spans) -> None:
    worker = Worker([trace_in_process, seen_in_process], servers=[bundled], concurrency=1)
    async with connect(bundled), worker:
        await trace_in_process.acall("set up")
        trace_id, span_id, fields = await seen_in_process.acall()
        (run,) = await spans.ended("process tests.seen_in_process")
        with pytest.raises(LookupError):
            await trace_in_process.acall("fail")
        *_, failed = await spans.ended("process tests.trace_in_process", 2)
    assert (int(trace_id, 16), int(span_id, 16)) == id_of(run)
    assert run.attributes is not None
    assert fields == {
        "handle": run.attributes["messaging.message.id"],
        "function": "tests.seen_in_process",
        "attempt": 1,
        "trace_id": trace_id,
    }
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "LookupError"


async def test_a_background_job_has_a_trace_of_its_own_with_a_link(
    any_server: str, function: str, spans: Spans
) -> None:
    @task(name=function)
    async def work() -> None:
        pass

    async with connect(any_server), Worker([work], servers=[any_server]):
        await work.abackground()
        (sent,) = await spans.ended(f"send {function}")
        (run,) = await spans.ended(f"process {function}")
    assert run.parent is None
    assert id_of(run)[0] != id_of(sent)[0]
    assert links_of(run) == [id_of(sent)]


def test_blocking_verbs_have_the_same_spans(bundled: str, function: str, spans: Spans) -> None:
    @task(name=function)
    def work() -> tuple[int, int]:
        return current()

    with connect(bundled), start_blocking_portal() as portal:
        worker = portal.call(lambda: Worker([work], servers=[bundled]))
        with portal.wrap_async_context_manager(worker):
            with spans.tracer.start_as_current_span("request") as request:
                seen = work.call()
                work.background()
            (first, second) = portal.call(spans.ended, f"send {function}", 2)
            runs = portal.call(spans.ended, f"process {function}", 2)
    assert {id_of(first)[0], id_of(second)[0]} == {request.get_span_context().trace_id}
    (child,) = [run for run in runs if run.parent is not None]
    (linked,) = [run for run in runs if run.parent is None]
    assert seen == id_of(child)
    assert parent_of(child) == id_of(first)
    assert links_of(linked) == [id_of(second)]
    assert second.attributes is not None
    assert linked.attributes is not None
    assert second.attributes["messaging.message.id"] == linked.attributes["messaging.message.id"]


async def test_a_retry_links_to_the_call(any_server: str, function: str, spans: Spans) -> None:
    runs: list[int] = []

    @task(name=function, retries=Retry(3, backoff=0.01))
    async def fragile() -> str:
        runs.append(1)
        if len(runs) == 1:
            raise OSError("once")
        if len(runs) == 2:
            raise Snooze(0.01)
        return "well"

    async with connect(any_server), Worker([fragile], servers=[any_server]):
        assert await fragile.acall() == "well"
        (sent,) = await spans.ended(f"send {function}")
        first, second, third = await spans.ended(f"process {function}", 3)
    assert parent_of(first) == id_of(sent)
    assert second.parent is None
    assert links_of(second) == links_of(third) == [id_of(sent)]
    assert [run.attributes and run.attributes["gearflow.attempt"] for run in (first, second, third)] == [
        1,
        2,
        2,
    ]
    assert [run.attributes and run.attributes["gearflow.outcome"] for run in (first, second, third)] == [
        "retried",
        "snoozed",
        "done",
    ]
    assert first.attributes is not None
    assert first.attributes["error.type"] == "OSError"
    assert [event.name for event in first.events] == ["exception"]
    assert [run.status.status_code for run in (first, second, third)] == [
        StatusCode.ERROR,
        StatusCode.UNSET,
        StatusCode.UNSET,
    ]


async def test_the_run_after_a_death_of_the_worker_links_to_the_call(
    bundled: str, function: str, spans: Spans
) -> None:
    @task(name=function)
    async def work() -> None:
        pass

    async with connect(bundled):
        job = await work.asubmit()
        host, _, port = bundled.rpartition(":")
        async with await ScriptedPeer.connect(host, int(port)) as dies:
            await dies.send(p.CanDo(function.encode()), p.GrabJob())
            await dies.expect_a(p.JobAssign)
        async with Worker([work], servers=[bundled]):
            await job
            (run,) = await spans.ended(f"process {function}")
    (sent,) = spans.named(f"send {function}")
    assert run.parent is None
    assert links_of(run) == [id_of(sent)]


async def test_the_run_after_one_that_was_cut_off_links_to_the_call(
    bundled: str, function: str, spans: Spans
) -> None:
    begun = anyio.Event()
    seen: list[int] = []

    @task(name=function)
    async def work() -> None:
        seen.append(1)
        if len(seen) == 1:
            begun.set()
            await anyio.sleep_forever()

    async with connect(bundled):
        job = await work.asubmit()
        with anyio.CancelScope() as scope:
            async with Worker([work], servers=[bundled]):
                await begun.wait()
                scope.cancel()
        async with Worker([work], servers=[bundled]):
            await job
            first, second = await spans.ended(f"process {function}", 2)
    (sent,) = spans.named(f"send {function}")
    assert parent_of(first) == id_of(sent)
    assert second.parent is None
    assert links_of(second) == [id_of(sent)]
    assert [run.attributes and run.attributes["gearflow.outcome"] for run in (first, second)] == [
        "handed on",
        "done",
    ]


async def test_the_run_after_a_pause_links_to_the_call(any_server: str, function: str, spans: Spans) -> None:
    seen: list[int] = []

    @task(name=function)
    async def work() -> None:
        seen.append(1)
        if len(seen) == 1:
            raise Snooze(0.01)

    async with connect(any_server), Worker([work], servers=[any_server]):
        await work.acall()
        first, second = await spans.ended(f"process {function}", 2)
    (sent,) = spans.named(f"send {function}")
    assert parent_of(first) == id_of(sent)
    assert second.parent is None
    assert links_of(second) == [id_of(sent)]
    assert [run.attributes and run.attributes["gearflow.attempt"] for run in (first, second)] == [1, 1]


async def test_a_call_whose_task_raises_has_its_error(any_server: str, function: str, spans: Spans) -> None:
    @task(name=function)
    async def broken() -> None:
        raise KeyError("card")

    async with connect(any_server), Worker([broken], servers=[any_server]):
        with pytest.raises(TaskFailed):
            await broken.acall()
        (sent,) = await spans.ended(f"send {function}")
        (run,) = await spans.ended(f"process {function}")
    for span in (sent, run):
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes is not None
        assert span.attributes["error.type"] in ("KeyError", "builtins.KeyError")


async def test_a_span_has_nothing_of_a_payload_that_does_not_fit(
    any_server: str, function: str, spans: Spans
) -> None:
    @task(name=function)
    async def work(number: int) -> None:
        pass

    async with connect(any_server) as client, Worker([work], servers=[any_server]):
        job = await client.submit(function, b'{"number": "secret"}')
        with pytest.raises(Exception, match="failed"):
            await job.result()
        (run,) = await spans.ended(f"process {function}")
    assert run.status.status_code is StatusCode.ERROR
    assert "secret" not in run.to_json()
    assert run.attributes is not None
    assert run.attributes["error.type"] == "gearflow.errors.PayloadInvalid"


async def test_a_submission_that_reaches_no_server_has_its_error(spans: Spans) -> None:
    async with Client(["127.0.0.1:1"], connect_timeout=0.1) as client:
        with pytest.raises(NoServer):
            await client.submit("f", b"")
        with pytest.raises(NoServer):
            await client.submit_background("f", b"")
        with pytest.raises(NoServer):
            await client.submit_many([JobRequest("f", b"")] * 2)
    errors = [span.attributes and span.attributes["error.type"] for span in spans.named("send f")]
    assert errors == ["gearflow.errors.NoServer"] * 3


async def test_jobs_that_are_sent_together_share_a_span(any_server: str, function: str, spans: Spans) -> None:
    @task(name=function)
    async def work(number: int) -> int:
        return number

    async with connect(any_server), Worker([work], servers=[any_server]):
        await work.abackground_many([1, 2, 3])
        (sent,) = await spans.ended(f"send {function}")
        runs = await spans.ended(f"process {function}", 3)
    assert sent.attributes is not None
    assert sent.attributes["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in sent.attributes
    assert [links_of(run) for run in runs] == [[id_of(sent)]] * 3
    assert len({id_of(run)[0] for run in runs}) == 3


@pytest.mark.parametrize("chunk", [1, 4])
async def test_the_runs_of_a_map_are_children_of_what_sent_them(
    any_server: str, function: str, spans: Spans, chunk: int
) -> None:
    @task(name=function)
    async def work(number: int) -> int:
        return number

    async with connect(any_server), Worker([work], servers=[any_server]):
        assert [number async for number in work.amap(range(8), chunk=chunk)] == list(range(8))
        runs = await spans.ended(f"process {function}", 8 // chunk)
    sent = {id_of(span) for span in spans.named(f"send {function}")}
    assert {parent_of(run) for run in runs} == sent
    counts = [(run.attributes or {}).get("messaging.batch.message_count") for run in runs]
    assert counts == [None if chunk == 1 else chunk] * len(runs)


async def test_a_batch_links_to_all_its_calls(any_server: str, function: str, spans: Spans) -> None:
    @task(name=function, batch=Batch(2, wait=60))
    async def work(numbers: list[int]) -> list[int]:
        return numbers

    async with connect(any_server), Worker([work], servers=[any_server]):
        async with anyio.create_task_group() as calls:
            calls.start_soon(work.acall, 1)
            calls.start_soon(work.acall, 2)
        sent = await spans.ended(f"send {function}", 2)
        (run,) = await spans.ended(f"process {function}")
    assert run.parent is None
    assert set(links_of(run)) == set(map(id_of, sent))
    assert run.attributes is not None
    assert run.attributes["messaging.batch.message_count"] == 2
    assert run.attributes["gearflow.outcome"] == "done"


async def test_a_stream_is_a_call_that_waits(any_server: str, function: str, spans: Spans) -> None:
    @task(name=function)
    async def count(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    async with connect(any_server), Worker([count], servers=[any_server]):
        with spans.tracer.start_as_current_span("request") as request:
            assert [number async for number in count.astream(3)] == [0, 1, 2]
        (sent,) = await spans.ended(f"send {function}")
        (run,) = await spans.ended(f"process {function}")
    assert id_of(sent)[0] == request.get_span_context().trace_id
    assert parent_of(run) == id_of(sent)


async def test_a_call_within_a_run_is_below_its_span(any_server: str, function: str, spans: Spans) -> None:
    @task(name=f"{function}.inner")
    def inner() -> None:
        pass

    @task(name=f"{function}.outer")
    async def outer() -> None:
        await inner.acall()

    async with connect(any_server), Worker([inner, outer], servers=[any_server]):
        await outer.acall()
        (run,) = await spans.ended(f"process {function}.outer")
        (sent,) = await spans.ended(f"send {function}.inner")
        (inside,) = await spans.ended(f"process {function}.inner")
    assert parent_of(sent) == id_of(run)
    assert parent_of(inside) == id_of(sent)


async def test_the_baggage_of_the_caller_is_that_of_the_run(
    any_server: str, function: str, spans: Spans
) -> None:
    @task(name=function)
    async def tenant() -> str:
        return str(baggage.get_baggage("tenant"))

    async with connect(any_server), Worker([tenant], servers=[any_server]):
        token = context.attach(baggage.set_baggage("tenant", "42"))
        try:
            assert await tenant.acall() == "42"
        finally:
            context.detach(token)


async def test_runs_do_not_see_the_span_in_which_the_worker_was_started(
    bundled: str, function: str, spans: Spans
) -> None:
    @task(name=function)
    async def work() -> None:
        pass

    with spans.tracer.start_as_current_span("start"):
        worker = Worker([work], servers=[bundled])
        async with connect(bundled), worker:
            await work.abackground()
            (run,) = await spans.ended(f"process {function}")
    assert run.parent is None


async def test_a_foreign_function_gets_the_plain_payload_on_every_server(
    any_server: str, function: str, spans: Spans
) -> None:
    @task(name=function, foreign=True)
    async def legacy(number: int) -> None: ...

    async with connect(any_server) as client:
        await legacy.abackground(3)
        workload = await taken(any_server, function)
        assert workload == b'{"number":3}'
        await client.submit_background(function, b"raw")
        assert await taken(any_server, function) == b"raw"
    assert len(spans.named(f"send {function}")) == 2


async def test_other_workers_get_the_plain_payload_of_gearflows_server(
    bundled: str, function: str, spans: Spans
) -> None:
    @task(name=function)
    async def work(number: int) -> None:
        pass

    async with connect(bundled):
        await work.abackground(3)
        assert await taken(bundled, function) == b'{"number":3}'


async def test_the_context_is_in_the_envelope_on_other_servers(
    gearmand: str, function: str, spans: Spans
) -> None:
    @task(name=function)
    async def work(number: int) -> None:
        pass

    async with connect(gearmand):
        await work.options(timeout=9).abackground(3)
        envelope, payload = unwrap(await taken(gearmand, function))
    (sent,) = spans.named(f"send {function}")
    trace_id, span_id = id_of(sent)
    assert payload == b'{"number":3}'
    assert envelope.trace is not None
    assert envelope.trace["traceparent"].startswith(f"00-{trace_id:032x}-{span_id:016x}-")
    assert replace(envelope, trace=None) == Envelope(timeout=9, detached=True)


async def test_the_job_of_a_schedule_links_to_what_put_or_triggered_it(
    bundled: str, function: str, spans: Spans
) -> None:
    @task(name=function)
    async def work() -> None:
        pass

    async with connect(bundled) as client, Worker([work], servers=[bundled]):
        await client.schedules.put(function, work, Every(hours=1))
        await client.schedules.trigger(function)
        await spans.ended(f"process {function}")
        with spans.tracer.start_as_current_span("trigger") as trigger:
            await client.schedules.trigger(function)
        await spans.ended(f"process {function}", 2)
        with spans.tracer.start_as_current_span("put") as put:
            await client.schedules.put(function, work.options(timeout=9), Every(hours=1))
        await client.schedules.trigger(function)
        plain, triggered, later = await spans.ended(f"process {function}", 3)
        await client.schedules.delete(function)
    assert [run.parent for run in (plain, triggered, later)] == [None, None, None]
    assert links_of(plain) == []
    assert links_of(triggered) == [context_of(trigger)]
    assert links_of(later) == [context_of(put)]


async def test_a_context_that_no_propagator_sends_is_no_trouble(
    any_server: str, function: str, spans: Spans
) -> None:
    @task(name=function)
    async def work() -> None:
        pass

    before = propagate.get_global_textmap()
    propagate.set_global_textmap(CompositePropagator([]))
    try:
        async with connect(any_server), Worker([work], servers=[any_server]):
            await work.acall()
            (run,) = await spans.ended(f"process {function}")
    finally:
        propagate.set_global_textmap(before)
    assert run.parent is None
    assert not run.links


async def test_without_a_provider_nothing_is_sent(gearmand: str, function: str, spans: Spans) -> None:
    use_provider(None)

    @task(name=function)
    async def work(number: int) -> None:
        pass

    async with connect(gearmand):
        await work.abackground(3)
        assert await taken(gearmand, function) == b'{"number":3}'
    assert not spans.named(f"send {function}")


LATE = """
import sys
from gearflow import tracing

assert tracing.find_tracing() is None
assert "opentelemetry" not in sys.modules
from opentelemetry import trace
assert tracing.find_tracing() is None
assert tracing.find_tracing() is None
from opentelemetry.sdk.trace import TracerProvider
trace.set_tracer_provider(TracerProvider())
assert tracing.find_tracing() is not None
"""


def test_there_are_spans_as_soon_as_the_program_has_set_up_a_provider() -> None:
    subprocess.run([sys.executable, "-c", LATE], check=True)
