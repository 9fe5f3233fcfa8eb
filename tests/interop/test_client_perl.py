"""A gearflow client calls Perl's Gearman::Worker, through gearmand and the bundled server."""

from collections.abc import Callable
from typing import TypeAlias

import anyio
import pytest

from gearflow.client import Client, JobFailed
from gearflow.protocol.packets import WorkData, WorkStatus, WorkWarning
from tests.interop.conftest import Start

Serve: TypeAlias = Callable[[str, str], None]

SCRIPT = """
use strict; use Gearman::Worker;
my ($server, $function, $body) = @ARGV;
our $worker = Gearman::Worker->new(job_servers => [$server]);
my $run = eval "sub { my \\$job = shift; $body }" or die $@;
$worker->register_function($function => $run);
$worker->work while 1;
"""


@pytest.fixture
def serve(start: Start, perl: str, function: str) -> Serve:
    """``serve(server, "return 42")``: a worker whose function has this body, with the job as ``$job``."""

    def run(server: str, body: str) -> None:
        start(perl, "-e", SCRIPT, server, function, body)

    return run


async def test_what_the_function_returns_is_the_result(serve: Serve, any_server: str, function: str) -> None:
    serve(any_server, "return scalar reverse $job->arg")
    async with Client([any_server]) as client:
        with anyio.fail_after(20):
            job = await client.submit(function, b"hello")
            assert await job.result() == b"olleh"


async def test_progress_data_and_warnings_arrive_in_order(
    serve: Serve, any_server: str, function: str
) -> None:
    serve(
        any_server,
        """
        $job->set_status(1, 2);
        $main::worker->send_work_data($job, "half");
        $main::worker->send_work_warning($job, "slow");
        $job->set_status(2, 2);
        return "done";
        """,
    )
    async with Client([any_server]) as client:
        with anyio.fail_after(20):
            job = await client.submit(function, b"x")
            events = [event async for event in job.events()]
            assert await job.result() == b"done"
    handle = job.handle.encode()
    assert events == [
        WorkStatus(handle, b"1", b"2"),
        WorkData(handle, b"half"),
        WorkWarning(handle, b"slow"),
        WorkStatus(handle, b"2", b"2"),
    ]


async def test_undef_fails_the_job_without_a_reason(serve: Serve, any_server: str, function: str) -> None:
    serve(any_server, "return undef")
    async with Client([any_server]) as client:
        with anyio.fail_after(20):
            job = await client.submit(function, b"x")
            with pytest.raises(JobFailed) as failure:
                await job.result()
    assert failure.value.exception is None


async def test_what_the_function_dies_of_reaches_the_caller(
    serve: Serve, any_server: str, function: str
) -> None:
    serve(any_server, 'die "the disk is full"')
    async with Client([any_server]) as client:
        with anyio.fail_after(20):
            job = await client.submit(function, b"x")
            with pytest.raises(JobFailed) as failure:
                await job.result()
    assert failure.value.exception is not None
    assert b"the disk is full" in failure.value.exception  # inside a frozen Perl value


@pytest.mark.parametrize("nothing", ["''", "'0'"])
async def test_an_empty_result_which_perl_sends_without_its_nul_is_empty(
    serve: Serve, bundled: str, function: str, nothing: str
) -> None:
    serve(bundled, f"return {nothing}")  # gearmand never answers this worker
    async with Client([bundled]) as client:
        with anyio.fail_after(20):
            for _ in range(2):  # the worker goes on
                job = await client.submit(function, b"x")
                assert await job.result() == b""


async def test_a_progress_which_perl_sends_without_a_denominator_arrives(
    serve: Serve, bundled: str, function: str
) -> None:
    serve(bundled, "$main::worker->send_work_status($job, 3, 4); return 'done'")  # gearmand hangs up on it
    async with Client([bundled]) as client:
        with anyio.fail_after(20):
            job = await client.submit(function, b"x")
            events = [event async for event in job.events()]
            assert await job.result() == b"done"
    assert events == [WorkStatus(job.handle.encode(), b"3", b"")]
