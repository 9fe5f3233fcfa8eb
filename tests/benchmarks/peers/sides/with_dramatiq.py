"""Dramatiq on Redis, results in Redis. Two processes share the slots as threads; prefetch is tuned."""

import os

import dramatiq
import harness
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

os.environ.setdefault("dramatiq_queue_prefetch", "64")

broker = RedisBroker(url=f"redis://{harness.BROKER}/0")
broker.add_middleware(Results(backend=RedisBackend(url=f"redis://{harness.BROKER}/1")))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def noop(number: int) -> int:
    harness.mark()
    return number


@dramatiq.actor
def background(number: int) -> None:
    harness.mark()


@dramatiq.actor
def spin(number: int) -> None:
    harness.spin()


@dramatiq.actor
def nap(number: int) -> None:
    harness.nap()


@dramatiq.actor
def hang(number: int) -> None:
    harness.hang()


TASKS = {"noop": background, "spin": spin, "nap": nap, "hang": hang}


class Dramatiq:
    def work(self, kind: str, slots: int) -> None:
        processes = min(slots, 2)
        threads = slots // processes
        harness.become("dramatiq", "with_dramatiq", "-p", processes, "-t", threads, "--skip-logging")

    def enqueue(self, name: str, count: int) -> None:
        for number in range(count):
            TASKS[name].send(number)

    def submit(self) -> None:
        background.send(1)

    def call(self) -> None:
        noop.send(1).get_result(block=True)

    def gather(self, count: int) -> None:
        dramatiq.group(noop.message(number) for number in range(count)).run().wait()


SIDE = Dramatiq()
