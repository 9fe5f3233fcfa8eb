"""Servers and workers are killed under load: nothing that was acknowledged is lost, nothing leaks."""

import sys
from pathlib import Path

import pytest

from tests.soak.soak import Plan, soak


@pytest.mark.timeout(300)
def test_half_a_minute_of_kills_and_hostile_peers_loses_nothing(tmp_path: Path) -> None:
    report = soak(Plan(jobs=3_000, seconds=25, pause=0.4, seed=1, hostile=True), tmp_path)
    assert not report.faults, str(report)
    assert report.ended["SIGKILL server"]
    assert report.ended["SIGKILL worker"]
    assert report.hostilities.acts.total() > 3


@pytest.mark.nightly
@pytest.mark.timeout(5400)
def test_an_hour_of_kills_and_hostile_peers_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = soak(Plan(jobs=60_000, seconds=3_600, pause=4, seed=2, hostile=True), tmp_path)
    with capsys.disabled():
        sys.stdout.write(f"\n{report}\n")
    assert not report.faults, str(report)
