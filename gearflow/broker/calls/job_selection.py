"""A filter as the server uses it: what selects a job, and the text that is looked for in many at once.

Most jobs do not have the text. So the texts of many jobs are looked at as one, which takes a fraction of the
time that it takes to look at each. Case folding goes letter by letter, so nothing is missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gearflow.broker.job import JobState
from gearflow.broker.parser import Body
from gearflow.broker.storage import DamagedEntry, JobOutcome, JobRecord
from gearflow.protocol.jobs import ENDED, LIVE, JobFilter, ListedState

LETTERS: Final[frozenset[ListedState]] = frozenset({"dead", "expired"})
"""The states of dead letters."""

SEARCHED: Final = 1 << 16
"""Bytes of a payload or an error that are searched."""

_DIGITS: Final = b"0123456789"

_LISTED: Final[dict[JobState, ListedState]] = {
    JobState.DELAYED: "delayed",
    JobState.WAITING: "waiting",
    JobState.RUNNING: "running",
}

_ENDED: Final[dict[JobOutcome, ListedState]] = {
    JobOutcome.COMPLETED: "succeeded",
    JobOutcome.CANCELLED: "cancelled",
}


class JobSelection:
    """A filter as the server uses it."""

    def __init__(self, request: JobFilter) -> None:
        states = set(request.states or (*LIVE, *ENDED))
        self.function = request.function.encode() if request.function is not None else None
        self.handle = request.handle.encode() if request.handle is not None else None
        self.error = bare(request.error) if request.error is not None else None
        self.text = SoughtText(request.text or "")
        self.since, self.until = request.since, request.until
        self.live = tuple(state for state, listed in _LISTED.items() if listed in states)
        if request.error is not None:
            self.live = ()
        self.has_no_values = self.function is None and self.since is None and self.until is None
        self.ended = states.intersection(ENDED)
        self.only_letters = self.ended <= LETTERS
        self.outcomes = tuple(outcome for outcome in JobOutcome if self._may_be(outcome))

    def _may_be(self, outcome: JobOutcome) -> bool:
        """Whether jobs with that outcome may be selected."""
        if outcome in _ENDED:
            return self.error is None and _ENDED[outcome] in self.ended
        return bool(self.ended & {"failed", "dead"}) or (
            outcome is JobOutcome.EXPIRED and "expired" in self.ended
        )

    def has_time(self, time: float) -> bool:
        """Whether a time is within those that are selected."""
        return (self.since is None or self.since <= time) and (self.until is None or time < self.until)

    def has_state(self, record: JobRecord | DamagedEntry, *, dead: bool) -> ListedState | None:
        """The state by which an ended job is listed, if it is selected."""
        if dead:
            is_expired = isinstance(record, JobRecord) and record.outcome is JobOutcome.EXPIRED
            if is_expired and "expired" in self.ended:
                return "expired"
            return "dead" if "dead" in self.ended else None
        listed = _ENDED.get(record.outcome, "failed") if isinstance(record, JobRecord) else "failed"
        return listed if listed in self.ended else None


class SoughtText:
    """A text that is looked for in names, payloads and errors. Case does not matter. A frozen value."""

    def __init__(self, text: str) -> None:
        self._folded = text.casefold()
        self._bytes = self._folded.encode() if self._folded.isascii() else b""

    def __bool__(self) -> bool:
        return bool(self._folded)

    def is_in(self, body: Body | int) -> bool:
        """Whether it is in the beginning of a body."""
        return not isinstance(body, int) and self._is_in(beginning_of(body))

    def is_in_names(self, *names: bytes) -> bool:
        """Whether it is in one of these names, which have no NUL in them."""
        return "\0" not in self._folded and self._is_in(b"\0".join(names))

    def may_be_in(self, bodies: Sequence[bytes]) -> bool:
        """Whether it may be in one of these beginnings of bodies. If not, it is in none of them."""
        whole = b"\0".join(bodies)
        if whole.isascii():
            return self._is_in(whole)
        others = [body for body in bodies if not body.isascii()]
        if self._is_in(b"\0".join(others)):
            return True
        return bool(self._bytes) and self._is_in(b"\0".join(body for body in bodies if body.isascii()))

    def may_be_in_handle(self, prefix: bytes) -> bool:
        """Whether it may be in a handle, which is this prefix and a number. If not, it is in none."""
        if not self._bytes:
            return not prefix.isascii()
        prefix = prefix.lower()
        head = self._bytes.rstrip(_DIGITS)
        return self._bytes in prefix or prefix.rstrip(_DIGITS).endswith(head)

    def _is_in(self, begin: bytes) -> bool:
        if begin.isascii():
            return bool(self._bytes) and self._bytes in begin.lower()
        return self._folded in begin.decode(errors="replace").casefold()


def beginning_of(body: Body) -> bytes:
    """The part of a body that is searched."""
    return body if isinstance(body, bytes) and len(body) <= SEARCHED else bytes(body[:SEARCHED])


def bare(error: str) -> str:
    """The type of an error. Workers send those of Python without their module."""
    return error.removeprefix("builtins.")
