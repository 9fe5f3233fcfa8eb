"""RQ: a process for each slot, and no fork for each job (``SimpleWorker``), which is its fastest way."""

import harness
from redis import Redis
from rq import Queue

host, _, port = harness.BROKER.rpartition(":")
queue = Queue(connection=Redis(host or "127.0.0.1", int(port or 6379)))


def noop(number: int) -> None:
    harness.mark()


def spin(number: int) -> None:
    harness.spin()


def nap(number: int) -> None:
    harness.nap()


def hang(number: int) -> None:
    harness.hang()


TASKS = {"noop": noop, "spin": spin, "nap": nap, "hang": hang}
GROUP = 500


class RQ:
    def work(self, kind: str, slots: int) -> None:
        if slots > 10:
            harness.not_offered(f"{slots} slots are as many processes")
        processes = 2 if kind == "noop" else slots
        options = ("-w", "rq.worker.SimpleWorker", "-q", "-u", f"redis://{harness.BROKER}")
        harness.become("rq", "worker-pool", "-n", processes, *options, "default")

    def enqueue(self, name: str, count: int) -> None:
        for start in range(0, count, GROUP):
            numbers = range(start, min(start + GROUP, count))
            queue.enqueue_many([Queue.prepare_data(f"with_rq.{name}", (number,)) for number in numbers])

    def submit(self) -> None:
        queue.enqueue("with_rq.noop", 1)

    def call(self) -> None:
        queue.enqueue("with_rq.noop", 1).latest_result(timeout=10)

    def gather(self, count: int) -> None:
        for job in [queue.enqueue("with_rq.noop", number) for number in range(count)]:
            job.latest_result(timeout=60)


SIDE = RQ()
