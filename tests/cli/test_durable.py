"""``gearflow server --data``: what a killed server leaves to the next one, and its file."""

import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from gearflow.broker.storage import Setting
from gearflow.client import SyncClient
from gearflow.client.operate import server_info
from gearflow.stores import SqliteStore
from gearflow_cli.commands.server import recover_folder
from tests.cli.shell import Running, Shell, outcome
from tests.cli.test_jobs import until_connected

FILE: Final = "gearflow.db"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


@pytest.fixture
def here(project: Path) -> Shell:
    return Shell(project)


def begin(server: Running, file: Path, jobs: int) -> str:
    """The address of a server that has found so many jobs in a file."""
    pattern = r"listens on (\S+); jobs live in (\S+), where ([\d,]+) jobs? waited; sync: batch$"
    found = re.search(pattern, _first(server))
    assert found is not None
    assert (found[2], found[3]) == (str(file), f"{jobs:,}")
    return found[1]


def _first(server: Running) -> str:
    return server.until("listens on").rstrip()


def kill(server: Running) -> None:
    server.signal(signal.SIGKILL)
    server.process.wait(timeout=30)


def shout(shell: Shell, module: str, address: str, text: str) -> str:
    """The handle of a background job."""
    ended = shell.run("submit", "-m", module, "--bg", "-s", address, "shout", text)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.decode().strip()


def test_jobs_survive_a_killed_server_and_results_the_next_one(here: Shell, module: str, data: Path) -> None:
    with here.start("server", "-p", "0", "--data", str(data)) as server:
        address = begin(server, data / FILE, 0)
        handles = [shout(here, module, address, f"text {n}") for n in range(3)]
        kill(server)
    with here.start("server", "-p", "0", "--data", str(data)) as server:
        address = begin(server, data / FILE, 3)
        with here.start("worker", module, "-s", address) as worker:
            worker.until("registered")
            for n, handle in enumerate(handles):
                assert outcome(here.run("result", handle, "-s", address)) == (0, f"TEXT {n}\n", "")
        kill(server)
    with here.start("server", "-p", "0", "--data", str(data)) as server:
        address = begin(server, data / FILE, 0)
        assert outcome(here.run("result", handles[1], "-s", address)) == (0, "TEXT 1\n", "")


def test_a_server_that_is_told_to_end_leaves_the_file_whole(here: Shell, data: Path) -> None:
    with here.start("server", "-p", "0", "--data", str(data)) as server:
        with SyncClient([begin(server, data / FILE, 0)]) as client:
            client.submit_background("img.resize", b"cat.png")
        server.signal(signal.SIGTERM)
        assert server.end() == (0, "")
    left = data / f"{FILE}-wal"
    assert not left.exists() or not left.stat().st_size  # all is in the one file
    with here.start("server", "-p", "0", "--data", str(data)) as server:
        begin(server, data / FILE, 1)


def test_a_wait_for_a_result_outlives_the_server(here: Shell, module: str, data: Path) -> None:
    with here.start("server", "-p", "0", "--data", str(data)) as server:
        address = begin(server, data / FILE, 0)
        handle = shout(here, module, address, "x")
        # The kill may come before the question is asked; a server that has never answered is waited for only
        # where there is a limit.
        with here.start("result", handle, "--timeout", "60", "-s", address) as waiting:
            until_connected(waiting, address)
            kill(server)
            with here.start("server", "-p", address.rpartition(":")[2], "--data", str(data)) as again:
                begin(again, data / FILE, 1)
                with here.start("worker", module, "-s", address) as worker:
                    worker.until("registered")
                    assert waiting.output() == "X", waiting.end()
                    assert waiting.end()[0] == 0


