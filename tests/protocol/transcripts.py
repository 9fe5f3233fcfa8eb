"""Conversations with a job server, and what gearmand answered: they are in ``transcripts.txt``.

    python -m tests.protocol.transcripts     play them to gearmand, and write its answers into the file

The steps are written by hand, the answers (``<``) by this command. Each conversation has a server of its own.
A step is the name of a connection and what it does:

    client SUBMIT_JOB f u payload    a packet and its arguments. Two in one write are joined by `` & ``
    admin text status                a line of text, ended by LF unless it ends in ``\\r\\n`` or so
    client raw \\0REQ                 bytes as they are
    client part \\0REQ                the same, but the server waits for more, so it is not asked yet
    worker waits                     until something comes
    client closes                    it leaves. ``resets`` is ruder, ``shuts`` shuts the sending side down

Arguments that are empty or have blanks are quoted. Escapes are Python's, ``x*500`` repeats, and ``@1`` is the
handle of the first job. A connection is opened when it is first named. After each step, all connections ask
for an echo. What comes before the echo is the answer, so nothing is a matter of time.

Where gearflow differs, ``~`` names the row of docs/reference/gearmand-differences.md, and has its answers.
"""

import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from gearflow.protocol.constants import PacketType
from tests.conftest import run_gearmand

FILE: Final = Path(__file__).with_name("transcripts.txt")
PATIENCE: Final = 20.0  # seconds for what must come

_RECORDED: Final = "# The answers are those of"
_ECHO: Final = b"that is all"
_CONTROL: Final = b"controls"
_HANDLE: Final = re.compile(rb"H:[\w.:-]+:\d+")
_WORD: Final = re.compile(r"'([^']*)'|(\S+)")
_NAMES: Final = {kind.value: kind.name for kind in PacketType}
_REPEATED: Final = re.compile(r"(.+)\*(\d+)")


@dataclass
class Step:
    """What a connection does, the answers to it, and gearflow's answers where they differ."""

    line: str
    answers: list[str] = field(default_factory=list[str])
    difference: str = ""
    ours: list[str] = field(default_factory=list[str])

    @property
    def expected(self) -> list[str]:
        """gearflow's answers."""
        return self.ours if self.difference else self.answers


@dataclass
class Conversation:
    """Steps under a title. ``notes`` are the lines above the title."""

    title: str
    notes: list[str]
    steps: list[Step] = field(default_factory=list[Step])


def read(text: str) -> list[Conversation]:
    """The conversations of a file."""
    found: list[Conversation] = []
    notes: list[str] = []
    for line in text.splitlines():
        if line.startswith("== "):
            found.append(Conversation(line[3:], notes))
            notes = []
        elif line.startswith("    ~ ") and " < " in line:
            found[-1].steps[-1].ours.append(line[6:])
        elif line.startswith("    ~ "):
            found[-1].steps[-1].difference = line[6:]
        elif line.startswith("    "):
            found[-1].steps[-1].answers.append(line[4:])
        elif line and not line.startswith("#"):
            found[-1].steps.append(Step(line))
        elif line and not line.startswith(_RECORDED):
            notes.append(line)
    return found


def write(conversations: Iterable[Conversation], server: str) -> str:
    """The file of these conversations, with the answers of this server."""
    lines = [f"{_RECORDED} {server}", ""]
    for each in conversations:
        lines += [*each.notes, *[""] * bool(each.notes), f"== {each.title}"]
        for step in each.steps:
            lines += [step.line, *(f"    {answer}" for answer in step.answers)]
            lines += [f"    ~ {line}" for line in [step.difference, *step.ours] if line]
        lines.append("")
    return "\n".join(lines)


