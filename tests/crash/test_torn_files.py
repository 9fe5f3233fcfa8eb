"""Files are cut, or bytes in them flipped, while no server runs: all is there, or it is said what to do."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from gearflow.errors import StoreError
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls
from gearflow.server.settings import FILE_NAME
from gearflow.stores import Recovered, recover
from tests.cli.shell import Shell
from tests.crash.nest import Nest, NotStarted, Server
from tests.server.wire import Wire

_LOG: Final = f"{FILE_NAME}-wal"
_SIZES: Final = (0, 10, 2_000, 70_000)
_COUNT: Final = 40  # of jobs that wait, of results, and of dead letters
_REMEDY: Final = re.compile(
    r"--recover|put a copy of it back|remove \S+-lock|name another file|move this one away"
)


class Left(NamedTuple):
    """What a server left behind."""

    directory: Path
    waiting: dict[bytes, bytes]  # by handle: the payload
    results: dict[bytes, tuple[str, bytes]]  # by handle: how it ended, and with what

    @property
    def log(self) -> Path:
        return self.directory / _LOG


def leave(nest: Nest, directory: Path, how: signal.Signals) -> Left:
    """Have a server live a while, and end it so."""
    server = nest.start(directory / "data")
    chance = random.Random(how)
    results: dict[bytes, tuple[str, bytes]] = {}
    with Wire(server.port) as client, Wire(server.port) as worker:
        worker.send(p.CanDo(b"now"))
        payloads = [chance.randbytes(chance.choice(_SIZES)) for _ in range(_COUNT)]
        client.send(*(p.SubmitJobBg(b"later", b"", payload) for payload in payloads))
        waiting = {client.handle(): payload for payload in payloads}
        client.send(*(p.SubmitJobBg(b"now", b"", payload) for payload in 2 * payloads))
        handles = [client.handle() for _ in 2 * payloads]
        for number, handle in enumerate(handles):
            worker.send(p.GrabJob())
            assert isinstance(assigned := worker.receive(), p.JobAssign)
            assert assigned.handle == handle
            body = chance.randbytes(chance.choice(_SIZES))
            if number % 2:
                results[handle] = "completed", body
                worker.send(p.WorkComplete(handle, body))
            else:
                results[handle] = "raised", body
                worker.send(p.WorkException(handle, body))
        worker.sync()
        for handle in handles:
            assert asked(client, handle)[0] != "refused"
    if how == signal.SIGKILL:
        server.kill()
    else:
        server.stop()
    return Left(directory / "data", waiting, results)


@pytest.fixture(scope="module")
def stopped(nest: Nest, tmp_path_factory: pytest.TempPathFactory) -> Left:
    return leave(nest, tmp_path_factory.mktemp("stopped"), signal.SIGTERM)


@pytest.fixture(scope="module")
def killed(nest: Nest, tmp_path_factory: pytest.TempPathFactory) -> Left:
    return leave(nest, tmp_path_factory.mktemp("killed"), signal.SIGKILL)


@pytest.fixture(params=["stopped", "killed"])
def left(request: pytest.FixtureRequest) -> Left:
    left: Left = request.getfixturevalue(request.param)
    return left


def asked(client: Wire, handle: bytes) -> tuple[str, bytes]:
    """How a job ended, and with what; or why that is unknown."""
    request = server_calls.ResultRequest(handle=handle.decode())
    client.send(p.OptionReq(b"exceptions"), p.SubmitJob(server_calls.RESULT, b"", request.to_wire()))
    assert isinstance(client.receive(), p.OptionRes)
    client.handle()
    match client.receive():
        case p.WorkComplete(_, result):
            return "completed", result
        case p.WorkException(_, data):
            return ("refused" if data.startswith(b'{"type":"gearflow:') else "raised"), data
        case answer:
            assert isinstance(answer, p.WorkFail), answer
            return "failed", b""


# ------------------------------------------------------------------------------------------------- damage


def cut(path: Path, chance: random.Random) -> None:
    rest = chance.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.truncate(rest)


def flip(path: Path, chance: random.Random) -> None:
    with path.open("r+b") as file:
        for _ in range(chance.choice((1, 1, 8))):
            place = chance.randrange(path.stat().st_size)
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 1 << chance.randrange(8)]))


Damage = Callable[[Path, random.Random], None]


def damaged(left: Left, directory: Path, name: str, damage: Damage, seed: int) -> Path:
    """A copy, one of whose files is damaged."""
    data = shutil.copytree(left.directory, directory / f"{name}-{seed}")
    damage(data / name, random.Random(f"{name}-{seed}"))
    return data


def check(nest: Nest, left: Left, data: Path) -> bool:
    """Whether the damage is noticed; in any case nothing is lost without a word."""
    try:
        server = nest.start(data)
    except NotStarted as error:
        message = str(error)
        assert str(data / FILE_NAME) in message, message
        assert _REMEDY.search(message), message
        rescue(nest, left, data)
        return True
    whole = look_at_all(server, left)
    server.kill()
    return not whole


def look_at_all(server: Server, left: Left) -> bool:
    """All that was left is there, or said to be damaged when it is asked for; whether all is there."""
    whole = True
    with Wire(server.port) as worker, Wire(server.port) as client:
        got = worker.grab_all(b"later")
        for handle, payload in left.waiting.items():
            if handle in got:
                assert got[handle] == payload, f"job {handle!r} is not what was submitted"
            else:
                how, what = asked(client, handle)
                assert how == "raised", f"job {handle!r} is gone: {what!r}"
                assert json.loads(what)["type"] == "StoreError", what
                whole = False
        assert got.keys() <= left.waiting.keys()
        for handle, result in left.results.items():
            answered = asked(client, handle)
            if answered != result:
                assert answered[0] == "refused", (handle, answered)
                assert json.loads(answered[1])["type"] == "gearflow:store", (handle, answered)
                whole = False
    return whole


def rescue(nest: Nest, left: Left, data: Path) -> None:
    """What can be read is kept, and it is said how much that is; a server serves that, and nothing else."""
    try:
        saved = recover(data / FILE_NAME)
    except StoreError as error:
        hopeless = str(error)
    else:
        hopeless = ""
        look_at_the_rest(nest, left, data, saved)
    assert not hopeless or _REMEDY.search(hopeless), hopeless


def look_at_the_rest(nest: Nest, left: Left, data: Path, saved: Recovered) -> None:
    letters = sum(how == "raised" for how, _ in left.results.values())
    if saved.lost_jobs is not None and not saved.lost_groups:
        assert saved.kept_jobs + saved.lost_jobs == len(left.waiting) + letters
    if saved.lost_records is not None and not saved.lost_groups:
        assert saved.kept_records + saved.lost_records == len(left.results)
    server = nest.start(data)
    with Wire(server.port) as worker, Wire(server.port) as client:
        got = worker.grab_all(b"later")
        if not saved.same_name:
            assert set(got.values()) <= set(left.waiting.values())
        elif not saved.lost_groups:
            assert got.items() <= left.waiting.items()
        client.send(p.SubmitJob(b"later", b"", b""))
        assert client.handle() not in left.waiting.keys() | left.results.keys()
        if saved.same_name and not saved.lost_groups:
            answered = {handle: asked(client, handle) for handle in left.results}
            right = sum(answered[handle] == result for handle, result in left.results.items())
            wrong = [answer for handle, answer in answered.items() if answer != left.results[handle]]
            assert all(how in ("refused", "failed") for how, _ in wrong), (
                wrong
            )  # failed: a letter without its end
            assert right <= saved.kept_records
    server.kill()


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_file_is_noticed_or_does_no_harm(
    nest: Nest, left: Left, tmp_path: Path, damage: Damage
) -> None:
    noticed = [check(nest, left, damaged(left, tmp_path, FILE_NAME, damage, seed)) for seed in range(8)]
    in_the_log = (
        left.log.exists()
    )  # where all pages are that were written, so that those in the file do not count
    assert sum(noticed) > 3 or in_the_log


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_log_is_noticed_or_does_no_harm(
    nest: Nest, killed: Left, tmp_path: Path, damage: Damage
) -> None:
    noticed = [check(nest, killed, damaged(killed, tmp_path, _LOG, damage, seed)) for seed in range(8)]
    assert sum(noticed) > 3


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("damage", [cut, flip])
def test_the_same_hundreds_of_times(
    nest: Nest, stopped: Left, killed: Left, tmp_path: Path, damage: Damage
) -> None:
    for left, name in ((stopped, FILE_NAME), (killed, FILE_NAME), (killed, _LOG)):
        for seed in range(1000, 1200):
            data = damaged(left, tmp_path, name, damage, seed)
            check(nest, left, data)
            shutil.rmtree(data)


def test_a_killed_server_left_a_log(killed: Left) -> None:
    assert killed.log.stat().st_size > 500_000


def test_a_removed_log_is_refused(nest: Nest, killed: Left, tmp_path: Path) -> None:
    data = shutil.copytree(killed.directory, tmp_path / "data")
    (data / _LOG).unlink()
    assert check(nest, killed, data)


def test_the_command_recovers_what_is_readable_says_how_much_and_serves_it(
    stopped: Left, tmp_path: Path
) -> None:
    data = shutil.copytree(stopped.directory, tmp_path / "data")
    with (data / FILE_NAME).open("r+b") as file:
        file.truncate(file.seek(0, 2) // 8)
    shell = Shell(tmp_path)
    refused = shell.run("server", "-p", "0", "--data", "data")
    assert refused.returncode != 0
    assert f"{data / FILE_NAME} is damaged" in refused.stderr.decode()
    assert "gearflow server --recover" in refused.stderr.decode()
    with shell.start("server", "-p", "0", "--data", "data", "--recover") as server:
        said = server.until("listens on")
        found = re.search(r"listens on \S+:(\d+);.* (\d+) jobs? waited", said)
        assert found is not None, said
        with Wire(int(found[1])) as worker:
            got = worker.grab_all(b"later")
        assert got.items() < stopped.waiting.items()
        assert len(got) == int(found[2])
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0
