"""The shortcut of blocking background submissions: where it applies, and what happens where it does not."""

import itertools
import math
import struct
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from types import FrameType
from typing import NoReturn

import anyio
import anyio.to_thread
import pytest

from gearflow.client import Backoff, ServerAddress, SubmitOptions, SyncClient, Timeouts
from gearflow.client import blocking_submit as direct_module
from gearflow.client.blocking_submit import LARGE, BlockingSubmitter
from gearflow.client.requests import NotSent
from gearflow.errors import NoServer, QueueFull, ServerError, SubmitUnknown
from gearflow.protocol.codec import encode
from gearflow.protocol.constants import TLS_REQUIRED
from gearflow.protocol.packets import (
    EchoReq,
    EchoRes,
    Error,
    JobCreated,
    OptionReq,
    OptionRes,
    SubmitJob,
    SubmitJobBg,
    WorkComplete,
    WorkFail,
)
from gearflow.server import JobServer
from gearflow.testing.peer import ScriptedPeer, ScriptedServer
from tests.client.conftest import Call

HELLO = b"gearflow"
PACKET = encode(SubmitJobBg(b"f", b"u", b"1"))


@asynccontextmanager
async def submitting(
    server: ScriptedServer, *, answer_timeout: float = 30.0, options: SubmitOptions | None = None
) -> AsyncGenerator[Callable[[bytes], Call]]:
    """``submit(workload)`` begins a submission in a thread, all by one client."""
    with SyncClient([server.address], answer_timeout=answer_timeout) as client:
        async with anyio.create_task_group() as tasks:

            def submit(workload: bytes) -> Call:
                call = Call(
                    anyio.to_thread.run_sync,
                    partial(client.submit_background, "f", workload, unique="u", options=options),
                    abandon_on_cancel=True,
                )
                tasks.start_soon(call.run)
                return call

            yield submit
            tasks.cancel_scope.cancel()


async def greet(server: ScriptedServer) -> ScriptedPeer:
    peer = await server.accept()
    await peer.expect(EchoReq(HELLO))
    await peer.send(EchoRes(HELLO))
    return peer


async def test_submissions_share_a_connection_of_their_own() -> None:
    async with ScriptedServer() as server, submitting(server) as submit:
        first = submit(b"1")
        peer = await greet(server)
        await peer.expect(SubmitJobBg(b"f", b"u", b"1"))
        await peer.send(JobCreated(b"H:1"), piece=3)
        assert str(await first.outcome()) == "H:1"
        second = submit(b"2")
        await peer.expect(SubmitJobBg(b"f", b"u", b"2"))
        await peer.send(JobCreated(b"H:2"))
        assert (await second.outcome()).server.port == server.port


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (Error(b"QUEUE_ERROR", b"Job queue is full"), QueueFull),
        (Error(b"INVALID_FUNCTION_NAME", b"no"), ServerError),
    ],
)
async def test_a_refusal_is_raised_and_the_connection_goes_on(refusal: Error, kind: type[Exception]) -> None:
    async with ScriptedServer() as server, submitting(server) as submit:
        refused = submit(b"1")
        peer = await greet(server)
        await peer.expect(SubmitJobBg(b"f", b"u", b"1"))
        await peer.send(refusal)
        with pytest.raises(kind):
            await refused.outcome()
        accepted = submit(b"2")
        await peer.expect(SubmitJobBg(b"f", b"u", b"2"))
        await peer.send(JobCreated(b"H:1"))
        await accepted.outcome()


OPTIONS = SubmitOptions(keep=0)
REQUEST = b'{"function":"f","detached":true,"keep":0.0}\n'