def test_each_port_has_its_folder_in_the_users_data_directory(
    here: Shell, tmp_path: Path, free_ports: tuple[int, int]
) -> None:
    first, second = free_ports
    home = {"XDG_DATA_HOME": str(tmp_path)}
    with here.start("server", "-p", str(first), **home) as one:
        begin(one, tmp_path / "gearflow" / str(first) / FILE, 0)
        with here.start("server", "-p", str(second), **home) as two:
            begin(two, tmp_path / "gearflow" / str(second) / FILE, 0)
    relative = {"XDG_DATA_HOME": "here", "HOME": str(tmp_path)}  # which the specification forbids
    with here.start("server", "-p", str(first), **relative) as one:
        begin(one, tmp_path / ".local" / "share" / "gearflow" / str(first) / FILE, 0)


def test_the_command_line_has_its_way_against_the_environment(here: Shell, data: Path) -> None:
    with here.start("server", "-p", "0", GEARFLOW_DATA=str(data)) as server:
        begin(server, data / FILE, 0)
    with here.start("server", "-p", "0", "--memory", GEARFLOW_DATA=str(data)) as server:
        assert "jobs live in memory only" in server.until("listens on")
    with here.start("server", "-p", "0", "--data", str(data), GEARFLOW_MEMORY="1") as server:
        begin(server, data / FILE, 0)


def test_the_settings_reach_the_server(here: Shell, data: Path) -> None:
    keep = ["--keep", "2h", "--keep-dead", "3d", "--keep-bytes", "1M"]
    options = ["--data", str(data), "--sync", "always", "--max-deaths", "0", *keep]
    with here.start("server", "-p", "0", *options) as server:
        line = _first(server)
        assert line.endswith("sync: always")
        found = re.search(r"listens on (\S+);", line)
        assert found is not None
        with SyncClient([found[1]]) as client:
            info = client.run(server_info)
    assert (info.keep, info.max_deaths, info.durable) == (7200.0, None, True)


# ------------------------------------------------------------------------------ files that cannot be used


def test_a_second_server_on_one_file_is_78_and_says_who_has_it(here: Shell, data: Path) -> None:
    with here.start("server", "-p", "0", "--data", str(data)) as server:
        begin(server, data / FILE, 0)
        code, _, stderr = outcome(here.run("server", "-p", "0", "--data", str(data)))
        assert code == 78
        assert f"{data / FILE} is in use by process {server.process.pid}" in stderr
        code, _, stderr = outcome(here.run("server", "-p", "0", "--data", str(data), "--recover"))
        assert code == 78
        assert f"in use by process {server.process.pid}" in stderr


