"""A gearflow worker serves Perl's Gearman::Client, through gearmand and the bundled server."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio
import pytest

from gearflow.tasks import Context, task
from gearflow.worker import Worker

Ask: TypeAlias = Callable[..., Awaitable[str]]

SCRIPT = """
use strict; use Gearman::Client; use Gearman::Task;
my ($server, $function, $payload, $body) = @ARGV;
my $client = Gearman::Client->new(job_servers => [$server], exceptions => 1);
$| = 1;
eval $body; die $@ if $@;
"""


@pytest.fixture
def ask(perl: str) -> Ask:
    """``await ask(server, function, payload, code)``: what the Perl code prints."""

    async def run(server: str, function: str, payload: str, code: str) -> str:
        done = await anyio.run_process([perl, "-e", SCRIPT, server, function, payload, code])
        return done.stdout.decode()

    return run


async def test_do_task_returns_the_result(ask: Ask, any_server: str, function: str) -> None:
    @task(name=function)
    async def add(a: int, b: int) -> int:
        return a + b

    with anyio.fail_after(20):
        async with Worker([add], servers=[any_server]):
            code = "print ${$client->do_task($function, $payload)};"
            assert await ask(any_server, function, '{"a": 1, "b": 2}', code) == "3"


async def test_a_task_set_gets_all_results_and_the_progress(ask: Ask, any_server: str, function: str) -> None:
    @task(name=function)
    def double(ctx: Context, text: str) -> str:
        ctx.progress(1, 1)
        return text * 2

    code = """
    my (@results, $status); my $set = $client->new_task_set;
    for my $n (1..20) {
        $set->add_task($function, "$payload$n", {
            on_complete => sub { push @results, ${$_[0]} },
            on_status => sub { $status = "$_[0]/$_[1]" },
        });
    }
    $set->wait; print join(",", sort @results), " $status";
    """
    with anyio.fail_after(20):
        async with Worker([double], servers=[any_server]):
            said = await ask(any_server, function, "x", code)
    assert said == ",".join(sorted(f"x{n}x{n}" for n in range(1, 21))) + " 1/1"


async def test_a_failure_ends_the_call(ask: Ask, any_server: str, function: str) -> None:
    @task(name=function)
    async def fails(text: str) -> str:
        raise ValueError(f"no {text}")

    code = """
    my $said = "nothing"; my $set = $client->new_task_set;
    $set->add_task($function, $payload, {
        on_exception => sub { $said = "exception: $_[0]" },
        on_fail => sub { $said = "failed" if $said eq "nothing" },
    });
    $set->wait; print $said;
    """
    with anyio.fail_after(20):
        async with Worker([fails], servers=[any_server]):
            said = await ask(any_server, function, "luck", code)
    assert "no luck" in said or said == "failed"


async def test_background_jobs_run(ask: Ask, any_server: str, function: str) -> None:
    ran = anyio.Event()

    @task(name=function)
    async def note(text: str) -> None:
        assert text == "later"
        ran.set()

    with anyio.fail_after(20):
        async with Worker([note], servers=[any_server]):
            await ask(any_server, function, "later", "$client->dispatch_background($function, $payload);")
            await ran.wait()