async def test_options_go_to_gearflows_server_in_the_same_way() -> None:
    async with ScriptedServer() as server, submitting(server, options=OPTIONS) as submit:
        first = submit(b"1")
        peer = await greet(server)
        await peer.expect(OptionReq(b"gearflow"))
        await peer.send(OptionRes(b"gearflow"))
        await peer.expect(SubmitJobBg(b"gearflow:submit", b"u", REQUEST + b"1"))
        await peer.send(JobCreated(b"H:1"))
        assert str(await first.outcome()) == "H:1"
        second = submit(b"2")
        await peer.expect(SubmitJobBg(b"gearflow:submit", b"u", REQUEST + b"2"))
        await peer.send(Error(b"QUEUE_ERROR", b"Job queue is full"))
        with pytest.raises(QueueFull):
            await second.outcome()


async def test_options_for_another_server_go_the_usual_way() -> None:
    async with ScriptedServer() as server, submitting(server, options=OPTIONS) as submit:
        call = submit(b"1")
        direct = await greet(server)
        await direct.expect(OptionReq(b"gearflow"))
        await direct.send(Error(b"UNKNOWN_OPTION", b"no"))
        peer = await server.accept()
        await peer.shake_hands()
        await peer.expect(SubmitJobBg(b"f", b"u", b"1"))
        await peer.send(JobCreated(b"H:1"))
        assert str(await call.outcome()) == "H:1"
        again = submit(b"2")  # the other connection is not asked again
        await peer.expect(SubmitJobBg(b"f", b"u", b"2"))
        await peer.send(JobCreated(b"H:2"))
        assert str(await again.outcome()) == "H:2"


async def test_options_for_an_older_server_go_the_usual_way() -> None:
    async with ScriptedServer() as server, submitting(server, options=OPTIONS) as submit:
        call = submit(b"1")
        direct = await greet(server)
        await direct.expect(OptionReq(b"gearflow"))
        await direct.send(OptionRes(b"gearflow"))
        await direct.expect(SubmitJobBg(b"gearflow:submit", b"u", REQUEST + b"1"))
        await direct.send(Error(b"INVALID_FUNCTION_NAME", b"no"))
        peer = await server.accept()
        await peer.shake_hands(gearflow=True)
        await peer.expect(SubmitJobBg(b"gearflow:submit", b"u", REQUEST + b"1"))
        await peer.send(Error(b"INVALID_FUNCTION_NAME", b"no"))
        heard = await peer.receive()
        assert isinstance(heard, SubmitJob)
        await peer.send(JobCreated(b"C:1"), WorkComplete(b"C:1", b'{"handle": "H:1"}'))
        assert str(await call.outcome()) == "H:1"


async def test_a_server_that_goes_before_it_said_what_it_is_got_nothing() -> None:
    async with ScriptedServer() as server, submitting(server, options=OPTIONS) as submit:
        call = submit(b"1")
        direct = await greet(server)
        await direct.expect(OptionReq(b"gearflow"))
        await direct.close()
        peer = await server.accept()
        await peer.shake_hands()
        await peer.expect(SubmitJobBg(b"f", b"u", b"1"))
        await peer.send(JobCreated(b"H:1"))
        assert str(await call.outcome()) == "H:1"


@pytest.mark.parametrize("fault", ["closed", "reset", "nonsense", "another packet"])
async def test_a_connection_lost_before_the_answer_leaves_it_unknown(fault: str) -> None:
    async with ScriptedServer() as server, submitting(server) as submit:
        call = submit(b"1")
        peer = await greet(server)
        await peer.expect(SubmitJobBg(b"f", b"u", b"1"))
        match fault:
            case "closed":
                await peer.close()
            case "reset":
                await peer.reset()
            case "nonsense":
                await peer.send(b"HTTP/1.1 400\r\n")
            case _:
                await peer.send(WorkFail(b"H:1"))
        with pytest.raises(SubmitUnknown, match=r"function 'f', unique 'u': sent to .* may exist or not"):
            await call.outcome()
        again = submit(b"2")  # by a connection that nothing of the first one is on
        peer = await greet(server)
        await peer.expect(SubmitJobBg(b"f", b"u", b"2"))
        await peer.send(JobCreated(b"H:2"))
        assert str(await again.outcome()) == "H:2"


