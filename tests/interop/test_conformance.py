"""The bundled server answers as the golden transcripts of gearmand do, case by case.

The cases are scripts over raw sockets with their own waiting; they come with the conformance suite, not
with gearflow. Where gearflow differs on purpose, the difference is written down here, and in
docs/reference/gearmand-differences.md with its reason.
"""

import difflib
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

from tests.conftest import SHARED

DIFFERENCES: Final = {
    # A sleeper is woken for each job, not all of them.
    "all_sleepers_wake": ["-w2 < NOOP", "-w3 < NOOP"],
    # A job that nobody wants any more is gone at once, not when a worker next asks.
    "client_leaves_queued_job": [
        "-asker < STATUS_RES '<H1>' '1' '0' '0' '0'",
        "+asker < STATUS_RES '<H1>' '0' '0' '0' '0'",
    ],
    # Names of functions have a case everywhere else, too.
    "drop_function_ignores_case": [
        "-admin < text 'OK\\r\\n'",
        "+admin < text 'ERR function not found\\r\\n'",
        "+admin < text '<CamelCase>\\t0\\t0\\t0\\n'",
    ],
    # A delayed job fires by itself: the worker that sleeps is woken for it (and the case looks no further).
    "epoch_future": ["-worker < JOB_ASSIGN '<H1>' '<work>' 'x'", "+worker < NOOP"],
    # gearmand leaves a handle of 64 bytes without an answer.
    "status_handle_too_long": [
        "-client < (nothing)",
        f"+client < STATUS_RES '{'h' * 64}' '0' '0' '0' '0'",
    ],
}


def _load(directory: Path) -> ModuleType:
    """The suite as a module, its cases registered. Its directory may be read-only: nothing is cached."""
    for name in ("conformance", "cases_public"):  # the cases import the module by this name
        path = directory / f"{name}.py"
        sys.modules[name] = module = ModuleType(name)
        exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
    return sys.modules["conformance"]


PRESENT: Final = SHARED.is_dir()
SUITE: Final = _load(SHARED / "conformance") if PRESENT else ModuleType("conformance")
CASES: Final[list[str]] = [*SUITE.CASES] if PRESENT else []


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    """What gearmand said, case by case."""
    cases: dict[str, Any] = json.loads((shared / "conformance" / "golden_public.json").read_bytes())
    return cases


def test_all_cases_are_in_the_suite(golden: dict[str, Any]) -> None:
    assert len(CASES) > 60
    assert golden.keys() >= {*CASES}


@pytest.mark.parametrize("case", CASES)
def test_a_case_goes_as_with_gearmand(case: str, golden: dict[str, Any], bundled: str) -> None:
    host, _, port = bundled.rpartition(":")
    expected: list[str] = golden[case]["transcript"]
    transcript: list[str] = SUITE.run_case(case, (host, int(port)), os.urandom(4).hex())
    diff = list(difflib.unified_diff(expected, transcript, "gearmand", "bundled", lineterm=""))
    changes = [line for line in diff if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert changes == DIFFERENCES.get(case, []), "\n".join(diff)
