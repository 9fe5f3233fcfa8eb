"""Policies hold for clients and workers of PHP, Perl and C, which know nothing of gearflow."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from gearflow.client import JobFailed, JobKey, SyncClient
from gearflow.protocol.limits import POLICY, Policy, PolicyRequest
from gearflow.protocol.server_calls import JobInfo, RetryPlan
from tests.interop.conftest import Start

PATIENCE = 60.0  # seconds

UNIQUE = "the-job"

PLAN = RetryPlan(delays=(0.05, 0.1), jitter=False)

PHP_CLIENT = """
[, $host, $port, $function, $payload, $unique] = $argv;
$client = new GearmanClient();
$client->addServer($host, (int) $port);
$client->doBackground($function, $payload, $unique);
"""

PHP_WORKER = """
[, $host, $port, $function, $way, $good] = $argv;
$worker = new GearmanWorker();
$worker->addServer($host, (int) $port);
$worker->addFunction($function, function (GearmanJob $job) use ($way, $good) {
    file_put_contents($job->workload(), "run\\n", FILE_APPEND);
    if (count(file($job->workload())) >= (int) $good) { return 'done'; }
    if ($way == 'fail') { $job->sendFail(); } else { $job->sendException('no luck'); }
});
while (true) { @$worker->work(); }
"""

PHP_SLEEPER = """
[, $host, $port, $function] = $argv;
$worker = new GearmanWorker();
$worker->addServer($host, (int) $port);
$worker->addFunction($function, function (GearmanJob $job) {
    file_put_contents($job->workload(), "run\\n", FILE_APPEND);
    if (count(file($job->workload())) == 1) { sleep(100); }
    return 'done';
});
while (true) { @$worker->work(); }
"""

PERL_CLIENT = """
use strict; use Gearman::Client;
my ($host, $port, $function, $payload, $unique) = @ARGV;
my $client = Gearman::Client->new(job_servers => ["$host:$port"]);
$client->dispatch_background($function, $payload, {uniq => $unique});
"""

PERL_WORKER = """
use strict; use Gearman::Worker;
my ($host, $port, $function, $way, $good) = @ARGV;
my $worker = Gearman::Worker->new(job_servers => ["$host:$port"]);
$worker->register_function($function, sub {
    my $path = $_[0]->arg;
    open(my $out, '>>', $path); print $out "run\\n"; close($out);
    open(my $in, '<', $path); my @runs = <$in>; close($in);
    die "no luck\\n" if @runs < $good;
    'done';
});
$worker->work while 1;
"""

SHELL = 'f=$(cat); echo run >> "$f"; [ $(wc -l < "$f") -ge "$0" ] && printf done'


class Side:
    """A client and a worker in another language."""

    def __init__(
        self,
        start: Start,
        client: Callable[[str, str], tuple[str, ...]],
        worker: Callable[[str, int], tuple[str, ...]],
    ) -> None:
        self._start = start
        self._client = client
        self._worker = worker

    def submit(self, function: str, payload: str) -> None:
        """Submit a background job."""
        assert self._start(*self._client(function, payload)).wait(PATIENCE) == 0

    def serve(self, function: str, good: int) -> None:
        """Start a worker, whose first runs fail, up to the good one."""
        self._start(*self._worker(function, good))


@pytest.fixture(params=["php that fails", "php that raises", "perl", "c"])
def side(request: pytest.FixtureRequest, start: Start, bundled: str) -> Side:
    host, _, port = bundled.rpartition(":")
    if request.param == "c":
        begin: tuple[str, ...] = ("gearman", "-h", host, "-p", port)
        return Side(
            start,
            lambda function, payload: (*begin, "-b", "-u", UNIQUE, "-f", function, payload),
            lambda function, good: (*begin, "-w", "-f", function, "--", "sh", "-c", SHELL, str(good)),
        )
    language, _, way = request.param.partition(" that ")
    program: str = request.getfixturevalue(language)
    flag, client, worker = {
        "php": ("-r", PHP_CLIENT, PHP_WORKER),
        "perl": ("-e", PERL_CLIENT, PERL_WORKER),
    }[language]
    way = way.removesuffix("s") or "dies"
    return Side(
        start,
        lambda function, payload: (program, flag, client, host, port, function, payload, UNIQUE),
        lambda function, good: (program, flag, worker, host, port, function, way, str(good)),
    )


def set_policy(client: SyncClient, function: str, policy: Policy) -> None:
    client.call_reserved(POLICY, PolicyRequest(action="set", function=function, policy=policy))


def ended(client: SyncClient, function: str) -> JobInfo:
    """The job once it has ended."""
    job = JobKey(function, UNIQUE)
    with suppress(JobFailed):
        client.result(job, timeout=PATIENCE)
    return client.info(job)


def test_a_job_that_fails_runs_again_until_it_succeeds(
    side: Side, bundled: str, function: str, tmp_path: Path
) -> None:
    with SyncClient([bundled]) as client:
        set_policy(client, function, Policy(retries=PLAN))
        side.serve(function, 3)
        side.submit(function, str(tmp_path / "runs"))
        shown = ended(client, function)
        assert (shown.state, shown.attempt, shown.dead) == ("completed", 3, False)
        assert [warning[:14] for warning in shown.warnings] == ["run 1 failed (", "run 2 failed ("]
        assert client.result(JobKey(function, UNIQUE)) == b"done"
        assert (tmp_path / "runs").read_text() == "run\n" * 3


def test_a_job_that_fails_each_time_is_a_dead_letter_in_the_end(
    side: Side, bundled: str, function: str, tmp_path: Path
) -> None:
    with SyncClient([bundled]) as client:
        set_policy(client, function, Policy(retries=PLAN))
        side.submit(function, str(tmp_path / "runs"))
        side.serve(function, 100)
        shown = ended(client, function)
        assert (shown.state in ("failed", "raised"), shown.attempt, shown.dead) == (True, 3, True)
        assert (tmp_path / "runs").read_text() == "run\n" * 3


def test_a_job_without_a_policy_fails_at_once(
    side: Side, bundled: str, function: str, tmp_path: Path
) -> None:
    with SyncClient([bundled]) as client:
        side.submit(function, str(tmp_path / "runs"))
        side.serve(function, 100)
        shown = ended(client, function)
        assert (shown.attempt, shown.dead, shown.warnings) == (1, True, ())


def test_a_job_is_taken_from_a_worker_that_is_over_the_time_limit(
    php: str, start: Start, bundled: str, function: str, tmp_path: Path
) -> None:
    host, _, port = bundled.rpartition(":")
    with SyncClient([bundled]) as client:
        set_policy(client, function, Policy(timeout=0.5))
        for _ in range(2):
            start(php, "-r", PHP_SLEEPER, host, port, function)
        job = client.submit(function, str(tmp_path / "runs").encode())
        assert job.result(timeout=PATIENCE) == b"done"
        assert (tmp_path / "runs").read_text() == "run\n" * 2


def test_the_outcome_is_kept_as_long_as_the_policy_says(
    side: Side, bundled: str, function: str, tmp_path: Path
) -> None:
    with SyncClient([bundled]) as client:
        set_policy(client, function, Policy(keep=604_800))
        side.serve(function, 1)
        side.submit(function, str(tmp_path / "runs"))
        shown = ended(client, function)
        assert shown.ended is not None
        assert shown.kept_until == pytest.approx(shown.ended + 604_800)