def test_a_folder_that_cannot_be_made_is_78(here: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, stderr = outcome(here.run("server", "-p", "0", "--data", str(tmp_path / "file" / "jobs")))
    assert code == 78
    assert "name another with --data" in stderr


def test_a_damaged_file_is_78_until_it_is_recovered(here: Shell, module: str, data: Path) -> None:
    with here.start("server", "-p", "0", "--data", str(data)) as server:
        with SyncClient([begin(server, data / FILE, 0)]) as client:
            handle = client.submit_background(f"{module}.shout", b"hello").handle
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0
    with (data / FILE).open("r+b") as file:
        file.write(b"not what was there")
    code, _, stderr = outcome(here.run("server", "-p", "0", "--data", str(data)))
    assert code == 78
    assert f"{data / FILE} is damaged" in stderr
    assert f"gearflow server --recover --data {data}'" in stderr
    with here.start("server", "-p", "0", "--data", str(data), "--recover") as server:
        said = server.until("recovered")
        assert "recovered all of 1 job and all of 0 results" in said
        moved = re.search(r"the damaged file is (\S+) now", said)
        assert moved is not None
        assert Path(moved[1]).read_bytes().startswith(b"not what was there")
        address = begin(server, data / FILE, 1)
        with here.start("worker", module, "-s", address) as worker:
            worker.until("registered")
            assert outcome(here.run("result", handle, "-s", address)) == (0, "HELLO\n", "")


def test_a_recovery_names_the_settings_that_are_lost(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data.mkdir(parents=True, exist_ok=True)
    store = SqliteStore(data / FILE)
    store.load()
    store.write([Setting(name, "limit", b"1") for name in (b"shopify", b"stripe", b"mail")])
    store.close()
    with closing(sqlite3.connect(data / FILE, isolation_level=None)) as connection:
        connection.execute("UPDATE settings SET value = '2' WHERE name = 'shopify'")
        connection.execute("DELETE FROM settings WHERE name = 'mail'")
    recover_folder(data)
    said = capfd.readouterr().err
    assert "the setting limit shopify is not what was written, and is lost: set it again" in said
    assert "1 more setting could not be found" in said


def test_there_has_to_be_a_file_to_recover(here: Shell, data: Path) -> None:
    code, _, stderr = outcome(here.run("server", "-p", "0", "--data", str(data), "--recover"))
    assert code == 78
    assert f"there is no file {data / FILE} to recover" in stderr


# ------------------------------------------------------------------------------------------------ backup


def test_a_copy_is_taken_while_the_server_runs_and_a_server_can_start_from_it(
    here: Shell, data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "other" / FILE
    copy.parent.mkdir()
    with (
        here.start("server", "-p", "0", "--data", str(data)) as server,
        SyncClient([begin(server, data / FILE, 0)]) as client,
    ):
        client.submit_background("img.resize", b"cat.png")
        ended = here.run("server", "backup", str(copy), "--data", str(data))
        assert ended.returncode == 0, ended.stderr
        assert f"copied to {copy}: {copy.stat().st_size:,} bytes" in ended.stdout.decode()
        client.submit_background("img.resize", b"dog.png")  # it goes on
    with here.start("server", "-p", "0", "--data", str(copy.parent)) as server:
        begin(server, copy, 1)


def test_options_of_the_server_hold_for_its_backup_too(here: Shell, data: Path, tmp_path: Path) -> None:
    with here.start("server", "-p", "0", "--data", str(data)) as server:
        begin(server, data / FILE, 0)
    assert here.run("server", "--data", str(data), "backup", str(tmp_path / "copy")).returncode == 0
    (tmp_path / "gearflow").mkdir()
    data.rename(tmp_path / "gearflow" / "4999")
    for arguments in (["-p", "4999", "backup", "one"], ["backup", "-p", "4999", "two"]):
        copy = str(tmp_path / arguments.pop())
        ended = here.run("server", *arguments, copy, XDG_DATA_HOME=str(tmp_path))
        assert ended.returncode == 0, ended.stderr


def test_a_copy_does_not_overwrite_anything(here: Shell, data: Path, tmp_path: Path) -> None:
    with here.start("server", "-p", "0", "--data", str(data)) as server:
        begin(server, data / FILE, 0)
        (tmp_path / "copy").write_text("precious")
        code, _, stderr = outcome(here.run("server", "backup", str(tmp_path / "copy"), "--data", str(data)))
    assert code == 78
    assert "is there already" in stderr
    assert (tmp_path / "copy").read_text() == "precious"


def test_without_the_folder_a_copy_names_the_option(here: Shell, data: Path, tmp_path: Path) -> None:
    with here.start("server", "-p", "0", "--data", str(data)) as server:
        port = begin(server, data / FILE, 0).rpartition(":")[2]
        command = ("server", "backup", "-p", port, str(tmp_path / "copy"))
        code, _, stderr = outcome(here.run(*command, XDG_DATA_HOME=str(tmp_path)))
    assert code == 78
    assert f"there is no file {tmp_path / 'gearflow' / port / FILE}" in stderr
    assert "--data DIR" in stderr


def test_a_server_that_never_was_cannot_be_copied(here: Shell, data: Path, tmp_path: Path) -> None:
    code, _, stderr = outcome(here.run("server", "backup", str(tmp_path / "copy"), "--data", str(data)))
    assert code == 78
    assert f"there is no file {data / FILE}" in stderr
