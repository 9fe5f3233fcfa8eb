"""Names, messages and payloads of others cannot steer the terminal, whatever command prints them."""

import json
import logging
import os
import re
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic_core import from_json
from typer.testing import CliRunner

from gearflow.errors import RemoteProtocolError
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as calls
from gearflow.protocol import workers
from gearflow.protocol.codec import decode, encode_response
from gearflow.protocol.constants import REQ
from gearflow.protocol.framing import TEXT, FrameBuffer
from gearflow_cli import logs
from gearflow_cli.app import app
from tests.cli.shell import COMMAND, said_on

FORGED: Final = "gearflow: forged"

EVIL: Final = (
    "\x1b[31mred",  # a colour
    "\x9b2Jcsi",  # CSI as one character
    "\x1b]52;c;ZXZpbA==\x07clip",  # the clipboard
    "a\u202egnp.exe",  # turned around
    f"two\n{FORGED}",
    "a\x00b\x08c\rd\x7f",
    "\u2066isolated\u2028line",
    "[/]markup[bold]",
)

NAMES: Final = [name.replace("\x00", "").encode() for name in EVIL] + [b"caf\xff", b"\xc3\x28.resize"]
"""Functions of the server. Those of the wire have no NUL."""

ALL: Final = " ".join(EVIL)


def evil_job(handle: str = "H:1") -> calls.JobInfo:
    return calls.JobInfo(
        handle=handle,
        function=ALL,
        unique=ALL,
        state="raised",
        dead=True,
        submitted=0,
        started=calls.LATEST,
        worker=ALL,
        warnings=(ALL,),
        failure=calls.Failure(type=ALL, message=ALL, traceback=f"{ALL}\n  at {ALL}"),
    )


FAILURE: Final = {
    "type": ALL,
    "message": ALL,
    "traceback": ALL,
    "errors": [{"loc": 5, "msg": ALL, "type": ALL, "input": ALL}, {"loc": [ALL], "msg": ALL}],
}


class EvilServer(socketserver.ThreadingTCPServer):
    """Knows functions with such names, and has such texts in all that it answers.

    Attributes:
        refuses: How it refuses everything but the handshake: as ``ERROR`` or as a ``fault``.
        fails: Jobs fail, instead of having a result.
    """

    allow_reuse_address = True
    daemon_threads = True
    refuses = ""
    fails = False

    def answer(self, packet: p.Packet) -> list[p.Packet]:
        handle = f"H:{EVIL[0]}{EVIL[4]}".encode()
        match packet:
            case p.OptionReq(option):
                return [p.OptionRes(option)]
            case p.EchoReq(data):
                return [p.EchoRes(data)]
            case _ if self.refuses == "ERROR":
                return [p.Error(EVIL[0].encode(), ALL.encode())]
            case p.SubmitJob(function, _, workload) if function.startswith(b"gearflow:"):
                if self.refuses:
                    said = calls.Fault(type="gearflow:refused", message=ALL).to_wire()
                    return [p.JobCreated(handle), p.WorkException(handle, said)]
                if function == calls.RESULT and self.fails:
                    return [p.JobCreated(handle), p.WorkException(handle, json.dumps(FAILURE).encode())]
                return [p.JobCreated(handle), p.WorkComplete(handle, self.reserved(function, workload))]
            case p.GetStatus(asked):
                return [p.StatusRes(asked, b"1", b"1", b"0", b"0")]
            case p.SubmitJobBg():
                return [p.JobCreated(handle)]
            case _ if self.fails:
                return [p.JobCreated(handle), p.WorkException(handle, json.dumps(FAILURE).encode())]
            case _:
                events = (
                    p.WorkWarning(handle, ALL.encode()),
                    p.WorkStatus(handle, b"nan", b"1e999"),
                    p.WorkData(handle, ALL.encode()),
                )
                return [p.JobCreated(handle), *events, p.WorkComplete(handle, ALL.encode())]

    def reserved(self, function: bytes, workload: bytes) -> bytes:
        asked: dict[str, Any] = from_json(workload)
        match function:
            case calls.INFO if asked:
                return evil_job().to_wire()
            case calls.INFO:
                return calls.ServerInfo(
                    version=ALL,
                    durable=True,
                    store=ALL,
                    functions=EVIL,
                    keep=1,
                    max_deaths=1,
                    jobs=1,
                    paused=EVIL,
                    closed=calls.Closed(since=calls.LATEST, reason=ALL),
                ).to_wire()
            case workers.WORKERS:
                names = tuple(name.decode(errors="replace") for name in NAMES)
                worker = workers.WorkerInfo(
                    client_id=ALL, address=ALL, functions=names, overdue=dict.fromkeys(names, 1)
                )
                return workers.Workers(workers=(worker,)).to_wire()
            case calls.DEAD if asked["action"] == "list":
                return calls.Letters(letters=(evil_job(), evil_job(ALL))).to_wire()
            case calls.DEAD if asked["action"] == "show":
                return calls.Letter(job=evil_job(), payload="", text=ALL).to_wire()
            case calls.REOPEN:
                return calls.Reopened(was_closed=True).to_wire()
            case calls.RESULT:
                return ALL.encode()
            case calls.SUBMIT:
                return calls.Submitted(handle=ALL).to_wire()
            case _:
                return calls.Done(jobs=1, left=1).to_wire()

    def table(self, line: bytes) -> bytes:
        if self.refuses:
            return b"ERR %b %b\r\n" % (EVIL[0].encode(), ALL.replace("\n", " ").encode())
        if line == b"status":
            return b"".join(b"%b\t2\t1\t1\n" % name.replace(b"\n", b"\\n") for name in NAMES) + b".\n"
        return b"OK %b\r\n" % EVIL[0].encode()


