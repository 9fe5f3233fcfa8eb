"""What keys of ``gearflow top`` do to servers: the question before an act, the act, and what it has done."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gearflow.client import Client
from gearflow.client.operate import bulk, purge_dead, replay
from gearflow.observe import FleetView, ServerView, cancel_job, pause_function, purge_function, quiet_worker
from gearflow.protocol.jobs import JobFilter
from gearflow.quantities import counted
from gearflow_cli.top.columns import KnownJob, ListedWorker
from gearflow_cli.top.model import Verb


@dataclass(frozen=True, slots=True)
class CountedLetters:
    """Dead letters that were counted before they are replayed. A frozen value."""

    select: JobFilter
    numbers: dict[str, int]
    """By server. Nothing is done on a server on which more of them match by then."""

    @property
    def in_words(self) -> str:
        """Such as ``12 dead letters of send_invoice with 'KeyError'``."""
        of = f" of {self.select.function}" if self.select.function else ""
        text = f" with {self.select.text!r}" if self.select.text else ""
        return f"{counted(sum(self.numbers.values()), 'dead letter')}{of}{text}"


def question(verb: Verb, subject: Any) -> str | None:
    """The question before an act that cannot be taken back. None for all others."""
    match verb, subject:
        case "purge", KnownJob():
            return f"Purge dead letter {subject.handle}?"
        case "purge", _:
            number = sum(subject.waiting) + subject.delayed
            return f"Cancel the {counted(number, 'waiting job')} of {subject.function}?"
        case "cancel", _:
            return f"Cancel job {subject.handle}?"
        case "replay all", CountedLetters():
            return f"Replay {subject.in_words}?"
        case _:
            return None


class TopActs:
    """Carries out acts. Each returns a sentence, and raises as the calls of the client.

    Args:
        client: Makes all calls.
        several: Whether there are several servers.
    """

    def __init__(self, client: Client, *, several: bool) -> None:
        self._client = client
        self._several = several

    async def count_letters(self, select: JobFilter, fleet: FleetView) -> CountedLetters:
        """Count dead letters, because the list of them may be cut off."""
        numbers: dict[str, int] = {}
        for view in fleet.stores:
            numbers[view.address] = (await bulk(self._client, "count", select, server=view.address)).matched
        return CountedLetters(select, numbers)

    async def carry_out(self, verb: Verb, subject: Any, views: Sequence[ServerView]) -> str:
        """Do what a key asks for. Returns what was done.

        Args:
            verb: The act.
            subject: The function, worker, job or dead letters that it is about.
            views: The servers of a function.
        """
        acts: dict[Verb, Callable[[], Awaitable[str]]] = {
            "pause": lambda: (
                self._quiet(subject) if isinstance(subject, ListedWorker) else self._pause(subject, views)
            ),
            "purge": lambda: (
                self._purge_letter(subject) if isinstance(subject, KnownJob) else self._purge(subject, views)
            ),
            "cancel": lambda: self._cancel(subject),
            "replay": lambda: self._replay(subject),
            "replay all": lambda: self._replay_all(subject),
        }
        return await acts[verb]()

    async def _pause(self, function: Any, views: Sequence[ServerView]) -> str:
        pauses = not function.paused
        done = await pause_function(self._client, views, function.function, pauses)
        where = f" on {counted(len(done), 'server')}" if self._several else ""
        waiting = counted(sum(done.values()), "job")
        return f"{'paused' if pauses else 'resumed'} {function.function}{where}; {waiting} waiting"

    async def _purge(self, function: Any, views: Sequence[ServerView]) -> str:
        done = await purge_function(self._client, views, function.function)
        return f"cancelled {counted(sum(done.values()), 'job')} of {function.function}"

    async def _quiet(self, each: ListedWorker) -> str:
        quiets = not each.worker.quiet
        done = await quiet_worker(self._client, each.server, each.worker.id, quiets)
        if not quiets:
            return f"worker {each.worker.id} gets jobs again"
        runs = f", and ends {counted(done.running, 'job')}" if done.running else ""
        return f"worker {each.worker.id} gets no more jobs{runs}"

    async def _cancel(self, each: KnownJob) -> str:
        if await cancel_job(self._client, each.server, each.handle):
            return f"cancelled {each.handle}"
        return f"{each.handle} cannot be cancelled: it has ended, or it runs on C gearmand"

    async def _replay(self, each: KnownJob) -> str:
        await replay(self._client, each.handle, server=each.server.address)
        return f"replayed {each.handle}"

    async def _purge_letter(self, each: KnownJob) -> str:
        await purge_dead(self._client, each.handle, server=each.server.address)
        return f"purged {each.handle}"

    async def _replay_all(self, letters: CountedLetters) -> str:
        done = left = 0
        for address, number in letters.numbers.items():
            answer = await bulk(self._client, "replay", letters.select, expected=number, server=address)
            done, left = done + answer.done, left + answer.left
        stay = f"; {left:,} stay, because other jobs have their uniques" if left else ""
        return f"replayed {counted(done, 'dead letter')}{stay}"
