"""What users of Celery, Dramatiq, taskiq and RQ try first, and what that is called here.

It is looked at only when something is not there anyway. Type checkers see nothing of it: to them these names
are what they are, misspelt.
"""

from collections.abc import Mapping
from typing import Final, NoReturn

VERBS: Final = {
    **dict.fromkeys(
        ("delay", "send", "kiq", "enqueue", "defer"),
        "put it on the queue with .background(...), in async code with 'await task.abackground(...)'",
    ),
    **dict.fromkeys(
        ("apply_async", "send_with_options", "kicker"),
        "write .options(delay=..., priority=...).background(...), with the arguments as in a plain call",
    ),
    **dict.fromkeys(
        ("s", "si", "signature", "subtask", "message"),
        "calls are not values here: call one task after the other, or write .map(items).then(task)",
    ),
    "chunks": "write .map(items), whose window=... bounds the jobs in flight",
    "starmap": "write .map(tuples), of a task whose only parameter is a tuple: 'def f(p: tuple[int, int])'",
    "apply": "a plain call runs it here",
    "retry": "write 'raise TryAgain(after=30)' (from gearflow import TryAgain), or @task(retries=...)",
    "request": "the first parameter 'ctx: Context' (from gearflow import Context) has what is to be known",
    "update_state": "write ctx.progress(done, total), with the first parameter 'ctx: Context'",
    "AsyncResult": "write .ref(handle)",
}
"""Of tasks."""

RESULTS: Final = {
    **dict.fromkeys(
        ("get", "wait", "wait_result"),
        "write .result(timeout=...); in async code a job is awaited, and a Ref has .aresult(...)",
    ),
    "id": "write .handle",
    **dict.fromkeys(("state", "ready", "successful", "failed"), "write .status()"),
    "revoke": "write .cancel()",
}
"""Of what calls return."""

RUNS: Final = {
    "retry": VERBS["retry"],
    "request": "write ctx.handle, ctx.function, ctx.attempt or ctx.deadline",
    "retries": "write ctx.attempt, which counts the first run, too",
    **dict.fromkeys(("id", "task_id", "job_id", "message_id"), "write ctx.handle"),
    **dict.fromkeys(("update_state", "set_progress"), "write ctx.progress(done, total), or ctx.warn(text)"),
    "is_aborted": "write ctx.cancelled",
}
"""Of a task's ``Context``."""

_CONTEXT: Final = "give the function a first parameter 'ctx: Context' (from gearflow import Context)"

OPTIONS: Final = {
    **dict.fromkeys(("bind", "pass_context"), f"in the place of self, {_CONTEXT}"),
    **dict.fromkeys(
        ("max_retries", "autoretry_for", "default_retry_delay", "retry_on_error", "retry_when"),
        "write retries=Retry(4, on=OSError, backoff=10), whose number counts the first run, too",
    ),
    **dict.fromkeys(
        ("retry_backoff", "retry_backoff_max", "retry_jitter", "min_backoff", "max_backoff"),
        "write retries=Retry(4, backoff=..., max_delay=..., jitter=...), in seconds",
    ),
    **dict.fromkeys(("time_limit", "job_timeout", "job_time_limit"), "write timeout=..., in seconds"),
    "soft_time_limit": "write timeout=..., in seconds; ctx.deadline says when the time is over",
    **dict.fromkeys(("countdown", "eta"), "write delay=..., in seconds, or at=..."),
    **dict.fromkeys(("max_age", "expire", "ttl"), "write expires=..., in seconds"),
    **dict.fromkeys(
        ("queue", "queue_name"), "each task is a queue of its own; 'gearflow worker -f' says who serves it"
    ),
    **dict.fromkeys(("task_name", "actor_name"), "write name=..."),
    **dict.fromkeys(("ignore_result", "store_results"), "write keep=0 for a result that nobody asks for"),
    **dict.fromkeys(("result_expires", "result_ttl"), "write keep=..., in seconds"),
    **dict.fromkeys(("task_id", "job_id"), "jobs are named by the server; unique=... gives a key of yours"),
    "rate_limit": "there is no such limit; a worker with -c 1 runs one at a time",
    "acks_late": "leave it out: a job is always acknowledged when it has ended",
}
"""Of ``@task`` and of calls, together."""


class Elsewhere:
    """An attribute that is not there, and says what is."""

    __slots__ = ("_name", "_remedy")

    def __init__(self, name: str, remedy: str) -> None:
        self._name = name
        self._remedy = remedy

    def __get__(self, owner: object, kind: type) -> NoReturn:
        raise AttributeError(f"{kind.__name__} has no {self._name!r}: {self._remedy}")


def teach(kind: type, names: Mapping[str, str]) -> None:
    """Have attributes that a class has not got say what to write instead."""
    # Not by __getattr__: with it every attribute that is there would take several times as long.
    for name, remedy in names.items():
        if not hasattr(kind, name):
            setattr(kind, name, Elsewhere(name, remedy))
