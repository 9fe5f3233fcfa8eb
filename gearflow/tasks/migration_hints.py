"""Hints for users of Celery, Dramatiq, taskiq and RQ: what their words are called here. Also for those who
take a task that yields for one that returns.

A hint shows only where a name is missing anyway. Type checkers do not see the hints and report such names.
The page ``docs/how-to/coming-from-celery.md`` explains the words.
"""

from collections.abc import Mapping
from typing import Final, NoReturn


def _table(text: str) -> dict[str, str]:
    """Read lines of names, a colon and the remedy."""
    rows = (line.strip().partition(": ") for line in text.strip().splitlines())
    return {name: remedy for names, _, remedy in rows for name in names.split()}


VERBS: Final = _table("""
    delay send kiq enqueue defer: put it on the queue with .background(...), or await .abackground(...)
    apply_async send_with_options kicker: write .options(delay=..., priority=...).background(...)
    s si signature subtask message __or__: call one task after the other, or write .map(items).then(task)
    chunks: write .map(items, chunk=100) for small items, which then share jobs
    apply: a plain call runs it here
    retry: write 'raise TryAgain(after=30)' (from gearflow import TryAgain), or @task(retries=...)
    request: add a first parameter 'ctx: Context' (from gearflow import Context), which has it
    update_state: write ctx.progress(done, total), with a first parameter 'ctx: Context'
    AsyncResult: write .ref(handle)
""")
"""Of tasks."""

RETURNING: Final = _table("""
    stream astream: it returns one result, with .call(...); yield values, and annotate them as Iterator[TYPE]
""")
"""Of tasks that do not yield."""

YIELDING: Final = _table("""
    call acall: it yields values; iterate over .stream(...), or .astream(...) in an event loop
    map amap starmap astarmap: it yields values; call .stream(...) for each item, or .background_many(items)
""")
"""Of tasks that yield."""

RESULTS: Final = _table("""
    get wait wait_result: write .result(timeout=...), await an async job, or write .aresult(...) of a Ref
    id: write .handle
    state ready successful failed: write .status()
    revoke: write .cancel()
""")
"""Of what calls return."""

RUNS: Final = _table("""
    retry: write 'raise TryAgain(after=30)' (from gearflow import TryAgain), or @task(retries=...)
    request: write ctx.handle, ctx.function, ctx.attempt or ctx.deadline
    retries: write ctx.attempt, which counts the first run, too
    id task_id job_id message_id: write ctx.handle
    update_state set_progress: write ctx.progress(done, total), or ctx.warn(text)
    is_aborted: write ctx.cancelled
""")
"""Of a task's ``Context``."""

WORKERS: Final = _table("""
    __enter__: write 'async with', or start it from the shell with 'gearflow worker MODULE'
""")
"""Of a ``Worker``."""

OPTIONS: Final = _table("""
    bind pass_context: in the place of self, add 'ctx: Context' (from gearflow import Context)
    max_retries autoretry_for retry_on_error retry_when: write retries=Retry(4, on=OSError, backoff=10)
    default_retry_delay retry_backoff min_backoff: write retries=Retry(4, backoff=...), in seconds
    retry_backoff_max max_backoff retry_jitter: write retries=Retry(4, max_delay=..., jitter=...), in seconds
    time_limit job_timeout job_time_limit: write timeout=..., in seconds
    soft_time_limit: write timeout=..., in seconds; ctx.deadline says when the time is over
    countdown eta: write delay=..., in seconds, or at=...
    max_age expire ttl: write expires=..., in seconds
    queue queue_name: each task has its own queue; 'gearflow worker -f' selects the tasks of a worker
    task_name actor_name: write name=...
    ignore_result store_results: write keep=0 for a result that nobody asks for
    result_expires result_ttl: write keep=..., in seconds
    task_id job_id: the server names jobs; unique=... gives a job a key of yours
    rate_limit: write limits=[Rate(100, per="1m")] (from gearflow import Rate)
    max_concurrency concurrency max_instances: write limits=[Concurrency(20)], which gearflow has
    acks_late: leave it out; a job is always acknowledged when it has ended
    cron crontab: write schedule=Cron("0 3 * * *") (from gearflow import Cron)
    interval: write schedule=Every(minutes=5) (from gearflow import Every)
""")
"""Of ``@task`` and of calls."""


class Elsewhere:
    """An attribute that is missing, with a hint."""

    __slots__ = ("_name", "_remedy")

    def __init__(self, name: str, remedy: str) -> None:
        self._name = name
        self._remedy = remedy

    def __get__(self, owner: object, kind: type) -> NoReturn:
        raise AttributeError(f"{kind.__name__} has no {self._name!r}: {self._remedy}")


def teach(kind: type, names: Mapping[str, str]) -> None:
    """Add hints to a class, for the names that it does not have."""
    # Not with __getattr__, which makes every attribute that is there several times slower.
    for name, remedy in names.items():
        if not any(name in vars(base) for base in kind.__mro__):
            setattr(kind, name, Elsewhere(name, remedy))