async def test_a_server_that_does_not_know_of_the_job_leaves_it_unknown() -> None:
    async with ScriptedServer() as server, submitting(server) as submit:
        call = submit(b"1")
        peer = await greet(server)
        await peer.expect(SubmitJobBg(b"f", b"u", b"1"))
        await peer.send(Error(b"gearflow:uncertain", b"the database gives no answer"))
        with pytest.raises(SubmitUnknown, match="the database gives no answer"):
            await call.outcome()


async def test_an_answer_in_pieces_has_to_be_whole_in_time() -> None:
    async with ScriptedServer() as server, submitting(server, answer_timeout=1) as submit:
        call = submit(b"1")
        peer = await greet(server)
        await peer.expect(SubmitJobBg(b"f", b"u", b"1"))
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:

            async def drip() -> None:
                for byte in encode(JobCreated(b"H:" + b"1" * 100)):
                    await peer.send(bytes([byte]))
                    await anyio.sleep(0.1)  # each piece comes in time, and all of them do not

            tasks.start_soon(drip)
            with pytest.raises(SubmitUnknown, match="no answer for 1 s"):
                await call.outcome()
            tasks.cancel_scope.cancel()
        assert anyio.current_time() - began < 5  # and not 11


async def test_a_greeting_in_pieces_has_to_be_whole_in_time() -> None:
    async with ScriptedServer() as server, submitting(server) as submit:
        call = submit(b"1")
        slow = await server.accept()
        await slow.expect(EchoReq(HELLO))
        async with anyio.create_task_group() as tasks:

            async def drip() -> None:
                for byte in encode(EchoRes(HELLO)):
                    await slow.send(bytes([byte]))
                    await anyio.sleep(0.5)  # as above

            tasks.start_soon(drip)
            peer = await server.accept()  # long before the greeting is whole
            await peer.shake_hands()
            await peer.expect(SubmitJobBg(b"f", b"u", b"1"))
            await peer.send(JobCreated(b"H:1"))
            assert str(await call.outcome()) == "H:1"
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("stray", [encode(JobCreated(b"H:stray")), b"\0RES\0\0\0"], ids=["whole", "in part"])
async def test_a_connection_with_more_on_it_than_the_answer_is_used_no_more(stray: bytes) -> None:
    async with ScriptedServer() as server, submitting(server) as submit:
        first = submit(b"1")
        peer = await greet(server)
        await peer.expect(SubmitJobBg(b"f", b"u", b"1"))
        await peer.send(encode(JobCreated(b"H:1")) + stray)
        assert str(await first.outcome()) == "H:1"
        second = submit(b"2")
        peer = await greet(server)
        await peer.expect(SubmitJobBg(b"f", b"u", b"2"))
        await peer.send(JobCreated(b"H:2"))
        assert str(await second.outcome()) == "H:2"


async def test_a_server_that_does_not_answer_is_given_up() -> None:
    async with ScriptedServer() as server, submitting(server, answer_timeout=0.2) as submit:
        call = submit(b"1")
        peer = await greet(server)
        await peer.expect(SubmitJobBg(b"f", b"u", b"1"))
        with pytest.raises(SubmitUnknown, match=r"no answer for 0\.2 s"):
            await call.outcome()


async def test_a_connection_that_ended_while_nothing_was_asked_is_made_anew() -> None:
    async with ScriptedServer() as server, submitting(server) as submit:
        first = submit(b"1")
        peer = await greet(server)
        await peer.expect(SubmitJobBg(b"f", b"u", b"1"))
        await peer.send(JobCreated(b"H:1"))
        await first.outcome()
        await peer.close()
        second = submit(b"2")
        peer = await greet(server)
        await peer.expect(SubmitJobBg(b"f", b"u", b"2"))
        await peer.send(JobCreated(b"H:2"))
        assert str(await second.outcome()) == "H:2"


