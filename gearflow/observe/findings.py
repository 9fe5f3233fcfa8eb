"""What is wrong with servers, how bad that is, and what helps. Pure: checkups in, findings out."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from ipaddress import ip_address
from shlex import quote
from typing import Final, Literal, TypeAlias

from gearflow.observe.checkup import SAMPLE, Checkup
from gearflow.protocol.histograms import percentile
from gearflow.protocol.metrics import FunctionMetrics, StoreState
from gearflow.quantities import counted, duration, size

Severity: TypeAlias = Literal["error", "warning"]
"""``error``: jobs do not run, or may be lost. ``warning``: it works, and somebody should look."""

CheckName: TypeAlias = Literal[
    "reach",
    "answers",
    "kind",
    "version",
    "promises",
    "round trip",
    "clock",
    "tls",
    "disk",
    "store",
    "database",
    "replication",
    "functions",
    "limits",
    "workers",
    "retries",
    "results",
    "payloads",
    "schedules",
    "rights",
]
"""What was looked at. The how-to about the doctor says when each finds something."""

SLOW: Final = 0.1
"""Seconds of a round trip from which on calls suffer."""

OFF: Final = 1.0
"""Seconds of a wrong clock from which on delays, schedules and expiries are off."""

FAR_OFF: Final = 60.0
"""Seconds of a wrong clock from which on they are wrong."""

DAY: Final = 86_400.0
EXPIRES_SOON: Final = 30 * DAY
EXPIRES_NOW: Final = 3 * DAY

LITTLE_ROOM: Final = 1 << 30
NO_ROOM: Final = 100 << 20
LITTLE_SHARE: Final = 0.05

SLOW_COMMIT: Final = 0.25
"""Seconds within which 99 of 100 commits of a healthy disk are done."""

_STORE_FAILS: Final = "gearflow:store: "
"""Before the reason why a server cannot answer a call, if it is its store."""

_REPAIR_DATABASE: Final = "repair the database, or the network to it. The server then goes on by itself"

UNSERVED: Final = 300.0
"""Seconds after which jobs that no worker can take are an error."""

BEHIND: Final = 60.0
"""Seconds that a job waits for a busy worker before that is worth a warning."""

MANY: Final = 100
"""Kept results, or payloads, from which on their sizes say something."""

LARGE: Final = 1 << 20
"""Bytes of an average payload that is better kept elsewhere."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong. A frozen value."""

    severity: Severity
    """How bad it is."""

    check: CheckName
    """What was looked at."""

    server: str
    """The server that it is about."""

    text: str
    """What is wrong."""

    remedy: str
    """What helps."""

    function: str = ""
    """The function that it is about, if it is about one."""


def findings_of(
    checkups: Sequence[Checkup], differing: Mapping[str, Sequence[str]] | None = None
) -> list[Finding]:
    """Everything that is wrong with servers, errors first.

    Args:
        checkups: The servers.
        differing: By server, the functions whose workers declare other limits than the server has.
    """
    found = [*_of_all(checkups)]
    for server, functions in (differing or {}).items():
        for name in functions:
            text = f"a worker declares limits of {name} that the server does not have, or has otherwise"
            remedy = "run: gearflow limit apply MODULE, with the module of its tasks"
            found.append(Finding("warning", "limits", server, text, remedy, name))
    fetched = _fetched(checkups)
    for checkup in checkups:
        found += _of_one(checkup)
        found += _results(checkup, fetched)
    return sorted(found, key=lambda finding: finding.severity != "error")


def _of_all(checkups: Sequence[Checkup]) -> Iterator[Finding]:
    """What shows only when servers are compared with each other, and with this program."""
    views = [checkup.view for checkup in checkups if checkup.view.answers]
    kinds = {view.kind for view in views}
    if len(kinds) > 1:
        for view in views:
            if view.kind != "gearflow":
                text = f"this is {view.version or 'another server'}, and others are gearflow's own"
                remedy = "run gearflow server there as well, as calls with options fail on other servers"
                yield Finding("warning", "kind", view.address, text, remedy)
    own = f"gearflow-{version('gearflow')}"
    for view in views:
        if view.kind == "gearflow" and view.version != own:
            text = f"it runs {view.version}, and this is {own}"
            yield Finding("warning", "version", view.address, text, "bring all programs to one version")


_LIAR: Final = (
    "find out what listens at this address: gearflow's server gives no such answer, so it may be another "
    "program, or a version that is far from the one here"
)


