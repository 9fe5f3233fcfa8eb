"""Huey on Redis: threads; processes for CPU work and for tasks that do nothing.

Results come with a notification, so nothing is polled.
"""

import harness
from huey import RedisHuey

host, _, port = harness.BROKER.rpartition(":")
huey = RedisHuey("peers", host=host or "127.0.0.1", port=int(port or 6379), notify_result=True)


@huey.task()
def noop(number: int) -> int:
    harness.mark()
    return number


@huey.task()
def spin(number: int) -> None:
    harness.spin()


@huey.task()
def nap(number: int) -> None:
    harness.nap()


@huey.task()
def hang(number: int) -> None:
    harness.hang()


@huey.task()
def background(number: int) -> None:
    harness.mark()


TASKS = {"noop": background, "spin": spin, "nap": nap, "hang": hang}


class Huey:
    def work(self, kind: str, slots: int) -> None:
        processes = 2 if kind in ("cpu", "noop") else 0
        shape = ("-k", "process", "-w", processes) if processes else ("-k", "thread", "-w", slots)
        options = (*shape, "-n", "-q")
        harness.become("huey_consumer", "with_huey.huey", *options)

    def enqueue(self, name: str, count: int) -> None:
        for number in range(count):
            TASKS[name](number)

    def submit(self) -> None:
        background(1)

    def call(self) -> None:
        noop(1).get(blocking=True)

    def gather(self, count: int) -> None:
        for result in [noop(number) for number in range(count)]:
            result.get(blocking=True)


SIDE = Huey()
