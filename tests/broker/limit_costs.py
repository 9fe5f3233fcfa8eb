"""Every kind of request about jobs with limits: what each costs. See ``costs``."""

import json
from collections.abc import Iterator
from functools import partial

from gearflow.broker import Session
from gearflow.broker.limiter import FunctionRules, LimitSpec, Rule
from gearflow.protocol import packets as p
from gearflow.protocol import server_calls as api
from tests.broker.costs import Kind, Shell, call, handles

ONE = LimitSpec("concurrency", 1)
ANY = LimitSpec("concurrency", 1_000_000)


def limit(shell: Shell, spec: LimitSpec, name: bytes = b"one") -> None:
    shell.turn(partial(shell.broker.core.limiter.set_limit, name, spec))


def use(shell: Shell, rules: FunctionRules | None) -> None:
    """Have the function use limits, or none."""
    function = shell.broker.functions.ensure(b"work")
    shell.turn(partial(shell.broker.core.limiter.set_rules, function, rules))


def keyed(*pointers: str, fair: str | None = None) -> FunctionRules:
    names = (b"one", b"two")
    return FunctionRules(tuple(map(Rule, names, pointers)), fair)


def submit(shell: Shell, count: int, keys: int, others: int = 1) -> None:
    """So many jobs with so many keys."""
    workloads = (json.dumps({"k": n % keys, "g": n % others}).encode() for n in range(count))
    shell.send(shell.connect(), *(p.SubmitJobBg(b"work", b"", workload) for workload in workloads))


def grab(shell: Shell, count: int) -> Session:
    """A worker that asks so often."""
    worker = shell.worker(b"work")
    shell.send(worker, *[p.GrabJob()] * count)
    return worker


def _runs(shell: Shell, n: int, spec: LimitSpec, rules: FunctionRules, keys: int) -> Iterator[None]:
    limit(shell, spec)
    use(shell, rules)
    submit(shell, n, keys, keys)
    worker = shell.worker(b"work")
    yield
    for handle in handles(n):
        shell.send(worker, p.GrabJob(), p.WorkComplete(handle, b""))


def _own_keys(shell: Shell, n: int) -> Iterator[None]:
    yield from _runs(shell, n, ONE, keyed("/k"), n)


def _one_key(shell: Shell, n: int) -> Iterator[None]:
    yield from _runs(shell, n, ONE, keyed("/k"), 1)


def _no_key(shell: Shell, n: int) -> Iterator[None]:
    yield from _runs(shell, n, ONE, FunctionRules((Rule(b"one"),)), 1)


def _groups(shell: Shell, n: int) -> Iterator[None]:
    yield from _runs(shell, n, ANY, FunctionRules((), "/g"), n)


def _full(shell: Shell, n: int, rules: FunctionRules) -> Iterator[None]:
    """Each key has a running job and a waiting one."""
    limit(shell, ONE)
    limit(shell, LimitSpec("concurrency", 2), b"two")
    use(shell, rules)
    submit(shell, 2 * n, n)
    worker = grab(shell, n)
    yield
    for handle in handles(n):
        shell.send(worker, p.WorkComplete(handle, b""), p.GrabJob())


def _full_keys(shell: Shell, n: int) -> Iterator[None]:
    yield from _full(shell, n, keyed("/k"))


def _two_keys(shell: Shell, n: int) -> Iterator[None]:
    """All wait for the second key. That moves them there from the first one, each once."""
    yield from _full(shell, n, keyed("/k", "/g"))


def _many_lines_of_one_bucket(shell: Shell, n: int) -> Iterator[None]:
    """Many groups wait for the only slot of one key."""
    limit(shell, ONE)
    use(shell, keyed("/g", fair="/k"))
    submit(shell, n, n)
    worker = shell.worker(b"work")
    yield
    for handle in handles(n):
        shell.send(worker, p.GrabJob(), p.WorkComplete(handle, b""))


def _rates(shell: Shell, n: int) -> Iterator[None]:
    limit(shell, LimitSpec("rate", 1, 1.0))
    use(shell, keyed("/k"))
    submit(shell, 2 * n, n)
    grab(shell, n)
    yield
    grab(shell, 1)
    shell.pass_time(2)
    grab(shell, n)
    shell.pass_time(9)


def _rules_change(shell: Shell, n: int) -> Iterator[None]:
    limit(shell, ONE)
    submit(shell, n, n)
    yield
    use(shell, keyed("/k"))
    use(shell, FunctionRules((Rule(b"one"),)))
    use(shell, FunctionRules((Rule(b"one"),), "/k"))
    use(shell, None)


def _limit_changes(shell: Shell, n: int) -> Iterator[None]:
    limit(shell, ONE)
    use(shell, keyed("/k"))
    submit(shell, 2 * n, n)
    grab(shell, n)
    yield
    limit(shell, LimitSpec("concurrency", 1, paused=True))
    limit(shell, ANY)


def _purge(shell: Shell, n: int) -> Iterator[None]:
    limit(shell, ONE)
    use(shell, keyed("/k"))
    submit(shell, 2 * n, n)
    yield
    shell.send(shell.connect(), call(api.PURGE, api.PurgeRequest(function="work")))


def _worker_leaves(shell: Shell, n: int) -> Iterator[None]:
    limit(shell, ONE)
    use(shell, keyed("/k"))
    submit(shell, 2 * n, n)
    worker = grab(shell, n)
    yield
    shell.leave(worker)


LIMIT_KINDS: dict[str, Kind] = {
    "jobs with limits: each a key of its own": Kind(_own_keys),
    "jobs with limits: one key": Kind(_one_key),
    "jobs with limits: no key": Kind(_no_key),
    "jobs with limits: fair groups": Kind(_groups),
    "jobs with limits: keys that are full": Kind(_full_keys),
    "jobs with limits: two keys": Kind(_two_keys),
    "jobs with limits: many lines of one bucket": Kind(_many_lines_of_one_bucket),
    "jobs with limits: rates": Kind(_rates),
    "jobs with limits: other rules": Kind(_rules_change, few=1),
    "jobs with limits: another limit": Kind(_limit_changes, few=1),
    "jobs with limits: purge": Kind(_purge, few=1),
    "jobs with limits: worker leaves": Kind(_worker_leaves, few=1),
}
