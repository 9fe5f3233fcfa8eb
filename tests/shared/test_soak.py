"""All that can fail does, in turn, under load: nothing that was acknowledged is lost."""

import sys
from pathlib import Path

import pytest

from tests.conftest import own_postgres
from tests.shared.soak import Plan, soak


def test_half_a_minute_of_all_faults_loses_nothing(tmp_path: Path) -> None:
    with own_postgres() as cluster, cluster.database() as database:
        report = soak(Plan(seconds=30, pause=0.5), tmp_path, database)
    assert not report.wrong, str(report)
    assert len(report.times) > 5


@pytest.mark.nightly
@pytest.mark.timeout(5400)
def test_an_hour_of_all_faults_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with own_postgres() as cluster, cluster.database() as database:
        report = soak(Plan(seconds=3600, workers=3, pause=3, seed=2), tmp_path, database)
    with capsys.disabled():
        sys.stdout.write(f"\n{report}\n")
    assert not report.wrong, str(report)
