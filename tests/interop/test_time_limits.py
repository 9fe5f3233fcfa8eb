"""Workers of PHP and Perl that set a time limit (CAN_DO_TIMEOUT) on the bundled server."""

from collections.abc import Generator
from contextlib import contextmanager

import anyio
import pytest

from gearflow.client import Client, JobFailed
from gearflow.server import ServerSettings
from gearflow.server.engine import Timings
from tests.interop.conftest import Start
from tests.server.wire import running

PHP = """
[, $host, $port, $function, $limit] = $argv;
$worker = new GearmanWorker();
$worker->addServer($host, (int) $port);
$worker->addFunction($function, function (GearmanJob $job) {
    usleep((int) $job->workload());
    return 'done';
}, null, (int) $limit);
while (true) { @$worker->work(); }
"""

PERL = """
use strict; use Gearman::Worker; use Time::HiRes;
my ($host, $port, $function, $limit) = @ARGV;
my $worker = Gearman::Worker->new(job_servers => ["$host:$port"]);
$worker->register_function($function, $limit, sub { Time::HiRes::usleep($_[0]->arg); 'done' });
$worker->work while 1;
"""


@pytest.fixture(params=["php", "perl"])
def command(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Starts a worker that sleeps for as many microseconds as the workload says."""
    program: str = request.getfixturevalue(request.param)
    return (program, "-r", PHP) if request.param == "php" else (program, "-e", PERL)


@contextmanager
def serving(shortest_run: float, max_deaths: int) -> Generator[str]:
    """The address of a server that raises limits to so many seconds."""
    settings = ServerSettings(port=0, max_deaths=max_deaths)
    with running(settings, Timings(shortest_run=shortest_run)) as engine:
        yield f"127.0.0.1:{engine.port}"


async def test_a_limit_that_is_meant_in_seconds_takes_no_job_away(
    start: Start, command: tuple[str, ...], function: str
) -> None:
    with serving(shortest_run=60.0, max_deaths=1) as server, anyio.fail_after(20):
        start(*command, *server.split(":"), function, "5")
        async with Client([server]) as client:
            jobs = [await client.submit(function, b"20000") for _ in range(2)]
            assert [await job.result() for job in jobs] == [b"done", b"done"]


async def test_a_job_that_overruns_ends_and_the_others_are_done(
    start: Start, php: str, function: str
) -> None:
    with serving(shortest_run=0.5, max_deaths=2) as server, anyio.fail_after(30):
        start(php, "-r", PHP, *server.split(":"), function, "1")
        async with Client([server]) as client:
            slow = await client.submit(function, b"700000")
            with pytest.raises(JobFailed) as failure:
                await slow.result()
            assert b"TaskTimeout" in (failure.value.exception or b"")
            quick = [await client.submit(function, b"0") for _ in range(5)]
            assert [await job.result() for job in quick] == [b"done"] * 5
