"""Which directories are watched for new code, and what is said where that cannot be done."""

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gearflow_cli.errors import CliError
from gearflow_cli.process.reload import changes, directories
from tests.cli.shell import Shell


def test_the_current_directory_is_watched_and_packages_that_are_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    (here / "inside_here").mkdir(parents=True)
    (here / "inside_here" / "__init__.py").touch()
    (elsewhere / "outside_here").mkdir(parents=True)
    (elsewhere / "outside_here" / "__init__.py").write_text("raise AssertionError('this was imported')")
    monkeypatch.chdir(here)
    monkeypatch.setattr("sys.path", [str(elsewhere), *sys.path])
    found = directories(["inside_here.tasks", "outside_here.tasks", "no_such_module"])
    assert found == [here, elsewhere / "outside_here"]


async def test_files_that_cannot_be_watched_do_not_end_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(_modules: Sequence[str]) -> list[Path]:
        return [tmp_path / "gone"]

    monkeypatch.setattr("gearflow_cli.process.reload.directories", gone)
    assert [change async for change in changes(["any"])] == []
    assert "send HUP to load new code" in capsys.readouterr().err


@pytest.fixture
def without(own: Shell, tmp_path: Path) -> Shell:
    """A shell in whose Python watchfiles is not installed."""
    (tmp_path / "watchfiles.py").write_text("raise ImportError")
    return Shell(own.directory, {**own.environment, "PYTHONPATH": str(tmp_path)})


def test_without_the_extra_reload_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(CliError, match=re.escape("pip install '.[reload]'")) as caught:
        changes(["any"])
    assert caught.value.code == 78


def test_without_the_extra_dev_says_so_and_goes_on(without: Shell, module: str) -> None:
    with without.start("dev", module, "-p", "0") as dev:
        dev.until("pip install '.[reload]'")
        dev.until("registered with a server")
        dev.signal(signal.SIGINT)
        assert dev.end()[0] == 0
