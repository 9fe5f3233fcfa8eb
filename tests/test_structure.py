"""The house: no module grows too long, a class name has one meaning, and the folders are as documented."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import ROOT

PACKAGES: Final = (ROOT / "gearflow", ROOT / "cli" / "gearflow_cli")
MODULES: Final = sorted(module for package in PACKAGES for module in package.rglob("*.py"))

LONGEST: Final = 600
"""Lines of a module: it should be read in one sitting."""

FEW: Final = {50: 9, 80: 40}
"""By a number of lines: so many modules may have fewer, the packages' ``__init__`` apart."""


def lines(module: Path) -> int:
    return module.read_text().count("\n")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_a_module_can_be_read_in_one_sitting(module: Path) -> None:
    assert lines(module) <= LONGEST


@pytest.mark.parametrize(("short", "few"), FEW.items())
def test_few_modules_are_crumbs(short: int, few: int) -> None:
    names = [str(module.relative_to(ROOT)) for module in MODULES if lines(module) < short]
    crumbs = [module for module in names if not module.endswith(("__init__.py", "__main__.py"))]
    assert len(crumbs) <= few, crumbs


def public_classes() -> Iterator[tuple[str, str]]:
    for module in MODULES:
        for node in ast.parse(module.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield node.name, str(module.relative_to(ROOT))


def test_a_class_name_has_one_meaning() -> None:
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for name, module in public_classes():
        homes[name].append(module)
    assert not {name: modules for name, modules in homes.items() if len(modules) > 1}


DOCUMENTED: Final = {
    "gearflow.client.operate",  # loads pydantic, which a client alone does not need
    "gearflow.protocol.admin",
    "gearflow.protocol.envelope",
    "gearflow.protocol.jobs",
    "gearflow.protocol.packets",
    "gearflow.protocol.server_calls",
    "gearflow.testing.peer",
}
"""Modules that the reference names as such. All other public names are in a package's ``__init__``."""


@pytest.mark.parametrize(
    "page",
    sorted(
        [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.py")],
    ),
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_users_import_public_names_from_packages(page: Path) -> None:
    modules = set(re.findall(r"^\s*(?:from|import) (gearflow\.\w+\.[\w.]+)", page.read_text(), re.MULTILINE))
    assert modules <= DOCUMENTED
