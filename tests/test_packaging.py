"""What is built is what users are to get, and what README tells them to type is there to be typed."""

import ast
import importlib
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

import gearflow
from gearflow.protocol import framing
from tests.conftest import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
CI = (ROOT / ".ci" / "run").read_text()


def build(kind: str, source: Path, target: Path) -> Path:
    """A distribution of the sources, in a directory; ``kind`` is ``wheel`` or ``sdist``."""
    code = f"from hatchling.build import build_{kind}; print(build_{kind}({str(target)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_installs_the_two_packages_and_nothing_else(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "gearflow",
        "gearflow_cli",
        f"gearflow-{PROJECT['version']}.dist-info",
    }


def test_the_wheel_has_every_module_and_both_markers_of_types(wheel: Path) -> None:
    expected = {
        str(file.relative_to(base))
        for base, package in ((ROOT, "gearflow"), (ROOT / "cli", "gearflow_cli"))
        for file in (base / package).rglob("*")
        if file.suffix in (".py", ".html", ".css", ".js", ".svg") or file.name == "py.typed"
    }
    found = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == expected
    assert {"gearflow/py.typed", "gearflow_cli/py.typed"} <= found


def test_a_wheel_is_pure_unless_asked(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")


def test_the_modules_that_may_be_compiled_exist() -> None:
    (listed,) = re.findall(
        r"^COMPILED = ({.*?^})", (ROOT / "hatch_build.py").read_text(), re.MULTILINE | re.DOTALL
    )
    for package, modules in ast.literal_eval(listed).items():
        for module in modules.split():
            assert (ROOT / "gearflow" / package / f"{module}.py").is_file(), f"{package}/{module}"


def test_the_version_says_whether_the_hot_modules_are_compiled() -> None:
    command = [sys.executable, "-m", "gearflow_cli", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kind = "pure Python" if (framing.__file__ or "").endswith(".py") else "compiled"
    assert shown == f"gearflow {PROJECT['version']} ({kind})\n"


def test_the_wheel_says_how_it_may_be_used(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        text = archive.read(metadata).decode()
        assert any(name.endswith("/LICENSE") for name in archive.namelist())
    assert "License-Expression: BSD-3-Clause\n" in text
    assert "Requires-Python: >=3.11\n" in text
    assert README.strip() in text


def test_a_wheel_made_of_the_sdist_is_the_same(wheel: Path, tmp_path: Path) -> None:
    sdist = build("sdist", ROOT, tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    sources = tmp_path / sdist.name.removesuffix(".tar.gz")
    for file in (
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "examples/hello.py",
        "tests/conftest.py",
        "docs/README.md",
    ):
        assert (sources / file).is_file(), file
    again = build("wheel", sources, tmp_path / "again")
    assert sorted(ZipFile(again).namelist()) == sorted(ZipFile(wheel).namelist())


def test_every_public_name_can_be_imported() -> None:
    assert len(set(gearflow.__all__)) == len(gearflow.__all__)
    for name in gearflow.__all__:
        assert getattr(gearflow, name) is not None


@pytest.mark.parametrize("package", ["client", "server", "tasks", "testing", "worker"])
def test_every_public_name_of_a_package_can_be_imported(package: str) -> None:
    module = importlib.import_module(f"gearflow.{package}")
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None


def test_the_command_is_there() -> None:
    module, _, function = PROJECT["scripts"]["gearflow"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_changelog_has_the_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == PROJECT["version"]


# ----------------------------------------------------------------------------------- README and .ci/run


def shell_commands(page: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)


def test_readme_has_one_command_that_runs_the_main_example_and_one_that_runs_the_tests() -> None:
    run, check, *_ = shell_commands(README)
    assert "\n" not in run
    assert run.startswith("python3 -m venv ")
    assert "pip install" in run
    assert run.endswith("-m examples.wordcount")
    assert "\n" not in check
    assert "'.[test]'" in check
    assert "-m pytest" in check


def test_the_extras_that_are_told_of_exist() -> None:
    told = re.findall(r"\.\[([\w,]+)\]", README + (ROOT / "CONTRIBUTING.md").read_text() + CI)
    assert told
    assert {extra for extras in told for extra in extras.split(",")} <= PROJECT[
        "optional-dependencies"
    ].keys()


def test_ci_installs_the_programs_that_readme_names() -> None:
    (told,) = re.findall(r"`apt install ([\w -]+)`", README)
    (installed,) = re.findall(r"^interop=\"([\w -]+)\"$", CI, re.MULTILINE)
    assert installed == told
