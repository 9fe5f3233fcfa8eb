"""PHP's gearman extension, client and worker, through the bundled server and beside gearflow's client."""

import subprocess
from collections.abc import Callable

import anyio
import pytest

from gearflow.client import Client, JobFailed
from gearflow.protocol.packets import WorkData, WorkStatus, WorkWarning
from gearflow.server import JobServer
from tests.interop.conftest import Start

WORKER = """
[, $host, $port, $function] = $argv;
$worker = new GearmanWorker();
$worker->addServer($host, (int) $port);
$worker->addFunction($function, function (GearmanJob $job) {
    switch ($job->workload()) {
        case 'fail':
            $job->sendFail();
            return;
        case 'exception':
            $job->sendException('the disk is full');
            return;
    }
    $job->sendStatus(1, 2);
    $job->sendData('half');
    $job->sendWarning('slow');
    return strrev($job->workload());
});
while ($worker->work());
"""

CLIENT = """
[, $host, $port, $function, $workload] = $argv;
$client = new GearmanClient();
$client->addServer($host, (int) $port);
echo $client->doHigh($function, $workload);
exit($client->returnCode() == GEARMAN_SUCCESS ? 0 : 1);
"""


@pytest.fixture
def worker(start: Start, php: str, bundled: str, function: str) -> None:
    """A PHP worker of the function."""
    host, _, port = bundled.rpartition(":")
    start(php, "-r", WORKER, host, port, function)


@pytest.fixture
def call(php: str, bundled: str, function: str) -> Callable[[str], str]:
    """``call("hello")``: what PHP's client gets for this workload."""
    host, _, port = bundled.rpartition(":")

    def do(workload: str) -> str:
        command = [php, "-r", CLIENT, host, port, function, workload]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout

    return do


@pytest.mark.usefixtures("worker")
async def test_a_php_worker_reports_and_answers(bundled: str, function: str) -> None:
    async with Client([bundled]) as client:
        with anyio.fail_after(20):
            job = await client.submit(function, b"hello")
            events = [event async for event in job.events()]
            assert await job.result() == b"olleh"
    handle = job.handle.encode()
    assert events == [WorkStatus(handle, b"1", b"2"), WorkData(handle, b"half"), WorkWarning(handle, b"slow")]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(("workload", "reason"), [(b"fail", None), (b"exception", b"the disk is full")])
async def test_a_php_worker_fails_a_job_with_and_without_a_reason(
    bundled: str, function: str, workload: bytes, reason: bytes | None
) -> None:
    async with Client([bundled]) as client:
        with anyio.fail_after(20):
            job = await client.submit(function, workload)
            with pytest.raises(JobFailed) as failure:
                await job.result()
    assert failure.value.exception == reason


@pytest.mark.usefixtures("worker")
def test_php_calls_php(call: Callable[[str], str]) -> None:
    assert call("hello") == "halfolleh"  # libgearman puts the parts before the result


AUTHENTICATED = """
[, $host, $port, $token] = $argv;
$client = new GearmanClient();
$client->addServer($host, (int) $port);
$client->setTimeout(10000);
echo $client->doNormal('gearflow:auth', $token), "\\n";
echo $client->doBackground('anything', 'x') ? $client->returnCode() : 'refused', "\\n";
"""


def test_a_php_client_can_say_the_token(php: str) -> None:
    with JobServer(port=0, token="open sesame") as server:
        for token, answer in (("open sesame", f"{{}}\n{0}\n"), ("sesame", "\nrefused\n")):
            command = [
                php,
                "-d",
                "display_errors=0",
                "-r",
                AUTHENTICATED,
                server.host,
                str(server.port),
                token,
            ]
            said = subprocess.run(command, capture_output=True, text=True, timeout=30)
            assert said.stdout == answer, said.stderr
