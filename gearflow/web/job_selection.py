"""The filter of the pages of jobs: as values of a form or a query, as a request, and in words."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast, get_args

from gearflow.protocol.jobs import ENDED, LIVE, JobFilter, ListedState
from gearflow.quantities import counted
from gearflow.web.guard import Refused

STATES: Final[tuple[ListedState, ...]] = get_args(ListedState)
"""The states by which jobs are listed."""

SPANS: Final = {
    "900": "15 minutes",
    "3600": "hour",
    "21600": "6 hours",
    "86400": "day",
    "604800": "week",
}
"""The times that can be chosen, in seconds, each with its name."""

_LONGEST: Final = 8192
"""Characters of a value. A function has no longer name."""

_NOUNS: Final[dict[str, tuple[str, str]]] = {
    "": ("job", "jobs"),
    "live": ("live job", "live jobs"),
    "running": ("running job", "running jobs"),
    "waiting": ("waiting job", "waiting jobs"),
    "delayed": ("delayed job", "delayed jobs"),
    "succeeded": ("succeeded job", "succeeded jobs"),
    "failed": ("failed job", "failed jobs"),
    "cancelled": ("cancelled job", "cancelled jobs"),
    "expired": ("expired job", "expired jobs"),
    "dead": ("dead letter", "dead letters"),
}


@dataclass(frozen=True, slots=True)
class Selection:
    """What a visitor wants to see. Empty values select everything. A frozen value."""

    state: str = ""
    """A state, or ``live`` for all jobs that have not ended."""

    function: str = ""
    text: str = ""
    """A part of the handle, the unique, the payload or the error."""

    error: str = ""
    """The type of an error."""

    within: str = ""
    """A time in seconds, one of ``SPANS``. Live jobs were submitted in it, others ended in it."""

    server: str = ""
    """The address of the only server that is asked."""

    @classmethod
    def read(cls, values: Mapping[str, str], server: str | None) -> "Selection":
        """Read the values of a query or a form.

        Args:
            values: The values.
            server: The server among them, which the caller has checked.

        Raises:
            Refused: A value makes no sense.
        """
        given = {name: values.get(name, "").strip() for name in ("state", "text", "error", "within")}
        given["function"] = values.get("function", "")
        for name, value in given.items():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise Refused(400, f"The {name} is not UTF-8, so no job can be selected by it.") from None
            if len(value) > _LONGEST:
                raise Refused(400, f"The {name} is too long.")
        if given["state"] not in ("", "live", *STATES):
            raise Refused(400, f"There is no state {given['state']!r}.")
        if given["within"] not in ("", *SPANS):
            raise Refused(400, f"{given['within']!r} is none of the times that can be chosen.")
        return cls(**given, server=server or "")

    @property
    def values(self) -> dict[str, str]:
        """The values for a query or a form, without those that are empty."""
        names = ("state", "function", "text", "error", "within", "server")
        return {name: value for name in names if (value := cast(str, getattr(self, name)))}

    @property
    def is_everything(self) -> bool:
        """Whether nothing but the server is selected."""
        return not any((self.state, self.function, self.text, self.error, self.within))

    @property
    def states(self) -> tuple[ListedState, ...]:
        """The states that are selected."""
        if not self.state:
            return (*LIVE, *ENDED)
        return LIVE if self.state == "live" else (cast(ListedState, self.state),)

    def filter(self, states: tuple[ListedState, ...]) -> JobFilter:
        """The same as a request, for some of the states."""
        return JobFilter(
            states=states,
            function=self.function or None,
            text=self.text or None,
            error=self.error or None,
            since=float(int(time.time() - float(self.within))) if self.within else None,
        )

    def in_words(self, number: int, state: str | None = None) -> str:
        """``3,000 dead letters of billing.charge with the error KeyError``."""
        noun, plural = _NOUNS[self.state if state is None else state]
        parts = [counted(number, noun, plural)]
        if self.function:
            parts.append(f"of {self.function}")
        if self.error:
            parts.append(f"with the error {self.error}")
        if self.text:
            parts.append(f"with “{self.text}” in them" if number != 1 else f"with “{self.text}” in it")
        if self.within:
            parts.append(f"of the last {SPANS[self.within]}")
        if self.server:
            parts.append(f"on {self.server}")
        return " ".join(parts)
