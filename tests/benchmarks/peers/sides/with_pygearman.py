"""pygearman (python-gearman, maintained) on a Gearman server: a process for each slot, one job at a time."""

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
        harness.in_processes(slots, _serve)

    def enqueue(self, name: str, count: int) -> None:
        for number in range(count):
            self._background(name, number)

    def submit(self) -> None:
        self._background("noop", 1)

    def call(self) -> None:
        self.client.submit_job("noop", b"1")

    def gather(self, count: int) -> None:
        jobs = [{"task": "noop", "data": b"%d" % number} for number in range(count)]
        self.client.submit_multiple_jobs(jobs)

    def _background(self, name: str, number: int) -> None:
        self.client.submit_job(name, b"%d" % number, background=True, wait_until_complete=False)


SIDE = Pygearman()
