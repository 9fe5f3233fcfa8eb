"""The proxy before PostgreSQL, between plain sockets."""

import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

from tests.postgres.cluster import TIMEOUT, eventually
from tests.postgres.proxy import BOTH, Fault, Proxy, Way, What

UP, DOWN = frozenset({Way.UP}), frozenset({Way.DOWN})


class Line:
    """A connection through a proxy: a client's end and the upstream's."""

    def __init__(self, client: socket.socket, upstream: socket.socket) -> None:
        self.client = client
        self.upstream = upstream
        for end in (client, upstream):
            end.settimeout(TIMEOUT)

    def arrives(self, data: bytes, *, down: bool = False) -> bool:
        """Send some bytes and wait until they are there."""
        one, other = (self.upstream, self.client) if down else (self.client, self.upstream)
        one.sendall(data)
        return received(other, len(data)) == data


def received(end: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length and (more := end.recv(length - len(data))):
        data += more
    return data


def dial_and_read(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as other:
        other.recv(1)


def is_silent(end: socket.socket) -> bool:
    """Whether there is nothing to read, after what was sent has had a moment to arrive."""
    end.settimeout(0.05)
    try:
        return bool(end.recv(1)) and False
    except TimeoutError:
        return True
    finally:
        end.settimeout(TIMEOUT)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        yield listener


@pytest.fixture
def proxy(listener: socket.socket) -> Iterator[Proxy]:
    with Proxy(listener.getsockname()[1]).running() as proxy:
        yield proxy


@contextmanager
def connected(proxy: Proxy, listener: socket.socket) -> Generator[Line]:
    with (
        socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT) as client,
        listener.accept()[0] as upstream,
    ):
        yield Line(client, upstream)


def test_bytes_arrive_on_both_ways_and_are_counted(proxy: Proxy, listener: socket.socket) -> None:
    with connected(proxy, listener) as line:
        assert line.arrives(b"hello")
        assert line.arrives(b"you", down=True)
        assert proxy.passed == {Way.UP: 5, Way.DOWN: 3}
        line.client.shutdown(socket.SHUT_WR)
        assert received(line.upstream, 1) == b""
        assert line.arrives(b"still open", down=True)


def test_a_reset_meets_open_and_new_connections_until_it_is_healed(
    proxy: Proxy, listener: socket.socket
) -> None:
    with connected(proxy, listener) as line:
        proxy.fail(What.RESET)
        for end in (line.client, line.upstream):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        with pytest.raises(ConnectionResetError):
            dial_and_read(proxy.port)
    proxy.heal()
    with connected(proxy, listener) as line:
        assert line.arrives(b"hello")


@pytest.mark.parametrize("after", [0, 1, 4, 5])
def test_so_many_bytes_arrive_before_the_reset(proxy: Proxy, listener: socket.socket, after: int) -> None:
    with connected(proxy, listener) as line:
        proxy.fail(Fault(What.RESET, marker=b"ell", after=after))
        assert line.arrives(b"others")
        line.client.sendall(b"hello")
        proxy.wait_until_struck()
        with pytest.raises(ConnectionResetError):
            received(line.client, 1)
        assert proxy.passed[Way.UP] == len(b"others") + after


def test_what_was_held_arrives_when_it_is_healed(proxy: Proxy, listener: socket.socket) -> None:
    with connected(proxy, listener) as line:
        proxy.fail(Fault(What.HOLD, UP, after=2))
        line.client.sendall(b"hello")
        assert received(line.upstream, 2) == b"he"
        line.client.shutdown(socket.SHUT_WR)
        assert is_silent(line.upstream)
        assert line.arrives(b"the other way", down=True)
        proxy.heal()
        assert received(line.upstream, 4) == b"llo"


def test_what_was_swallowed_is_lost_and_its_connection_with_it(proxy: Proxy, listener: socket.socket) -> None:
    with connected(proxy, listener) as line, connected(proxy, listener) as other:
        with proxy.failing(Fault(What.SWALLOW, DOWN)):
            line.upstream.sendall(b"hello")
            proxy.wait_until_struck()
            line.upstream.close()
            assert is_silent(line.client)
        with pytest.raises(ConnectionResetError):
            line.client.recv(1)
        assert other.arrives(b"nothing of it was lost", down=True)


def test_one_fault_meets_one_connection_for_good(proxy: Proxy, listener: socket.socket) -> None:
    with connected(proxy, listener) as line, connected(proxy, listener) as other:
        proxy.fail(Fault(What.SWALLOW, marker=b"x", after=1, once=True))
        line.client.sendall(b"x")
        assert received(line.upstream, 1) == b"x"
        line.client.sendall(b"more")
        line.upstream.sendall(b"back")
        assert is_silent(line.client)
        assert is_silent(line.upstream)
        assert other.arrives(b"x")
        assert other.arrives(b"x", down=True)


def test_a_slow_line_is_slow_until_it_is_healed(proxy: Proxy, listener: socket.socket) -> None:
    with connected(proxy, listener) as line:
        proxy.fail(Fault(What.SLOW, BOTH))
        line.client.sendall(bytes(1_000_000))
        assert received(line.upstream, 3) == bytes(3)
        proxy.heal()
        assert len(received(line.upstream, 999_997)) == 999_997


def test_new_connections_go_to_another_port_when_it_is_pointed_there(
    proxy: Proxy, listener: socket.socket
) -> None:
    with connected(proxy, listener) as line, socket.create_server(("127.0.0.1", 0)) as elsewhere:
        proxy.point(elsewhere.getsockname()[1])
        with pytest.raises(ConnectionResetError):
            line.client.recv(1)
        with connected(proxy, elsewhere) as line:
            assert line.arrives(b"hello")
        eventually(lambda: proxy.open_connections == 0, "both connections are gone")