async def test_what_cannot_be_reached_directly_goes_the_usual_way() -> None:
    async with ScriptedServer() as server, submitting(server) as submit:
        call = submit(b"1")
        await (await server.accept()).close()  # without a word
        peer = await server.accept()
        await peer.shake_hands()
        await peer.expect(SubmitJobBg(b"f", b"u", b"1"))
        await peer.send(JobCreated(b"H:1"))
        assert str(await call.outcome()) == "H:1"


async def test_a_server_that_refuses_us_goes_the_usual_way_which_says_why() -> None:
    async with ScriptedServer() as server, submitting(server) as submit:
        call = submit(b"1")
        peer = await server.accept()
        await peer.expect(EchoReq(HELLO))
        await peer.send(Error(TLS_REQUIRED, b"no"))
        peer = await server.accept()
        await peer.receive()
        await peer.send(Error(TLS_REQUIRED, b"no"))
        with pytest.raises(NoServer, match="it speaks TLS only"):
            await call.outcome()


def test_a_server_that_could_not_be_reached_is_left_to_the_usual_way_until_that_reaches_it() -> None:
    with JobServer(port=0) as server:
        address = ServerAddress.parse(server.address)
    reached = False
    direct = BlockingSubmitter(
        address,
        Timeouts(),
        Backoff(first=0, most=0),
        is_reached=lambda: reached,
    )
    direct.open()
    packet = encode(SubmitJobBg(b"f", b"u", b"1"))
    with pytest.raises(NotSent, match="refused"):
        direct.submit("f", b"u", packet)
    with JobServer(port=address.port):
        with pytest.raises(NotSent, match="could not be reached before"):
            direct.submit("f", b"u", packet)
        reached = True
        assert direct.submit("f", b"u", packet).server == address
    direct.close()


async def test_a_large_workload_goes_the_usual_way() -> None:
    async with ScriptedServer() as server, submitting(server) as submit:
        call = submit(b"x" * LARGE)
        peer = await server.accept()
        await peer.shake_hands()
        await peer.expect(SubmitJobBg(b"f", b"u", b"x" * LARGE))
        await peer.send(JobCreated(b"H:1"))
        await call.outcome()


async def test_while_one_thread_waits_another_goes_the_usual_way() -> None:
    async with ScriptedServer() as server, submitting(server) as submit:
        slow = submit(b"1")
        direct = await greet(server)
        await direct.expect(SubmitJobBg(b"f", b"u", b"1"))
        quick = submit(b"2")
        peer = await server.accept()
        await peer.shake_hands()
        await peer.expect(SubmitJobBg(b"f", b"u", b"2"))
        await peer.send(JobCreated(b"H:2"))
        assert str(await quick.outcome()) == "H:2"
        await direct.send(JobCreated(b"H:1"))
        assert str(await slow.outcome()) == "H:1"


@contextmanager
def direct_to(
    server: str, *, answer_timeout: float = 30.0, close: float = 1.0
) -> Generator[BlockingSubmitter]:
    direct = BlockingSubmitter(
        ServerAddress.parse(server),
        Timeouts(answer=answer_timeout, close=close),
        Backoff(),
        is_reached=lambda: True,
    )
    direct.open()
    try:
        yield direct
    finally:
        direct.close()


async def test_closing_ends_a_wait_for_a_server_that_does_not_answer() -> None:
    async with ScriptedServer() as server, anyio.create_task_group() as tasks:
        with direct_to(server.address, answer_timeout=math.inf, close=0.1) as direct:
            call = Call(anyio.to_thread.run_sync, partial(direct.submit, "f", b"u", PACKET))
            tasks.start_soon(call.run)
            peer = await greet(server)
            await peer.receive()
            await anyio.to_thread.run_sync(direct.close)
            with pytest.raises(SubmitUnknown, match="the client was closed"):
                await call.outcome()
        await peer.expect_end()


