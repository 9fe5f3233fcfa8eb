"""A worker process as its supervisor sees it, which does what its arguments say, one after the other."""

import json
import os
import signal
import socket
import sys
from pathlib import Path


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
            case "once":  # die, but only the first time
                if not Path(rest).exists():
                    Path(rest).touch()
                    os.kill(os.getpid(), signal.SIGSEGV)
            case "pid":
                with Path(rest).open("a") as file:
                    file.write(f"{os.getpid()}\n")
            case "fork":  # something that outlives this process, and has its end of the line
                if os.fork() == 0:
                    signal.pause()
            case "stay":
                while True:
                    signal.pause()
            case _:
                raise ValueError(deed)


main(*sys.argv[1:])
