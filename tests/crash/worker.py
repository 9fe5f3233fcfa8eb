"""A worker in processes of its own, by the standard library alone: ``python worker.py PORT LOG MARKS``.

It does what a job's payload, a JSON object, tells it ("do"), after it has appended to the file LOG, in one
write, that it runs the job. One process forks another and replaces it each time it was killed, until the
server is gone. What a job does only once ("die", "leave") leaves a mark in the folder MARKS.
"""

import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any, Final

HEADER: Final = struct.Struct(">4sII")
CAN_DO, PRE_SLEEP, NOOP, SUBMIT_JOB, JOB_CREATED, NO_JOB = 1, 4, 6, 7, 8, 10
WORK_STATUS, WORK_COMPLETE, WORK_FAIL, ERROR = 12, 13, 14, 19
WORK_EXCEPTION, OPTION_REQ, WORK_WARNING, GRAB_JOB_UNIQ, JOB_ASSIGN_UNIQ = 25, 26, 29, 30, 31
ENVELOPE: Final = b"\0gf1"


class Gone(Exception):
    """The server has closed the connection."""


class Connection:
    def __init__(self, port: int) -> None:
        try:
            self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        except ConnectionRefusedError as error:
            raise Gone from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""
        self.send(OPTION_REQ, b"gearflow")
        self.send(OPTION_REQ, b"exceptions")
        self.receive()
        self.receive()
        self.send(CAN_DO, b"work")

    def send(self, kind: int, *fields: bytes) -> None:
        body = b"\0".join(fields)
        self._socket.sendall(HEADER.pack(b"\0REQ", kind, len(body)) + body)

    def receive(self) -> tuple[int, bytes]:
        while len(self._data) < 12:
            self._more()
        _, kind, size = HEADER.unpack_from(self._data)
        while len(self._data) < 12 + size:
            self._more()
        body, self._data = self._data[12 : 12 + size], self._data[12 + size :]
        return kind, body

    def close(self) -> None:
        self._socket.close()

    def _more(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise Gone
        self._data += data


class Worker:
    def __init__(self, port: int, log: str, marks: str) -> None:
        self._port = port
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._marks = Path(marks)
        self._connection = Connection(port)

    def work(self) -> None:
        """Until the server is gone."""
        while True:
            self._connection.send(GRAB_JOB_UNIQ)
            kind, body = self._connection.receive()
            if kind == JOB_ASSIGN_UNIQ:
                handle, _, _, workload = body.split(b"\0", 3)
                self._run(handle, workload)
            elif kind == NO_JOB:
                self._connection.send(PRE_SLEEP)
                kind, _ = self._connection.receive()
                if kind != NOOP:
                    raise AssertionError(f"packet {kind} in place of NOOP")
            elif kind != NOOP:
                raise AssertionError(f"packet {kind} in place of a job")

    def close(self) -> None:
        self._connection.close()
        os.close(self._log)

    def _run(self, handle: bytes, workload: bytes) -> None:
        attempt = 1
        while workload.startswith(ENVELOPE):
            size = int.from_bytes(workload[4:8], "big")
            attempt = json.loads(workload[8 : 8 + size]).get("attempt", attempt)
            workload = workload[8 + size :]
        job: dict[str, Any] = json.loads(workload)
        key, do = job["key"], job["do"]
        os.write(self._log, b"%b %b %d\n" % (handle, key.encode(), attempt))
        send = self._connection.send
        if do == "fail":
            send(WORK_FAIL, handle)
            return
        if do == "raise":
            send(WORK_EXCEPTION, handle, json.dumps({"type": "ValueError", "message": key}).encode())
            return
        if do == "die always" or (do == "die" and self._is_first(key)):
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "leave" and self._is_first(key):
            self._connection.close()
            self._connection = Connection(self._port)
            return
        if do == "retry" and attempt == 1 and self._retry(handle):
            return
        if do == "tell":
            send(WORK_STATUS, handle, b"1", b"2")
            send(WORK_WARNING, handle, b"half of it")
        send(WORK_COMPLETE, handle, b"did " + key.encode() + b"." * job.get("size", 0))

    def _retry(self, handle: bytes) -> bool:
        request = {"handle": handle.decode(), "delay": 0.01, "reason": "once more"}
        self._connection.send(SUBMIT_JOB, b"gearflow:retry", b"", json.dumps(request).encode())
        kind, _ = self._connection.receive()
        while kind == NOOP:
            kind, _ = self._connection.receive()
        if kind == ERROR:
            return False
        if kind != JOB_CREATED:
            raise AssertionError(f"packet {kind} in place of JOB_CREATED")
        kind, _ = self._connection.receive()
        return kind == WORK_COMPLETE

    def _is_first(self, key: str) -> bool:
        try:
            os.close(os.open(self._marks / key, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def main(port: int, log: str, marks: str) -> int:
    """Replace each worker that was killed; 0 once the server is gone."""
    while True:
        pid = os.fork()
        if pid == 0:
            try:
                Worker(port, log, marks).work()
            except (Gone, OSError):
                return 0
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != -signal.SIGKILL:
            return status


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
