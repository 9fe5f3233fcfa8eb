"""Callers in C and PHP share a batch of gearflow's worker, and need not know of it."""

import os
from collections.abc import Callable

import anyio

from gearflow import Batch, task
from gearflow.client import Client
from gearflow.worker import Worker

PHP = """
[, $host, $port, $function, $workload] = $argv;
$client = new GearmanClient();
$client->addServer($host, (int) $port);
echo $client->doNormal($function, $workload);
"""


async def test_callers_in_c_php_and_python_share_a_batch(
    php: str, program: Callable[[str], str], any_server: str, function: str
) -> None:
    host, _, port = any_server.rpartition(":")
    runs: list[list[str]] = []
    said: dict[str, bytes] = {}

    @task(name=function, batch=Batch(3, wait=60))
    async def shout(texts: list[str]) -> list[str]:
        runs.append(sorted(texts))
        return [text.upper() for text in texts]

    async def call(language: str, *command: str, data: bytes | None = None) -> None:
        done = await anyio.run_process(command, input=data, env=dict(os.environ))
        said[language] = done.stdout

    with anyio.fail_after(30):
        async with (
            Client([any_server]) as client,
            Worker([shout], servers=[any_server], concurrency=1),
            anyio.create_task_group() as callers,
        ):
            tool = program("gearman")
            callers.start_soon(call, "php", php, "-r", PHP, host, port, function, "from php")
            callers.start_soon(
                lambda: call("c", tool, "-h", host, "-p", port, "-f", function, data=b"from c")
            )
            said["python"] = await (await client.submit(function, b"from python")).result()
    assert runs == [["from c", "from php", "from python"]]
    assert said == {"php": b"FROM PHP", "c": b"FROM C", "python": b"FROM PYTHON"}
