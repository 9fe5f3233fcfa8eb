"""The optional build: ``GEARFLOW_COMPILE=1 pip install .`` compiles the hot, pure parts with mypyc.

The same source, up to 1.9 times as fast where packets come in batches; docs/explanation/performance.md has
the figures. It needs a C compiler. Without the variable, the wheel is pure Python.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# pip loads this before it looks for the dependencies, and shows what it says.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        f"gearflow needs Python 3.11 or later, and this is {sys.version.split()[0]}. Install a later one,\n"
        "and write its name in place of python3 where you make the virtual environment: python3.11 -m venv"
    )

COMPILED = {
    "protocol": "codec envelope framing",
    "worker": "batch_slots session slots",
    "broker": """
        broker buckets core counts dispatch endings function_table functions handles job job_lines
        journal lifecycle limited_queue limiter limits outgoing parser parts policies serialization
        session streams submission suspects timers turns watching
    """,
}
"""By package: the modules that are compiled. None of them has a coroutine, because one of mypyc's cannot be
cancelled without a warning. None has a class from which a module outside derives one, and none compares
tuples with ``is``, because a tuple has no identity there."""

SETUP = """
from mypyc.build import mypycify
from setuptools import setup

options = ["--config-file=", "--follow-imports=silent"]
modules = mypycify([*options, *{paths}], opt_level="3", debug_level="0", group_name="gearflow.compiled")
setup(name="compiled", packages=[], ext_modules=modules, script_args=["build_ext", "--inplace", "--quiet"])
"""


class CompiledModules(BuildHookInterface[Any]):
    """Compiles in a copy of the sources, and puts the extension modules into the wheel."""

    def _wanted(self) -> bool:
        return os.environ.get("GEARFLOW_COMPILE") == "1" and self.target_name == "wheel"

    def dependencies(self) -> list[str]:
        return ["mypy>=1.14", "pydantic>=2.13", "setuptools>=70"] if self._wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or not self._wanted():
            return
        self._copy = Path(mkdtemp())
        shutil.copytree(Path(self.root) / "gearflow", self._copy / "gearflow")
        paths = [
            f"gearflow/{package}/{module}.py"
            for package, modules in COMPILED.items()
            for module in modules.split()
        ]
        subprocess.run([sys.executable, "-c", SETUP.format(paths=paths)], cwd=self._copy, check=True)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for built in (self._copy / "gearflow").rglob("*.so"):
            build_data["force_include"][str(built)] = str(built.relative_to(self._copy))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_copy"):
            shutil.rmtree(self._copy)
