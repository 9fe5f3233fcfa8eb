"""Servers and workers are killed under load: nothing that was acknowledged is lost, nothing leaks."""

from pathlib import Path

import pytest

from tests.soak.soak import Plan, soak


@pytest.mark.timeout(300)
def test_a_minute_of_kills_loses_nothing(tmp_path: Path) -> None:
    report = soak(Plan(jobs=3_000, seconds=45, pause=0.7, seed=1), tmp_path)
    assert not report.faults, str(report)
    assert report.ended.total() > 10


@pytest.mark.nightly
@pytest.mark.timeout(5400)
def test_an_hour_of_kills_loses_nothing(tmp_path: Path) -> None:
    report = soak(Plan(jobs=50_000, seconds=2_700, pause=4, seed=2), tmp_path)
    assert not report.faults, str(report)