def _of_one(checkup: Checkup) -> Iterator[Finding]:
    view = checkup.view
    for reason in (*view.malformed, *checkup.malformed):
        yield Finding("error", "answers", view.address, f"it answers what it should not: {reason}", _LIAR)
    if not view.answers:
        if not view.malformed:
            remedy = "start it, or correct the address, TLS and token with which it is reached"
            yield Finding("error", "reach", view.address, f"it does not answer: {view.error}", remedy)
        return
    if checkup.silent:
        remedy = "look at its log, and at the load of its machine; start it again if it hangs"
        yield Finding("error", "reach", view.address, "it has stopped answering", remedy)
    for part, reason in view.faults.items():
        if reason in view.malformed:
            continue
        if reason.startswith(_STORE_FAILS) and view.info is not None and view.info.store == "postgres":
            if view.info.closed is None:
                cause = reason.removeprefix(_STORE_FAILS)
                text = f"it cannot use its database, so it accepts no background jobs: {cause}"
                yield Finding("error", "store", view.address, text, _REPAIR_DATABASE)
            continue
        remedy = "use a token with the right view" if "needs the right" in reason else "look into its log"
        yield Finding("warning", "rights", view.address, f"its {part} cannot be seen: {reason}", remedy)
    yield from _connection(checkup)
    yield from _store(checkup)
    yield from _group(checkup)
    for function in view.functions:
        yield from _function(checkup, function)
    yield from _workers(checkup)
    yield from _sizes(checkup)
    for schedule in view.schedules or ():
        if schedule.fault:
            text = f"the schedule {schedule.schedule.name} makes no jobs: {schedule.fault}"
            remedy = "correct it, or install what the server lacks"
            yield Finding("error", "schedules", view.address, text, remedy, schedule.schedule.function)


def _connection(checkup: Checkup) -> Iterator[Finding]:
    view = checkup.view
    if view.round_trip is not None and view.round_trip > SLOW:
        text = f"a question and its answer take {duration(view.round_trip)}"
        remedy = "look at the network and at the load of its machine"
        yield Finding("warning", "round trip", view.address, text, remedy)
    doubt = (view.round_trip or 0.0) / 2
    if view.clock is not None and abs(view.clock) > OFF + doubt:
        severity: Severity = "error" if abs(view.clock) > FAR_OFF else "warning"
        which = "ahead of" if view.clock > 0 else "behind"
        text = f"its clock is {duration(abs(view.clock))} {which} the clock here"
        yield Finding(
            severity, "clock", view.address, text, "synchronise both clocks, for example with chrony"
        )
    if checkup.certificate is not None:
        left = checkup.certificate - time.time()
        if left < EXPIRES_SOON:
            text = f"its certificate {f'expires in {duration(left)}' if left > 0 else 'has expired'}"
            remedy = "renew it, and send HUP to the server"
            yield Finding("error" if left < EXPIRES_NOW else "warning", "tls", view.address, text, remedy)
    elif not checkup.encrypted and not _is_local(view.address):
        text = "payloads, results and tokens travel unencrypted"
        remedy = "give the server --tls-cert, or let it listen on 127.0.0.1 only"
        yield Finding("warning", "tls", view.address, text, remedy)