class _Talk(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server, frames = self.server, FrameBuffer(REQ)
        assert isinstance(server, EvilServer)
        with suppress(OSError, RemoteProtocolError):
            while data := self.request.recv(65536):
                for kind, body in frames.feed(data):
                    if kind == TEXT:
                        said = server.table(body)
                    else:
                        said = b"".join(map(encode_response, server.answer(decode(kind, body))))
                    self.request.sendall(said)


@pytest.fixture
def evil() -> Iterator[EvilServer]:
    with EvilServer(("127.0.0.1", 0), _Talk) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


COMMANDS: Final = [
    ["status"],
    ["status", "--wide"],
    ["status", "--json"],
    *(
        [command, name]
        for command in ("pause", "resume")
        for name in ("nothing", "x.nothing", EVIL[3], "a.b")
    ),
    *(["purge", "--yes", name] for name in ("nothing", "x.nothing", EVIL[0])),
    ["purge", "x.nothing"],
    ["submit", "nothing", "a=1"],
    ["submit", "resize", "a=1"],
    ["submit", "x.nothing", "a=1"],
    ["submit", EVIL[2], "a=1"],
    ["submit", "--raw", f"x.{FORGED}", "a"],
    ["submit", "--verbose", EVIL[4], "a=1"],
    ["submit", "--keep", "1h", EVIL[0], "a=1"],
    ["submit", "--bg", "x.nothing", "a=1"],
    ["submit", "--bg", "--keep", "1h", EVIL[0], "a=1"],
    ["result", "H:1"],
    ["result", "--verbose", EVIL[0]],
    ["job", "H:1"],
    ["job", "--json", "H:1"],
    ["job", "--unique", EVIL[0], EVIL[1]],
    ["cancel", "H:1"],
    ["cancel", f"H:{EVIL[4]}"],
    ["dead", "list"],
    ["dead", "list", "--wide"],
    ["dead", "list", "--json"],
    ["dead", "list", "--function", "nothing"],
    ["dead", "show", "H:1"],
    ["dead", "show", "--json", "H:1"],
    ["dead", "replay", EVIL[4]],
    ["dead", "replay", "--all"],
    ["dead", "replay", "--function", "nothing"],
    ["dead", "purge", "--yes", EVIL[4]],
    ["dead", "purge", "--yes", "--all"],
    ["dead", "purge", "--function", "x.nothing"],
    ["worker", "--check"],
    ["server", "reopen"],
]


def assert_harmless(said: bytes) -> None:
    """There is nothing in it but lines of printable characters."""
    text = said.decode()  # strictly
    assert [letter for letter in text if letter != "\n" and not letter.isprintable()] == []


def assert_ours(said: bytes) -> None:
    """The same, and no line that only looks like one of ours."""
    assert_harmless(said)
    assert not re.search(f"^{FORGED}", said.decode(), re.MULTILINE)


@pytest.mark.parametrize("behaviour", ["answers", "fails", "ERROR", "fault"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: ascii(" ".join(command)))
def test_no_command_prints_what_could_steer_the_terminal(
    evil: EvilServer, command: list[str], behaviour: str
) -> None:
    evil.fails = behaviour == "fails"
    evil.refuses = behaviour if behaviour in ("ERROR", "fault") else ""
    address = f"127.0.0.1:{evil.server_address[1]}"
    ended = CliRunner().invoke(app, [*command, "-s", address])
    # Results and partial output are bytes for another program, unless they go to a terminal.
    if command[0] not in ("submit", "result") or "--bg" in command:
        assert_harmless(ended.stdout_bytes)
    if "--verbose" in command:  # with a traceback, which has several lines
        assert_harmless(ended.stderr_bytes)
    else:
        assert_ours(ended.stderr_bytes)
    assert ended.exit_code != 70, ended.stderr
    if "--json" in command and ended.exit_code == 0:
        for text in ended.stdout_bytes.splitlines() if "list" in command else [ended.stdout_bytes]:
            from_json(text, allow_inf_nan=False)  # which takes no lone surrogates


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "job H:1",
        "dead list",
        "dead list --wide",
        "dead show H:1",
        "result H:1",
        "submit x.nothing a=1",
        "submit --raw x.nothing a",
    ],
)
def test_nothing_of_others_steers_a_real_terminal(
    evil: EvilServer, tmp_path: Path, terminal: tuple[int, int], command: str
) -> None:
    ours, theirs = terminal
    ended = subprocess.run(
        [*COMMAND, *command.split(), "-s", f"127.0.0.1:{evil.server_address[1]}"],
        env={**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
        check=False,
        cwd=tmp_path,
    )
    said = said_on(ours, theirs)
    assert ended.returncode == 0, ended.stderr
    assert said
    assert_harmless(said.replace(b"\r\n", b"\n"))
    assert_ours(ended.stderr)


@pytest.mark.usefixtures("loggers_as_before")
@pytest.mark.parametrize("name", [*EVIL, "caf\udcff"])
def test_the_log_cannot_steer_the_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.to_stderr("info")
    logging.getLogger("gearflow.worker").warning("the server refused %s", name, extra={"handle": name})
    assert_ours(capsys.readouterr().err.encode())