class Player:
    """Plays a conversation to a server. Owns the connections."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._connections: dict[str, Connection] = {}
        self._handles: list[bytes] = []
        self._control = Connection(address)
        self._control.send(packet(PacketType.SET_CLIENT_ID, _CONTROL))

    def close(self) -> None:
        for each in (self._control, *self._connections.values()):
            each.close()

    def play(self, line: str) -> list[str]:
        """Do one step: what each connection is answered, a line for each answer."""
        name, _, action = line.partition(" ")
        connection = self._connections.get(name)
        if connection is None:
            try:
                connection = self._connections[name] = Connection(self._address)
            except OSError:
                return [f"{name} < (closed)"]
        answers: dict[str, list[str]] = {name: []}
        connection.is_partial = action.startswith("part ")
        if action in ("closes", "resets", "shuts"):
            del self._connections[name]
            connection.leave(action)
            self._wait_for_leaving()
            if action == "shuts":
                connection.close()
        elif action == "waits":
            answers[name] = self._shown(connection.some())
        else:
            connection.send(self._bytes(action))
        for other in dict.fromkeys([name, *self._connections]):
            if other in self._connections and not self._connections[other].is_partial:
                items = self._connections[other].until_echo()
                answers.setdefault(other, []).extend(self._shown(items))
                if self._connections[other].is_over:
                    self._connections.pop(other).close()
                    answers[other].append("(closed)")
        return [f"{name} < {answer}" for name, given in answers.items() for answer in given]

    def _wait_for_leaving(self) -> None:
        """The server has noticed that a connection is gone, when it no longer lists it."""
        expected = len(self._connections) + 1
        while True:
            self._control.send(b"workers\n")
            items = self._control.until_echo()
            if self._control.is_over or len(items) - 1 <= expected:
                return

    def _bytes(self, action: str) -> bytes:
        return b"".join(map(self._one, action.split(" & ")))

    def _one(self, action: str) -> bytes:
        word, _, rest = action.partition(" ")
        if word == "text":
            line = self._argument(rest)
            return line if line.endswith(b"\n") else line + b"\n"
        arguments = [self._argument(found[1] or found[2] or "") for found in _WORD.finditer(rest)]
        if word in ("raw", "part"):
            return b"".join(arguments)
        return packet(PacketType[word], *arguments)

    def _argument(self, text: str) -> bytes:
        if repeated := _REPEATED.fullmatch(text):
            return self._argument(repeated[1]) * int(repeated[2])
        text = re.sub(r"@(\d+)", lambda found: self._handles[int(found[1]) - 1].decode(), text)
        return text.encode().decode("unicode_escape").encode("latin-1")

    def _shown(self, items: list[bytes]) -> list[str]:
        shown = [self._packet(item) if item[:1] == b"\0" else self._line(item) for item in items]
        shown = [line for line in shown if _CONTROL.decode() not in line]
        is_table = shown[-1:] == [r"text .\n"]
        return [*sorted(shown[:-1]), shown[-1]] if is_table else shown  # a server lists in any order

    def _line(self, item: bytes) -> str:
        item = re.sub(rb"^\d+ 127\.0\.0\.1 ", b"FD IP ", item)
        item = re.sub(rb"^OK (gearflow-|)\d+\.\d+\.\S+", rb"OK \1VERSION", item)
        return f"text {self._text(re.sub(rb'^OK [0-9]+', b'OK PID', item))}"

    def _packet(self, item: bytes) -> str:
        magic, number = item[:4], struct.unpack(">I", item[4:8])[0]
        body = item[12:]
        arguments = [self._word(argument) for argument in body.split(b"\0")] if body else []
        name = _NAMES.get(number, f"type {number}")
        return " ".join([*[self._word(magic)] * (magic != b"\0RES"), name, *arguments])

    def _word(self, data: bytes) -> str:
        text = self._text(data)
        return f"'{text}'" if not text or " " in text else text

    def _text(self, data: bytes) -> str:
        if len(data) > 200:
            same = data[:1] * len(data) == data
            return (
                f"{data[:1].decode()}*{len(data)}"
                if same
                else f"({len(data)} bytes, {sha256(data).hexdigest()})"
            )
        text = _HANDLE.sub(self._handle, data)
        return text.decode("latin-1").encode("unicode_escape").decode()

    def _handle(self, found: re.Match[bytes]) -> bytes:
        if found[0] not in self._handles:
            self._handles.append(found[0])
        return b"@%d" % (self._handles.index(found[0]) + 1)


class Connection:
    """One connection to a server, by itself."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, timeout=PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self.is_over = False
        self.is_partial = False

    def send(self, data: bytes) -> None:
        with suppress(ConnectionError):  # the next read shows that it is over
            self._socket.sendall(data)

    def until_echo(self) -> list[bytes]:
        """What came before the answer to an echo, or before the end."""
        self.send(packet(PacketType.ECHO_REQ, _ECHO))
        echo = packet(PacketType.ECHO_RES, _ECHO, magic=b"\0RES")
        items: list[bytes] = []
        for item in self._items():
            if item == echo:
                break
            items.append(item)
        return items

    def some(self) -> list[bytes]:
        """The next thing that comes."""
        return [item for item in [next(self._items(), None)] if item is not None]

    def leave(self, how: str) -> None:
        if how == "resets":
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how == "shuts":
            self._socket.shutdown(socket.SHUT_WR)
        else:
            self.close()

    def close(self) -> None:
        self._socket.close()

    def _items(self) -> Iterator[bytes]:
        """Packets and lines, until the connection is over."""
        while True:
            while (end := self._end()) is None:
                try:
                    data = self._socket.recv(1 << 20)
                except ConnectionError:
                    data = b""
                if not data:
                    self.is_over = True
                    return
                self._received += data
            item, self._received = self._received[:end], self._received[end:]
            yield item

    def _end(self) -> int | None:
        """Where the first packet or line ends, if it is complete."""
        received = self._received
        if received[:1] != b"\0":
            return received.find(b"\n") + 1 or None
        if len(received) < 12:
            return None
        end = 12 + struct.unpack(">I", received[8:12])[0]
        return end if end <= len(received) else None


def packet(kind: PacketType, *arguments: bytes, magic: bytes = b"\0REQ") -> bytes:
    """A packet, made without gearflow's own codec."""
    body = b"\0".join(arguments)
    return magic + struct.pack(">II", kind, len(body)) + body


def played(conversation: Conversation, address: tuple[str, int]) -> Iterator[tuple[Step, list[str]]]:
    """Each step with the answers of the server at this address."""
    player = Player(address)
    try:
        for step in conversation.steps:
            yield step, player.play(step.line)
    finally:
        player.close()


def version(program: str) -> str:
    """The name and version of a gearmand."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return " ".join(said.split()[:2])


def gearmand_says(program: str, conversation: Conversation) -> list[list[str]]:
    """The answers of a gearmand that is started for it."""
    with tempfile.TemporaryDirectory() as folder, run_gearmand(program, Path(folder) / "log") as address:
        host, _, port = address.rpartition(":")
        return [answers for _, answers in played(conversation, (host, int(port)))]


def main() -> None:
    program = shutil.which("gearmand", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        sys.exit("gearmand is not installed (Debian: gearman-job-server)")
    conversations = read(FILE.read_text())
    for each in conversations:
        for step, answers in zip(each.steps, gearmand_says(program, each), strict=True):
            step.answers = answers
    FILE.write_text(write(conversations, version(program)))
    print(f"{len(conversations)} conversations with {version(program)}")


if __name__ == "__main__":
    main()
