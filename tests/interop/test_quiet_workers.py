"""An operator makes workers of other libraries quiet, which know nothing of that."""

import subprocess
from collections.abc import Callable

import pytest

from gearflow.client import SyncClient
from gearflow.client.operate import quiet, workers
from gearflow.protocol.workers import WorkerInfo
from gearflow.server import JobServer


def test_a_worker_of_the_c_library_gets_no_jobs_while_it_is_quiet(program: Callable[[str], str]) -> None:
    with JobServer(port=0) as server, SyncClient([server.address]) as client:
        host, _, port = server.address.rpartition(":")
        command = [program("gearman"), "-h", host, "-p", port, "-w", "-f", "reverse", "rev"]
        with subprocess.Popen(command) as worker:
            try:
                assert client.submit("reverse", b"before").result(20).strip() == b"erofeb"
                (known,) = client.run(workers)
                client.run(lambda client: quiet(client, known.id))
                handle = client.submit_background("reverse", b"later")
                with pytest.raises(TimeoutError):
                    client.result(handle, 0.5)
                assert client.info(handle).state == "waiting"
                shown: tuple[WorkerInfo, ...] = client.run(workers)
                assert [(each.quiet, each.functions) for each in shown] == [(True, ("reverse",))]
                client.run(lambda client: quiet(client, known.id, False))
                assert client.result(handle, 20).strip() == b"retal"
            finally:
                worker.kill()
