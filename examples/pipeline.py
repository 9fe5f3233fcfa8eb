"""One pipeline of three languages: a PHP client, a Python task, and a Perl worker.

    python examples/pipeline.py       (apt install php-cli php-gearman libgearman-client-perl)

A PHP program submits ``summarize`` with a JSON object and shows the progress. The task is Python's. It calls
``reverse_words`` for each line, which a Perl program serves, with ``map`` and the types of its signature. All
of them speak to one server, and no side knows what the others are written in.
"""

import asyncio
import shutil
import sys
from asyncio.subprocess import PIPE

from gearflow import Context, JobServer, connect, task
from gearflow.worker import Worker

PERL = """
use Gearman::Worker;
my $worker = Gearman::Worker->new(job_servers => [$ARGV[0]]);
$worker->register_function('reverse_words' => sub { join ' ', reverse split / /, $_[0]->arg });
$worker->work while 1;
"""

PHP = """
[, $host, $port] = $argv;
$client = new GearmanClient();
$client->addServer($host, (int) $port);
$client->setStatusCallback(function (GearmanTask $task) {
    echo "php: {$task->taskNumerator()} of {$task->taskDenominator()} lines\\n";
});
$client->setCompleteCallback(function (GearmanTask $task) {
    foreach (json_decode($task->data(), true) as $line => $length) {
        echo "php: $line ($length)\\n";
    }
});
$client->addTask('summarize', json_encode(['lines' => ['one two three', 'four five', 'six']]));
$client->runTasks();
"""


@task(name="reverse_words", foreign=True)
def reverse_words(line: str) -> str:
    """The words in reverse. Perl serves it, so there is no body."""
    raise NotImplementedError


@task(name="summarize")
async def summarize(ctx: Context, lines: list[str]) -> dict[str, int]:
    """The lines with their words in reverse, and the length of each."""
    reversed_lines = [line async for line in reverse_words.amap(lines)]
    ctx.progress(len(lines), len(lines))
    return {line: len(line) for line in reversed_lines}


async def main(php: str, perl: str) -> None:
    """Start all three, and print what the PHP program prints."""
    async with (
        JobServer(port=0) as server,
        connect(server.address),
        Worker([summarize], servers=[server.address]),
    ):
        theirs = await asyncio.create_subprocess_exec(perl, "-e", PERL, server.address)
        try:
            command = [php, "-r", PHP, "--", server.host, str(server.port)]
            client = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
            print((await client.communicate())[0].decode(), end="")
        finally:
            theirs.kill()
            await theirs.wait()


if __name__ == "__main__":
    programs = [shutil.which(name) for name in ("php", "perl")]
    if None in programs:
        sys.exit("this needs PHP and Perl: apt install php-cli php-gearman libgearman-client-perl")
    asyncio.run(main(*(program for program in programs if program is not None)))
