"""What a supervisor and its processes say to each other."""

import os

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearflow.supervisor.ipc import (
    VARIABLE,
    Counts,
    Failed,
    IpcChannel,
    Leave,
    Message,
    Ping,
    Pong,
    Ready,
    Retiring,
    Shown,
    decode,
    encode,
)

messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Ready, st.text()),
    st.builds(Retiring, st.text()),
    st.builds(Failed, st.text()),
    st.builds(Counts, st.integers(0), st.integers(0), st.integers(0)),
    st.sampled_from([Leave(), Ping(), Pong(), Shown()]),
)


@given(messages)
def test_a_message_is_one_line_and_comes_back(message: Message) -> None:
    line = encode(message)
    assert line.index(b"\n") == len(line) - 1
    assert decode(line) == message


async def test_of_a_text_of_any_length_so_much_is_sent_as_fits() -> None:
    here, there = IpcChannel.pair()
    other = IpcChannel(there)
    other.send(Failed("begins" + "\u00fc" * 400_000 + "ends"))
    other.close()
    [message] = [message async for message in here.messages()]
    assert isinstance(message, Failed)
    assert message.reason.startswith("begins")
    assert "characters left out" in message.reason
    assert message.reason.endswith("ends")
    here.close()


async def test_a_forked_child_does_not_keep_a_side_there() -> None:
    here, there = IpcChannel.pair()
    other = IpcChannel(there)
    may_end, end = os.pipe()
    child = os.fork()
    if not child:
        os.close(end)
        os.read(may_end, 1)
        os._exit(0)
    try:
        other.close()
        with anyio.fail_after(20):
            assert [message async for message in here.messages()] == []
    finally:
        os.close(end)
        os.close(may_end)
        os.waitpid(child, 0)  # noqa: ASYNC222  (it ends at once)
    here.close()


async def test_messages_are_heard_in_order_until_the_other_side_is_gone() -> None:
    here, there = IpcChannel.pair()
    other = IpcChannel(there)
    for number in range(3):
        other.send(Counts(number, 0, 0))
    other.close()
    assert [message async for message in here.messages()] == [Counts(number, 0, 0) for number in range(3)]
    here.send(Leave())  # nobody hears it, and that does not matter
    here.close()


def test_a_process_does_not_wait_for_a_supervisor_that_does_not_listen() -> None:
    here, there = IpcChannel.pair()
    other = IpcChannel(there)
    for number in range(10_000):
        other.send(Counts(number, 0, 0))
    other.close()
    here.close()


def test_a_process_takes_its_end_out_of_the_environment_and_lends_it_to_nobody() -> None:
    here, there = IpcChannel.pair()
    os.set_inheritable(there.fileno(), True)
    number = there.detach()
    environment = {VARIABLE: str(number), "OTHER": "1"}
    line = IpcChannel.inherited(environment)
    assert line is not None
    assert environment == {"OTHER": "1"}
    assert not os.get_inheritable(number)
    line.close()
    here.close()


@pytest.mark.parametrize("environment", [{}, {"OTHER": "1"}])
def test_a_process_that_nobody_supervises_has_none(environment: dict[str, str]) -> None:
    assert IpcChannel.inherited(environment) is None
