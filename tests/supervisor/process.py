"""A worker process as its supervisor sees it, which does what its arguments say, one after the other."""

import json
import os
import signal
import socket
import sys
from pathlib import Path


def answer(end: socket.socket, count: Path) -> None:
    """Do as a process whose event loop runs, and write down how often."""
    while end.recv(1000):
        end.sendall(b'{"is": "pong"}\n')
        with count.open("a") as file:
            file.write("1\n")


def crash_once(mark: Path) -> None:
    """Die, but only the first time."""
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGSEGV)


def stay() -> None:
    """For ever."""
    while True:
        signal.pause()


def main(*deeds: str) -> None:
    end = socket.socket(fileno=int(os.environ["GEARFLOW_SUPERVISOR_FD"]))
    for deed in deeds:
        word, _, rest = deed.partition("=")
        match word:
            case "say":
                end.sendall(f"{rest}\n".encode())
            case "ready":
                end.sendall(json.dumps({"is": "ready", "notice": rest}).encode() + b"\n")
            case "exit":
                end.close()
                os._exit(int(rest))
            case "once":
                crash_once(Path(rest))
            case "pid":
                with Path(rest).open("a") as file:
                    file.write(f"{os.getpid()}\n")
            case "fork":  # something that outlives this process, and has its end of the line
                if os.fork() == 0:
                    signal.pause()
            case "answer":
                answer(end, Path(rest))
            case "stay":
                while True:
                    signal.pause()
            case _:
                raise ValueError(deed)


main(*sys.argv[1:])
