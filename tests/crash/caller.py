"""A client that sends many requests at once, and tells the ledger what it was promised."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Self

from gearflow.protocol import packets as p
from gearflow.protocol import server_calls
from gearflow.protocol.packets import Packet
from tests.crash.ledger import Ledger, Promise
from tests.server.wire import Wire


class Gone(Exception):
    """The server has closed the connection."""


class Call(NamedTuple):
    """A request that JOB_CREATED or ERROR answers."""

    packet: Packet
    key: str
    background: bool  # JOB_CREATED is a promise already
    promise: Promise | None = None  # what is submitted, without its handle; or whose end is asked for
    shared: str = ""  # the unique of an attached job that others join


class Caller:
    """One connection; closed with its block."""

    def __init__(self, port: int, ledger: Ledger) -> None:
        self._ledger = ledger
        self.wire = Wire(port)
        self.errors: list[p.Error] = []
        self.faults: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self.wire.socket.close)
            self.wire.send(p.OptionReq(b"exceptions"))
            if self.wire.receive() is None:
                raise Gone
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.socket.close()

    def call(self, calls: Sequence[Call]) -> None:
        """Send all; return when all are answered, and those that are not background jobs have ended.

        Raises:
            Gone: The server is gone. What was answered before counts.
        """
        self.wire.send(*(call.packet for call in calls))
        waiting = deque(calls)
        running: dict[bytes, Call] = {}
        while waiting or running:
            match self.wire.receive():
                case None:
                    raise Gone
                case p.JobCreated(handle):
                    self._created(waiting.popleft(), handle, running)
                case p.Error() as error:
                    self.errors.append(error)
                    self._ledger.refused.add(waiting.popleft().key)
                case p.WorkComplete(handle, result):
                    self._ended(running.pop(handle), "completed", result)
                case p.WorkFail(handle):
                    self._ended(running.pop(handle), "failed", b"")
                case p.WorkException(handle, data):
                    self._ended(running.pop(handle), "raised", data)
                case _:
                    pass  # what is said of a job on the way

    def _created(self, call: Call, handle: bytes, running: dict[bytes, Call]) -> None:
        if call.background:
            self._promised(call, handle.decode())
        else:
            label = _label(call.shared) if call.shared else f"a call of {call.key}"
            self._ledger.given(handle.decode(), label, bool(call.shared))
            running[handle] = call

    def _promised(self, call: Call, handle: str) -> None:
        promise = call.promise
        assert promise is not None
        promise.handle = handle
        self._ledger.promised(promise)
        shared = promise.shared
        self._ledger.given(handle, _label(promise.unique) if shared else call.key, shared)

    def _ended(self, call: Call, how: str, body: bytes) -> None:
        fault = _fault(how, body)
        if fault is not None:
            self.faults.append(fault)
        promise = call.promise
        if promise is None:
            if fault is None and body.rstrip(b".") != b"did " + call.key.encode():
                self._ledger.wrong(f"the job {call.key} {how}: {body!r}")
        elif promise.handle:
            self._note_end(promise, how, body, fault)
        elif fault is None:
            self._promised(call, json.loads(body)["handle"])
        else:
            self._ledger.refused.add(call.key)

    def _note_end(self, promise: Promise, how: str, body: bytes, fault: dict[str, Any] | None) -> None:
        """The answer to the question how a job ended."""
        if fault is None:
            self._ledger.ended(promise, how, body)
        elif fault["type"] == "gearflow:unknown" and not promise.kept:
            self._ledger.ended(promise, "not kept", b"")
        elif fault["type"] != "gearflow:timeout" or promise.ended is not None:
            self._ledger.wrong(f"{promise}: {fault}")

    # -------------------------------------------------------------------------------------------- requests

    def drain(self, promises: Sequence[Promise], timeout: float) -> None:
        """Ask how jobs ended, and wait so long for it: by handle, and by unique where that names one job."""
        for start in range(0, len(promises), 500):
            asked = promises[start : start + 500]
            self.call([asking(promise, timeout=timeout) for promise in asked])
            self.call([asking(promise, by_unique=True) for promise in asked if has_name(promise)])

    def ask(self, name: bytes, request: server_calls.Message) -> dict[str, Any]:
        """Call a reserved function, and return its answer, or its fault.

        Raises:
            Gone: The server is gone.
        """
        self.wire.send(p.SubmitJob(name, b"", request.to_wire()))
        match self.wire.receive():
            case p.JobCreated(handle):
                self._ledger.given(handle.decode(), f"a call of {name.decode()}")
            case p.Error(code, text):
                return {"type": code.decode(), "message": text.decode()}
            case answer:
                assert answer is None, answer
                raise Gone
        match self.wire.receive():
            case p.WorkComplete(_, body) | p.WorkException(_, body):
                parsed: dict[str, Any] = json.loads(body)
                return parsed
            case answer:
                assert answer is None, answer
                raise Gone


def payload(key: str, do: str, size: int = 0) -> bytes:
    """What tells a worker what to do; ``size`` is that of the payload, about, and of the result."""
    return json.dumps({"key": key, "do": do, "size": size, "pad": "." * size}).encode()


def plain(key: str, do: str = "complete", unique: str = "", shared: bool = False, size: int = 0) -> Call:
    """SUBMIT_JOB_BG."""
    promise = Promise(key, do, "", unique, shared, kept=True)
    return Call(p.SubmitJobBg(b"work", unique.encode(), payload(key, do, size)), key, True, promise)


def attached(key: str, do: str = "complete", unique: str = "") -> Call:
    """SUBMIT_JOB."""
    return Call(p.SubmitJob(b"work", unique.encode(), payload(key, do)), key, False, None, unique)


def detached(key: str, do: str = "complete", unique: str = "", shared: bool = False, **options: Any) -> Call:
    """``gearflow:submit``, detached."""
    request = server_calls.SubmitRequest(function="work", unique=unique, detached=True, **options)
    kept = options.get("keep") != 0 or do in ("fail", "raise")
    promise = Promise(key, do, "", unique, shared, kept)
    workload = request.to_wire() + b"\n" + payload(key, do)
    return Call(p.SubmitJob(server_calls.SUBMIT, b"", workload), key, False, promise)


def asking(promise: Promise, timeout: float = 0, *, by_unique: bool = False) -> Call:
    """``gearflow:result``."""
    if by_unique:
        request = server_calls.ResultRequest(function="work", unique=promise.unique, timeout=timeout)
    else:
        request = server_calls.ResultRequest(handle=promise.handle, timeout=timeout)
    return Call(p.SubmitJob(server_calls.RESULT, b"", request.to_wire()), promise.key, False, promise)


def has_name(promise: Promise) -> bool:
    """Whether its unique names this job alone, and its end is kept."""
    return bool(promise.unique) and not promise.shared and promise.kept


def _label(unique: str) -> str:
    return f"jobs of {unique}"


def _fault(how: str, body: bytes) -> dict[str, Any] | None:
    if how == "raised":
        said: dict[str, Any] = json.loads(body)
        if str(said.get("type", "")).startswith("gearflow:"):
            return said
    return None
