"""How a task of a gearflow worker fails, as clients of every kind see it, at gearmand and the bundled server.

Each client prints what it hears: ``warning TEXT``, ``exception TEXT``, ``failed``, ``done TEXT``.
"""

import json
from collections.abc import Callable
from typing import Final, TypeAlias

import anyio
import pytest

from gearflow.client import Client, JobFailed, connect
from gearflow.errors import TaskFailed
from gearflow.protocol.packets import WorkWarning
from gearflow.tasks import AsyncTask, Context, Fail, task
from tests.interop.conftest import serving

Command: TypeAlias = Callable[[str, str, str], list[str]]
"""The command line of a client, for a server, a function and a unique."""

PERL: Final = """
use strict; use Gearman::Client;
my ($server, $function, $unique, $exceptions) = @ARGV;
my $client = Gearman::Client->new(job_servers => [$server], exceptions => $exceptions);
my $tasks = $client->new_task_set;
my $say = sub {
    my $word = shift;
    sub { my $text = shift; print "$word ", ref $text ? $$text : $text, "\\n" };
};
$tasks->add_task($function => 'x', {
    uniq => $unique,
    on_complete => $say->('done'),
    on_warning => $say->('warning'),
    on_exception => $say->('exception'),
    on_fail => sub { print "failed\\n" },
});
$tasks->wait;
"""

PHP: Final = """
[, $server, $function, $unique] = $argv;
[$host, $port] = explode(':', $server);
$client = new GearmanClient();
$client->addServer($host, (int) $port);
$say = fn ($word) => function (GearmanTask $task) use ($word) { echo trim("$word {$task->data()}"), "\\n"; };
$client->setCompleteCallback($say('done'));
$client->setWarningCallback($say('warning'));
$client->setExceptionCallback($say('exception'));
$client->setFailCallback($say('failed'));
$client->addTask($function, 'x', null, $unique);
$client->runTasks();
"""

PHP_CODE: Final = """
[, $server, $function] = $argv;
[$host, $port] = explode(':', $server);
$client = new GearmanClient();
$client->addServer($host, (int) $port);
@$client->doNormal($function, 'x');
echo $client->returnCode();
"""

NODE: Final = """
// As gearmanode does, it looks a job up by its exact handle, and waits on if there is none.
const [, server, name, unique] = process.argv;
const [host, port] = server.split(':');
const words = {13: 'done', 14: 'failed', 25: 'exception', 29: 'warning'};
const socket = require('net').connect(port, host);
const body = Buffer.from([name, unique, 'x'].join('\\0'));
const header = Buffer.alloc(12);
header.write('\\0REQ');
header.writeUInt32BE(7, 4);
header.writeUInt32BE(body.length, 8);
socket.write(Buffer.concat([header, body]));
let bytes = Buffer.alloc(0);
let handle;
socket.on('data', (data) => {
    bytes = Buffer.concat([bytes, data]);
    while (bytes.length >= 12 && bytes.length >= 12 + bytes.readUInt32BE(8)) {
        const kind = bytes.readUInt32BE(4);
        const end = 12 + bytes.readUInt32BE(8);
        const fields = bytes.toString('utf8', 12, end);
        bytes = bytes.subarray(end);
        if (kind === 8) { handle = fields; continue; }
        const cut = kind === 14 ? fields.length : fields.indexOf('\\0');
        if (fields.slice(0, cut) !== handle) { console.error('unknown job', fields); continue; }
        console.log(`${words[kind]} ${fields.slice(cut + 1)}`.trim());
        if (kind !== 29) socket.end();
    }
});
"""

CLIENTS: Final = ["c", "perl", "perl with exceptions", "php", "node"]
WANT_EXCEPTIONS: Final = ["perl with exceptions", "php"]


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    """The kind of a client."""
    kind: str = request.param
    return kind


@pytest.fixture
def command(client: str, request: pytest.FixtureRequest) -> Command:
    """How that client is run."""
    fixture = client.partition(" ")[0]
    find: Callable[[str], str] = request.getfixturevalue("program")
    path: str = find("gearman") if client == "c" else request.getfixturevalue(fixture)

    def of(server: str, function: str, unique: str) -> list[str]:
        match fixture:
            case "c":
                host, _, port = server.partition(":")
                return [path, "-h", host, "-p", port, "-f", function, "-u", unique, "x"]
            case "php":
                return [path, "-r", PHP, server, function, unique]
            case "node":
                return [path, "-e", NODE, server, function, unique]
            case _:
                return [path, "-e", PERL, server, function, unique, str(int(client in WANT_EXCEPTIONS))]

    return of


async def heard(command: list[str]) -> list[str]:
    """What a client hears of a job until its end."""
    ended = await anyio.run_process(command, check=False)
    said = (ended.stderr + ended.stdout).decode()
    if not said.endswith("Job failed\n"):
        assert ended.returncode == 0, said
        return said.splitlines()
    text = said.removesuffix("Job failed\n")  # the C tool has no words for it
    return [f"warning {text}", "failed"] if text else ["failed"]


