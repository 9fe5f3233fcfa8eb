"""Celery on Redis, results in Redis; two variants: ``threads`` (then CPU work in processes), ``prefork``.

JSON, late acknowledgement (as gearflow's: a job whose worker dies is not lost), prefetch as many as a slot
can hide round trips with, no events, no heartbeats among workers.
"""

import harness
from celery import Celery, group

app = Celery(
    "with_celery",
    broker=f"redis://{harness.BROKER}/0",
    backend=f"redis://{harness.BROKER}/1",
)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=16,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task
def noop(number: int) -> None:
    harness.mark()


@app.task(ignore_result=True)
def background(number: int) -> None:
    harness.mark()


@app.task(ignore_result=True)
def spin(number: int) -> None:
    harness.spin()


@app.task(ignore_result=True)
def nap(number: int) -> None:
    harness.nap()


@app.task(ignore_result=True)
def hang(number: int) -> None:
    harness.hang()


POLL = 0.001  # seconds; its default is 0.5
TASKS = {"noop": background, "spin": spin, "nap": nap, "hang": hang}


class CelerySide:
    def work(self, kind: str, slots: int) -> None:
        pool = "prefork" if kind == "cpu" else harness.VARIANT
        if pool == "prefork" and slots > 10:
            harness.not_offered(f"{slots} slots are as many processes")
        if pool == "prefork" and kind == "noop":
            slots = 2
        options = ("-P", pool, "-c", slots, "--loglevel", "ERROR")
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
        harness.become("celery", "-A", "with_celery", "worker", *options, *quiet)

    def enqueue(self, name: str, count: int) -> None:
        with app.producer_pool.acquire(block=True) as producer:  # one connection for all of them
            for number in range(count):
                TASKS[name].apply_async((number,), producer=producer)

    def submit(self) -> None:
        background.delay(1)

    def call(self) -> None:
        noop.delay(1).get()

    def gather(self, count: int) -> None:
        group(noop.s(number) for number in range(count)).apply_async().get(interval=POLL)


SIDE = CelerySide()
