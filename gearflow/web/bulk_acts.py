"""Acts on all jobs that match a filter: the page that asks, with their number, and the act itself.

The page shows how many jobs match on each server. The form has these numbers, and a server on which more
match by then does nothing. So nobody acts on jobs that nobody has seen counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

from gearflow.quantities import counted
from gearflow.web import job_lists
from gearflow.web.guard import Refused
from gearflow.web.job_lists import BulkAct, BulkResult
from gearflow.web.job_selection import Selection
from gearflow.web.sections import Acted, Rendered
from gearflow.web.visit import Visit

EXPECTED: Final = "expected:"
"""Begins the name of the field with the number of a server."""

_SHOWN: Final = 5
"""Jobs that the page shows as examples."""


_EXAMPLES: Final = 0.03
"""Seconds in which these are looked for."""

_AGAIN: Final = 0.3
"""Seconds between two looks at a page whose number is not there yet."""


@dataclass(frozen=True, slots=True)
class _Words:
    verb: str
    done: str
    state: str
    path: str
    effect: str
    danger: bool


_WORDS: Final[Mapping[BulkAct, _Words]] = {
    "cancel": _Words(
        "Cancel",
        "Cancelled",
        "live",
        "/jobs",
        "Jobs that wait are gone at once. The workers of running jobs stop them. A cancelled job does not "
        "run again.",
        True,
    ),
    "replay": _Words(
        "Replay",
        "Replayed",
        "dead",
        "/dead",
        "Each runs again as if it had just been submitted, with its attempts counted from zero. If another "
        "job with the same unique waits or runs, the dead letter stays.",
        False,
    ),
    "purge": _Words(
        "Purge",
        "Purged",
        "dead",
        "/dead",
        "Their payloads and errors are gone then, and nobody can replay them.",
        True,
    ),
}


async def ask(visit: Visit, act: BulkAct, *, again: str = "") -> Rendered:
    """The page that asks, with the numbers of the jobs as they are now.

    Args:
        visit: The request.
        act: The act.
        again: Why it asks again.

    Raises:
        Refused: The visitor may not act.
    """
    if not visit.may_operate:
        raise Refused(403, "You may look at this dashboard, and not act.")
    given = visit.form if visit.request.method == "POST" else visit.query
    selection = _selection(visit, given)
    words, client = _WORDS[act], await visit.client()
    fleet = (await visit.sample()).fleet
    where = job_lists.places(fleet, selection, job_lists.states_for(act, selection))
    counted: BulkResult | None
    if visit.request.method == "POST":
        counted = await job_lists.count(client, where, selection)
    else:
        counted = await job_lists.count_soon(visit.sampler, where, selection)
    found = counted or BulkResult({}, {})
    examples = job_lists.ListSearch(visit.client, where, selection)
    if found.matched:
        await examples.go_on(_EXAMPLES)
    numbers = {server: each.matched for server, each in found.done.items() if each.matched}
    state = selection.state or words.state
    title = f"{words.verb} {selection.in_words(found.matched, state)}?" if found.matched else "Nothing to do"
    values = {
        "fleet": fleet,
        "act": act,
        "words": words,
        "selection": selection,
        "is_counting": counted is None,
        "what": selection.in_words(found.matched, state),
        "many": selection.in_words(2, state).partition(" ")[2],
        "numbers": numbers,
        "fields": selection.values | {EXPECTED + server: str(each) for server, each in numbers.items()},
        "matched": found.matched,
        "faults": found.faults,
        "examples": examples.listing.jobs[:_SHOWN],
        "again": again,
        "to": visit.url(words.path, act=act),
        "back": visit.url(words.path, **selection.values),
    }
    if counted is None:
        return Rendered("bulk.html", "Counting…", values, again=_AGAIN)
    return Rendered("bulk.html", title, values, again=inf)


async def do(visit: Visit, act: BulkAct) -> Acted | Rendered:
    """Do it. Asks again if the form has no numbers, or if more jobs match now on every server."""
    selection = _selection(visit, visit.form)
    expected = _expected(visit)
    if not expected:
        return await ask(visit, act)
    fleet = (await visit.sample()).fleet
    where = job_lists.places(fleet, selection, job_lists.states_for(act, selection))
    where = [place for place in where if place.address in expected]
    done = await job_lists.act_on_all(await visit.client(), where, act, selection, expected)
    if not done.done and done.faults:
        return await ask(visit, act, again="Nothing was done. " + _faults(done))
    words = _WORDS[act]
    return Acted(
        _sentence(words, selection, done), visit.url(words.path, **_after(selection)), ok=not done.faults
    )


def _selection(visit: Visit, values: Mapping[str, str]) -> Selection:
    selection = Selection.read(values, visit.server())
    if visit.hide_payloads and selection.text:  # the number of matches would show what is in payloads
        raise Refused(403, "This dashboard hides payloads, so it does not search for a text in them.")
    return selection


def _expected(visit: Visit) -> dict[str, int]:
    """The numbers in the form, by server."""
    expected: dict[str, int] = {}
    for name, value in visit.form.items():
        if name.startswith(EXPECTED):
            server = name.removeprefix(EXPECTED)
            if not (value.isascii() and value.isdigit() and len(value) < 16):
                raise Refused(400, "The number of jobs is not a number.")
            if server not in visit.sampler.addresses:
                raise Refused(400, f"The dashboard has no server {server}.")
            expected[server] = int(value)
    return expected


def _sentence(words: _Words, selection: Selection, done: BulkResult) -> str:
    text = f"{words.done} {selection.in_words(done.changed, selection.state or words.state)}."
    if done.left:
        verb = "stays" if done.left == 1 else "stay"
        text += f" {counted(done.left, 'job')} {verb} as {'it is' if done.left == 1 else 'they are'}."
    return f"{text} {_faults(done)}".strip()


def _faults(done: BulkResult) -> str:
    return " ".join(f"{server}: {fault}." for server, fault in done.faults.items())


def _after(selection: Selection) -> dict[str, str]:
    """The list that the visitor sees next. The error and the text are likely to match nothing now."""
    return {name: value for name, value in selection.values.items() if name in ("function", "server")}
