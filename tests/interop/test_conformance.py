"""A second source: the bundled server answers as the transcripts of another conformance suite do.

The suite has been written apart from gearflow, and is no part of it. So these tests are skipped in a plain
checkout, which loses nothing: ``tests/protocol/test_transcripts.py`` has gearflow's own transcripts of
gearmand. Where gearflow differs on purpose, the difference is written down here, and in
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

from tests.conftest import ROOT

SUITE_FOLDER: Final = Path(os.environ.get("GEARFLOW_SHARED") or ROOT.parent / "shared") / "conformance"

if not SUITE_FOLDER.is_dir():
    pytest.skip(
        "a second, independent conformance suite is not here, and is not needed: "
        "tests/protocol/test_transcripts.py compares with gearmand. "
        "GEARFLOW_SHARED names a folder that has the suite in conformance/",
        allow_module_level=True,
    )

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


SUITE: Final = _load(SUITE_FOLDER)
CASES: Final[list[str]] = [*SUITE.CASES]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    """What gearmand said, case by case."""
    cases: dict[str, Any] = json.loads((SUITE_FOLDER / "golden_public.json").read_bytes())
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