def raises(name: str, error: Exception) -> AsyncTask[[str], str]:
    """A task that fails."""

    @task(name=name)
    async def fails(text: str) -> str:
        raise error

    return fails


def is_failure(line: str, *, word: str) -> bool:
    """Whether a client heard, as that word, how the task failed."""
    said, _, text = line.partition(" ")
    return said == word and json.loads(text)["message"] == "'the disk is full'"


async def test_every_client_of_gearmand_sees_why_a_task_failed_and_that_it_has(
    command: Command, gearmand: str, function: str
) -> None:
    async with serving(gearmand, raises(function, KeyError("the disk is full"))):
        first, last = await heard(command(gearmand, function, "-"))
    assert is_failure(first, word="warning")
    assert json.loads(first.partition(" ")[2])["gearflow"] == "failure"  # so that nobody wonders what it is
    assert last == "failed"


async def test_at_the_bundled_server_each_client_gets_what_it_asked_for(
    client: str, command: Command, bundled: str, function: str
) -> None:
    async with serving(bundled, raises(function, KeyError("the disk is full"))):
        lines = await heard(command(bundled, function, "-"))
    if client in WANT_EXCEPTIONS:
        assert is_failure(lines[0], word="exception")
    else:
        assert lines == ["failed"]


async def test_a_task_that_wants_to_fail_without_a_reason_does(
    command: Command, any_server: str, function: str
) -> None:
    async with serving(any_server, raises(function, Fail("no such order"))):
        assert await heard(command(any_server, function, "-")) == ["failed"]


async def test_a_client_of_gearflow_that_shares_the_job_gets_the_exception(
    command: Command, gearmand: str, fresh: Callable[..., str]
) -> None:
    function, unique = fresh(), fresh("unique")
    begun, joined = anyio.Event(), anyio.Event()
    handles: list[str] = []
    lines: list[str] = []

    @task(name=function)
    async def fails(ctx: Context, text: str) -> str:
        handles.append(ctx.handle)
        begun.set()
        await joined.wait()
        ctx.warn("the disk is slow")
        raise KeyError("the disk is full")

    async def call() -> None:
        lines.extend(await heard(command(gearmand, function, unique)))

    async with serving(gearmand, fails), Client([gearmand]) as client, anyio.create_task_group() as calls:
        calls.start_soon(call)
        await begun.wait()
        jobs = [await client.submit(function, b"x", unique=unique) for _ in range(2)]
        assert [job.handle for job in jobs] == handles * 2
        joined.set()
        for job in jobs:
            assert [event async for event in job.events()] == [
                WorkWarning(job.raw_handle, b"the disk is slow")
            ]
            with pytest.raises(JobFailed) as failure:
                await job.result()
            assert failure.value.exception is not None
            assert json.loads(failure.value.exception)["message"] == "'the disk is full'"
            assert b"gearflow" not in failure.value.exception[:20]
    assert lines[-1] == "failed"
    assert "the disk is slow" in lines[0]
    assert "the disk is full" in lines[-2]


async def test_a_call_raises_what_the_task_raised(any_server: str, function: str) -> None:
    fails = raises(function, KeyError("the disk is full"))
    async with serving(any_server, fails), connect(any_server):
        with pytest.raises(KeyError) as caught:
            await fails.acall("x")
    assert isinstance(caught.value, TaskFailed)
    assert caught.value.message == "'the disk is full'"
    assert "KeyError" in (caught.value.traceback or "")


async def test_a_call_of_a_task_that_fails_without_a_reason_raises_without_one(
    any_server: str, function: str
) -> None:
    fails = raises(function, Fail("no such order"))
    async with serving(any_server, fails), connect(any_server):
        with pytest.raises(TaskFailed, match="gave no reason") as caught:
            await fails.acall("x")
    assert caught.value.type is None


@pytest.mark.parametrize("client", ["php"], indirect=True)
async def test_a_fleet_of_php_alone_can_have_its_exceptions_back(
    command: Command, php: str, gearmand: str, function: str
) -> None:
    fails = raises(function, KeyError("the disk is full"))
    code = [php, "-r", PHP_CODE, gearmand, function]
    async with serving(gearmand, fails):
        assert (await anyio.run_process(code)).stdout == b"24"  # GEARMAN_WORK_FAIL
    async with serving(gearmand, fails, gearmand_exceptions=True):
        assert (await anyio.run_process(code)).stdout == b"23"  # GEARMAN_WORK_EXCEPTION
        [line] = await heard(command(gearmand, function, "-"))
        assert is_failure(line, word="exception")
        async with Client([gearmand]) as client:
            with pytest.raises(JobFailed, match="the disk is full"):
                await (await client.submit(function, b"x")).result()
