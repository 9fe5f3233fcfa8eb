"""A server that stops answering: every call ends in time, at whatever point the answers stop."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from math import inf
from typing import Any, Final

import anyio
import anyio.to_thread
import pytest
from anyio.abc import SocketStream

from gearflow.client import Client, JobRequest, SubmitOptions, SyncClient, Timeouts, connect, operate
from gearflow.errors import ConnectionLost, GearflowError, SubmitUnknown
from gearflow.protocol.codec import decode, encode_response
from gearflow.protocol.constants import REQ
from gearflow.protocol.framing import FrameBuffer
from gearflow.protocol.packets import (
    EchoReq,
    EchoRes,
    Error,
    JobCreated,
    OptionReq,
    OptionRes,
    Packet,
    SubmitJob,
    SubmitJobBg,
    WorkComplete,
)
from gearflow.tasks import Ref
from tests.client.conftest import listening

TIMEOUTS: Final = Timeouts(connect=0.2, answer=0.2, heartbeat=0.1)
KEEP: Final = SubmitOptions(keep=60)

OLDER: Final = Error(b"INVALID_FUNCTION_NAME", b"a reserved function is for foreground submissions")
"""An older server's answer to a background submission with options, which then is a call."""

Act = Callable[[Client], Awaitable[Any]]

ACTS: Final[dict[str, Act]] = {
    "echo": lambda client: client.echo(b"data"),
    "features": lambda client: client.features(),
    "status": lambda client: client.status("H:1"),
    "status of a unique": lambda client: client.status_by_unique("key"),
    "submit": lambda client: client.submit("f", b""),
    "background": lambda client: client.submit_background("f", b""),
    "background with an option": lambda client: client.submit_background("f", b"", options=KEEP),
    "many": lambda client: client.submit_many([JobRequest("f", b"", options=KEEP)] * 2),
    "info": lambda client: client.info("H:1"),
    "cancel": lambda client: client.cancel("H:1"),
    "result in time": lambda client: client.result("H:1", timeout=0.2),
    "server info": operate.server_info,
    "workers": operate.workers,
    "pause": lambda client: operate.pause(client, "f"),
    "purge": lambda client: operate.purge(client, "f"),
    "dead letters": operate.dead_letters,
    "dead letter": lambda client: operate.dead_letter(client, "H:1"),
    "replay": operate.replay,
    "purge of dead letters": operate.purge_dead,
}


class SilentServer:
    """Answers so many requests of each connection, and then only heartbeats. A call never ends.

    Background jobs with options are calls to it, as to an older server.
    """

    def __init__(self, answers: float) -> None:
        self._answers = answers

    async def talk(self, stream: SocketStream) -> None:
        frames, left = FrameBuffer(REQ), self._answers
        async with stream:
            try:
                while True:
                    for packet in [decode(*frame) for frame in frames.feed(await stream.receive())]:
                        if not _is_heartbeat(packet):
                            left -= 1
                        if left >= 0 or _is_heartbeat(packet):
                            await stream.send(encode_response(_answer(packet)))
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return


def _is_heartbeat(packet: Packet) -> bool:
    return packet == EchoReq(b"heartbeat")


def _answer(packet: Packet) -> Packet:
    match packet:
        case OptionReq(option):
            return OptionRes(option)
        case EchoReq(data):
            return EchoRes(data)
        case SubmitJobBg(function=b"gearflow:submit"):
            return OLDER
        case _:
            return JobCreated(b"C:1")


def silent_after(answers: float) -> AbstractAsyncContextManager[str]:
    """The address of such a server."""
    return listening(SilentServer(answers).talk)


OPTIONS: Final = 2  # requests of the handshake


@pytest.mark.parametrize("answers", range(OPTIONS + 4))
@pytest.mark.parametrize("act", ACTS)
async def test_every_call_ends_wherever_the_answers_stop(act: str, answers: int) -> None:
    needs = {"features": OPTIONS, "echo": OPTIONS + 1, "submit": OPTIONS + 1, "background": OPTIONS + 1}
    ends_well = answers >= needs.get(act, inf)
    with anyio.fail_after(20):
        async with silent_after(answers) as address, Client([address], timeouts=TIMEOUTS) as client:
            try:
                outcome = await ACTS[act](client)
            except (GearflowError, TimeoutError):
                assert not ends_well
            else:
                lost = act == "many" and all(isinstance(each, SubmitUnknown) for each in outcome)
                assert lost or ends_well


async def test_a_call_that_never_ends_leaves_the_connection_to_others() -> None:
    async with silent_after(inf) as address, Client([address], timeouts=TIMEOUTS) as client:
        with anyio.fail_after(20):
            with pytest.raises(ConnectionLost, match=rf"{address} accepted gearflow:info and gave no answer"):
                await client.info("H:1")
            job = await client.submit("f", b"")
            with pytest.raises(ConnectionLost, match="gave no answer"):
                await client.cancel("H:1")
            assert not job.done


async def test_many_submissions_wait_together() -> None:
    async with silent_after(inf) as address, Client([address], timeouts=TIMEOUTS) as client:
        with anyio.fail_after(20):
            outcomes = await client.submit_many([JobRequest("f", b"", options=KEEP)] * 1000)
    assert all(isinstance(outcome, SubmitUnknown) for outcome in outcomes)


async def test_a_request_behind_a_heartbeat_is_answered_in_time_or_given_up(scripted: Any) -> None:
    async with scripted(timeouts=TIMEOUTS) as (client, peer), anyio.create_task_group() as tasks:
        jobs: list[Any] = []

        async def submit() -> None:
            jobs.append(await client.submit("f", b""))

        tasks.start_soon(submit)
        await peer.expect(SubmitJob(b"f", b"", b""))
        await peer.send(JobCreated(b"H:1"))
        await peer.expect(EchoReq(b"heartbeat"))
        await peer.send(WorkComplete(b"H:1", b""))  # no job is attached any more, and the echo never comes
        with anyio.fail_after(20):
            await jobs[0].result() if jobs else None
            with pytest.raises(ConnectionLost, match="gave no answer"):
                await client.status("H:1")


@pytest.mark.parametrize("answers", range(4))
def test_code_without_an_event_loop_does_not_wait_either(answers: int) -> None:
    async def call() -> None:
        async with silent_after(answers) as address:
            await anyio.to_thread.run_sync(_ask, address)

    def _ask(address: str) -> None:
        with SyncClient([address], timeouts=TIMEOUTS) as client:
            for ask in (
                lambda: client.submit_background("f", b""),
                lambda: client.submit_background("f", b"", options=KEEP),
                lambda: client.info("H:1"),
                lambda: client.cancel("H:1"),
            ):
                try:
                    ask()
                except GearflowError:
                    continue

    anyio.run(call)


async def test_a_reference_does_not_wait_for_what_a_server_knows() -> None:
    async with silent_after(inf) as address, connect(address, answer_timeout=0.2):
        ref = Ref[bytes]("H:1", "f", bytes)
        for ask in (ref.ainfo, ref.astatus, ref.acancel):
            with anyio.fail_after(20), pytest.raises(ConnectionLost, match="gave no answer"):
                await ask()
