"""pygearman (python-gearman, maintained) on a Gearman server: a process for each slot, one job at a time.

Many jobs are submitted in groups. It waits for results only if it is given a time for that.
"""

import gearman
import harness


def noop(worker: object, job: object) -> bytes:
    harness.mark()
    return b""


def spin(worker: object, job: object) -> bytes:
    harness.spin()
    return b""


def nap(worker: object, job: object) -> bytes:
    harness.nap()
    return b""


def hang(worker: object, job: object) -> bytes:
    harness.hang()
    return b""


TASKS = (noop, spin, nap, hang)
GROUP = 500
PATIENCE = 60.0  # seconds


def _serve() -> None:
    worker = gearman.GearmanWorker([harness.BROKER])
    for task in TASKS:
        worker.register_task(task.__name__.encode(), task)
    worker.work()


class Pygearman:
    def __init__(self) -> None:
        self._client = None

    @property
    def client(self):
        if self._client is None:
            self._client = gearman.GearmanClient([harness.BROKER])
        return self._client

    def work(self, kind: str, slots: int) -> None:
        if slots > 10:
            harness.not_offered(f"{slots} slots are as many processes")
        harness.in_processes(2 if kind == "noop" else slots, _serve)

    def enqueue(self, name: str, count: int) -> None:
        for start in range(0, count, GROUP):
            jobs = self._jobs(name, range(start, min(start + GROUP, count)))
            self.client.submit_multiple_jobs(jobs, background=True, wait_until_complete=False)

    def submit(self) -> None:
        self.client.submit_job("noop", b"1", background=True, wait_until_complete=False)

    def call(self) -> None:
        self.client.submit_job("noop", b"1", poll_timeout=PATIENCE)

    def gather(self, count: int) -> None:
        self.client.submit_multiple_jobs(self._jobs("noop", range(count)), poll_timeout=PATIENCE)

    def _jobs(self, name: str, numbers) -> list:
        return [{"task": name, "data": b"%d" % number} for number in numbers]


SIDE = Pygearman()