async def test_closing_lets_a_call_have_its_answer() -> None:
    waits = threading.Event()

    def note_wait(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is threading.Event.wait.__code__:
            waits.set()

    def close(direct: BlockingSubmitter) -> None:
        before = sys.getprofile()
        sys.setprofile(note_wait)
        try:
            direct.close()
        finally:
            sys.setprofile(before)

    async with ScriptedServer() as server, anyio.create_task_group() as tasks:
        with direct_to(server.address) as direct:
            call = Call(anyio.to_thread.run_sync, partial(direct.submit, "f", b"u", PACKET))
            tasks.start_soon(call.run)
            peer = await greet(server)
            await peer.receive()
            closing = Call(anyio.to_thread.run_sync, close, direct)
            tasks.start_soon(closing.run)
            assert await anyio.to_thread.run_sync(waits.wait, 5)
            await peer.send(JobCreated(b"H:1"))
            assert str(await call.outcome()) == "H:1"
            await closing.outcome()
            await peer.expect_end()


class Interrupt(BaseException):
    """What a signal handler raises, as Ctrl-C does."""


def interrupt_at(step: int, where: set[str]) -> Callable[[FrameType, str, object], None]:
    """A profiler that raises at the n-th place in the module where Python may call a signal handler.

    The function in which that is goes to ``where``.
    """
    places = itertools.count(1)

    def profile(frame: FrameType, event: str, _: object) -> None:
        here = frame.f_code.co_filename == direct_module.__file__
        if here and event in ("call", "c_return") and next(places) == step:
            where.add(frame.f_code.co_name)
            raise Interrupt

    return profile


def test_an_interrupt_leaves_the_connection_to_the_next_call_wherever_it_comes() -> None:
    one, other = encode(SubmitJobBg(b"f", b"one", b"")), encode(SubmitJobBg(b"f", b"other", b""))
    with JobServer(port=0) as server, direct_to(server.address) as direct:
        handle = direct.submit("f", b"other", other)
        step, is_over = 0, False
        where: set[str] = set()
        while not is_over:
            step += 1
            before = sys.getprofile()
            sys.setprofile(interrupt_at(step, where))
            try:
                direct.submit("f", b"one", one)
            except Interrupt:
                pass
            else:
                is_over = True  # it has been interrupted everywhere
            finally:
                sys.setprofile(before)
            assert direct.submit("f", b"other", other) == handle  # and neither NotSent nor the other's
        assert where >= {"submit", "_ask", "_connection", "_is_quiet", "_exchange", "_frame"}


def test_the_next_server_takes_over_and_the_first_is_used_when_it_is_back() -> None:
    with JobServer(port=0) as second:
        with JobServer(port=0) as first:
            both = [first.address, second.address]
            client = SyncClient(both)
            client.__enter__()
            assert str(client.submit_background("f", b"").server) == first.address
        assert str(client.submit_background("f", b"").server) == second.address
    with pytest.raises(NoServer):
        client.submit_background("f", b"")
    client.__exit__(None, None, None)


def test_a_server_may_have_all_the_time_it_wants() -> None:
    with (
        JobServer(port=0) as server,
        SyncClient([server.address], answer_timeout=math.inf, heartbeat=math.inf) as client,
    ):
        assert str(client.submit_background("f", b"").server) == server.address
        assert client.echo(b"x") == b"x"


async def test_a_connection_that_an_interrupt_leaves_half_prepared_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> NoReturn:
        raise Interrupt

    def interrupted(direct: BlockingSubmitter) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(struct, "pack", interrupt)
            with pytest.raises(Interrupt):
                direct.submit("f", b"u", PACKET)

    async with ScriptedServer() as server, anyio.create_task_group() as tasks:
        with direct_to(server.address) as direct:
            first = Call(anyio.to_thread.run_sync, interrupted, direct)
            tasks.start_soon(first.run)
            peer = await greet(server)
            await first.outcome()
            second = Call(anyio.to_thread.run_sync, partial(direct.submit, "f", b"u", PACKET))
            tasks.start_soon(second.run)
            await peer.expect_end()
            peer = await greet(server)
            await peer.expect(SubmitJobBg(b"f", b"u", b"1"))
            await peer.send(JobCreated(b"H:1"))
            assert str(await second.outcome()) == "H:1"
