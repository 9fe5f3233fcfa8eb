"""A way to a server that can hang, as one of a machine without memory does, or a stopped process."""

import socket
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress


class HangingRelay:
    """Passes bytes to and from a server until it hangs. It then accepts connections and says nothing."""

    def __init__(self, upstream: str, ends: ExitStack) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = host, int(port)
        self._ends = ends
        self._goes = threading.Event()
        self._goes.set()
        self._listener = ends.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def hang(self) -> None:
        """Pass nothing on from now."""
        self._goes.clear()

    def go_on(self) -> None:
        """Pass on what has come, and all that comes."""
        self._goes.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._upstream)
                for end in (near, far):
                    self._ends.callback(_end, end)
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                self._goes.wait()
                target.sendall(data)
        _end(target)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextmanager
def relayed(upstream: str) -> Generator[HangingRelay]:
    """A relay to a server, until the end of the block."""
    with ExitStack() as ends:
        relay = HangingRelay(upstream, ends)
        try:
            yield relay
        finally:
            relay.go_on()
            _end(relay._listener)  # pyright: ignore[reportPrivateUsage]  (of this module)
