"""Workers in processes of their own, and clients in threads, all at work on one server."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.crash import worker as worker_module
from tests.crash.caller import Call, Caller, Gone, asking, attached, detached, has_name, plain
from tests.crash.ledger import Ledger
from tests.crash.nest import TIMEOUT

_DEEDS: Final = ("complete",) * 6 + ("fail", "raise", "retry", "retry", "die", "leave", "tell")
_SHARED: Final = 5  # uniques for which clients compete


@contextmanager
def workers(port: int, directory: Path, count: int) -> Generator[None]:
    """So many workers for the time of the block. By its end the server must be gone: they end with it."""
    (directory / "marks").mkdir(exist_ok=True)
    command = [sys.executable, "-S", "-E", worker_module.__file__, str(port)]
    command += [str(directory / "runs"), str(directory / "marks")]
    processes = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]
    try:
        yield
        for process in processes:
            assert process.wait(TIMEOUT) == 0, "a worker received something unexpected"
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(TIMEOUT)


@contextmanager
def clients(port: int, ledger: Ledger, name: str, count: int) -> Generator[None]:
    """So many clients, which go on until the server is gone."""
    threads = [Client(port, ledger, f"{name}.{number}") for number in range(count)]
    with ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join, TIMEOUT)
        yield
    assert not any(thread.is_alive() for thread in threads), "a client still waits for an answer"


class Client(threading.Thread):
    """Submits at random, as its name seeds, and asks for results."""

    def __init__(self, port: int, ledger: Ledger, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._port = port
        self._ledger = ledger
        self._chance = random.Random(name)
        self._count = 0

    def run(self) -> None:
        try:
            while self._spell():
                pass
        except (Gone, ConnectionError):
            pass
        except Exception as error:  # noqa: BLE001  (the test's thread is to see it)
            self._ledger.wrong(f"client {self.name}: {error!r}")

    def _spell(self) -> bool:
        """One connection; it is often dropped, sometimes in the middle of a submission."""
        chance = self._chance
        with Caller(self._port, self._ledger) as caller:
            for _ in range(chance.randrange(1, 12)):
                caller.call(self._calls())
                if caller.errors:
                    self._ledger.wrong(f"refused: {caller.errors[0]}")
                    return False
            if chance.random() < 0.5:
                dropped = [plain(self._key(), self._do()) for _ in range(chance.randrange(1, 20))]
                caller.wire.send(*(call.packet for call in dropped), b"\0REQ\0\0")
                if chance.random() < 0.5:
                    caller.wire.reset()
        return True

    def _calls(self) -> Sequence[Call]:
        chance = self._chance
        promises = self._ledger.promises
        match chance.randrange(8):
            case 0 | 1:
                return [plain(self._key(), self._do()) for _ in range(chance.randrange(1, 50))]
            case 2:
                return [
                    plain(self._key(), self._do(), size=chance.choice((0, 2000, 70_000))) for _ in range(3)
                ]
            case 3:
                return [detached(self._key(), self._do(), unique=self._own()) for _ in range(5)]
            case 4:
                return [
                    detached(
                        self._key(), self._do(), keep=chance.choice((0, 600)), delay=chance.random() / 10
                    )
                    for _ in range(5)
                ]
            case 5:
                shared = f"shared-{chance.randrange(_SHARED)}"
                return [
                    plain(self._key(), unique=shared, shared=True),
                    detached(self._key(), unique=shared, shared=True),
                ]
            case 6:
                return [attached(self._key()), plain(self._key(), self._do()), attached(self._key(), "die")]
            case _:
                asked = chance.sample(promises, min(len(promises), 20))
                by_unique = [asking(promise, by_unique=True) for promise in asked if has_name(promise)]
                return [asking(promise) for promise in asked] + by_unique

    def _key(self) -> str:
        self._count += 1
        return f"{self.name}-{self._count}"

    def _do(self) -> str:
        return self._chance.choice(_DEEDS)

    def _own(self) -> str:
        return f"u{self._key()}"