def _is_local(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _store(checkup: Checkup) -> Iterator[Finding]:
    view, info, metrics = checkup.view, checkup.view.info, checkup.view.metrics
    if info is not None and info.closed is not None:
        text = f"it accepts no background jobs: {info.closed.reason}"
        remedy = f"repair its disk, then run: gearflow server reopen -s {view.address}"
        if info.store == "postgres":
            remedy = _REPAIR_DATABASE
        yield Finding("error", "store", view.address, text, remedy)
    if info is not None and not info.durable:
        text = "jobs live in memory and are lost when it ends"
        yield Finding("warning", "promises", view.address, text, "start it with --data DIR or --postgres")
    if metrics is None or metrics.store is None:
        return
    store = metrics.store
    if store.sync == "off":
        text = "with --sync off the death of the machine may damage the file"
        yield Finding("warning", "promises", view.address, text, "use --sync batch or always")
    if store.damaged:
        text = f"jobs or results were found damaged: {store.damaged}"
        remedy = "check the disk; see gearflow dead list and gearflow server --recover"
        yield Finding("error", "store", view.address, text, remedy)
    if (severity := shortage(store)) is not None:
        text = f"its disk has {size(store.free or 0)} left of {size(store.room or 0)}"
        remedy = "make room, lower --keep and --keep-dead, or move the folder of --data"
        yield Finding(severity, "disk", view.address, text, remedy)
    slow = percentile(metrics.commits, 0.99)
    if slow is not None and slow > SLOW_COMMIT and sum(metrics.commits.counts) >= MANY:
        text = f"one of a hundred commits takes {duration(slow)} or longer"
        yield Finding(
            "warning", "store", view.address, text, "give its store a faster disk, or use --sync batch"
        )


def shortage(store: StoreState) -> Severity | None:
    """How bad it is that the disk of a server is nearly full. None if it has room."""
    if store.free is None or not store.room:
        return None
    if store.free < NO_ROOM:
        return "error"
    return "warning" if store.free < LITTLE_ROOM or store.free < LITTLE_SHARE * store.room else None


def _group(checkup: Checkup) -> Iterator[Finding]:
    view, group = checkup.view, checkup.view.group
    if group is None:
        return
    if group.oldest_snapshot is not None and group.oldest_snapshot > 3600:
        text = f"a transaction of its database has lasted for {duration(group.oldest_snapshot)}"
        remedy = "end that transaction: as long as it lasts, a vacuum removes nothing"
        yield Finding("warning", "database", view.address, text, remedy)
    if group.dead_rows > max(100_000, 2 * group.jobs):
        text = f"its tables have {group.dead_rows:,} dead rows"
        yield Finding(
            "warning", "database", view.address, text, "let autovacuum run more often on its schema"
        )
    for standby in group.standbys:
        if standby.state != "streaming" or (standby.lag or 0.0) > BEHIND:
            state, lag = standby.state or "away", duration(standby.lag or 0.0)
            text = f"the standby {standby.name} is {state}, and {lag} behind"
            yield Finding("warning", "replication", view.address, text, "look at the log of the standby")


def _function(checkup: Checkup, function: FunctionMetrics) -> Iterator[Finding]:
    view, name = checkup.view, function.function
    waiting = sum(function.waiting)
    why = view.waits_for(function)
    jobs = f"1 job of {name} waits" if waiting == 1 else f"{waiting:,} jobs of {name} wait"
    age = function.oldest or 0.0
    if waiting and function.paused:
        text = f"{jobs}, and it is paused"
        remedy = f"when that is over, run: gearflow resume {quote(name)}"
        yield Finding("warning", "functions", view.address, text, remedy, name)
    elif waiting and not function.workers:
        text = f"{jobs}, and no worker offers it"
        severity: Severity = "error" if age > UNSERVED else "warning"
        remedy = f"start a worker for it, or run: gearflow purge {quote(name)}"
        yield Finding(severity, "functions", view.address, text, remedy, name)
    elif waiting and why.endswith("paused"):
        text = f"{jobs}, and its limit is paused"
        remedy = f"see gearflow limit list -f {quote(name)}, then run gearflow limit resume"
        yield Finding("warning", "limits", view.address, text, remedy, name)
    elif waiting and not why and view.counted and age > BEHIND and not function.free:
        text = f"the oldest job of {name} has waited for {duration(age)}, and all workers are busy"
        remedy = "start more workers, or give them more slots with --concurrency"
        yield Finding("warning", "functions", view.address, text, remedy, name)
    if function.dead and not function.retried and name not in checkup.retried:
        one = function.dead == 1
        jobs = (
            f"1 job of {name} became a dead letter"
            if one
            else f"{function.dead:,} jobs of {name} became dead letters"
        )
        text = f"{jobs}, and no job of it was run again after a failure"
        remedy = f"give it retries: @task(retries=3), or gearflow policy set {quote(name)} --retries 3"
        yield Finding("warning", "retries", view.address, text, remedy, name)


def _workers(checkup: Checkup) -> Iterator[Finding]:
    view = checkup.view
    for name, count in Counter(checkup.idle).items():
        connections = "a connection" if count == 1 else f"{count} connections"
        text = f"{name} has {connections} and offers no function"
        yield Finding("warning", "workers", view.address, text, "look into its log, and start it again")
    for worker in view.workers:
        for function, count in worker.overdue.items():
            runs = counted(count, "overdue run")
            text = f"{worker.client_id} has {runs} of {function}, which a thread cannot stop"
            remedy = "give the task executor='process' or an own timeout, and start the worker again"
            yield Finding("warning", "workers", view.address, text, remedy, function)


def _fetched(checkups: Sequence[Checkup]) -> Counter[tuple[str, str]]:
    """How often ends of jobs were fetched, by store and function, and by store alone.

    Each server of a group answers for the jobs of all.
    """
    counts = Counter[tuple[str, str]]()
    for view in (checkup.view for checkup in checkups):
        store = view.store_name
        counts[store, ""] += view.metrics.fetched if view.metrics is not None else 0
        for function in view.functions:
            counts[store, function.function] += function.fetched
    return counts


def _results(checkup: Checkup, fetched: Mapping[tuple[str, str], int]) -> Iterator[Finding]:
    view = checkup.view
    if view.metrics is None:
        return
    store = view.store_name
    more = " or more" if sum(map(len, checkup.results.values())) >= SAMPLE else ""
    for name, sizes in checkup.results.items():
        known = (store, name) if (store, name) in fetched else (store, "")
        if len(sizes) >= MANY and not fetched[known]:
            kept = f"{len(sizes):,}{more} results of {name} are kept ({size(sum(sizes))})"
            text = f"{kept}, and none was fetched since the server started"
            remedy = f"keep none: @task(keep=0), or gearflow policy set {quote(name)} --keep 0"
            yield Finding("warning", "results", view.address, text, remedy, name)


def _sizes(checkup: Checkup) -> Iterator[Finding]:
    view = checkup.view
    for name, sizes in checkup.payloads.items():
        if len(sizes) < MANY:
            continue
        half = len(sizes) // 2
        older, newer = sum(sizes[:half]) / half, sum(sizes[half:]) / (len(sizes) - half)
        remedy = "send a reference to the data, such as a key or a path, and not the data itself"
        if newer > 2 * older and newer > 16_384:
            text = f"the payloads of {name} grow: from {size(older)} to {size(newer)} on average"
            yield Finding("warning", "payloads", view.address, text, remedy, name)
        elif newer > LARGE:
            text = f"the payloads of {name} are large: {size(newer)} on average"
            yield Finding("warning", "payloads", view.address, text, remedy, name)
