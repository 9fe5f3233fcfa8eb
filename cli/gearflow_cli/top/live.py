"""Looks at servers again and again, draws what there is, and carries out what keys ask for."""

import os
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import anyio
import anyio.abc

from gearflow.client import Client
from gearflow.client.admin import admin_of
from gearflow.client.operate import bulk, jobs, purge_dead, replay
from gearflow.errors import GearflowError
from gearflow.observe import (
    FleetView,
    ServerView,
    ServerWatch,
    ViewPart,
    cancel_job,
    pause_function,
    purge_function,
    quiet_worker,
)
from gearflow.protocol.jobs import JOBS, LIVE, JobFilter
from gearflow.quantities import counted
from gearflow_cli.top.columns import KnownJob, ListedWorker, Seen
from gearflow_cli.top.details import describe, title_of
from gearflow_cli.top.frame import frame, selected
from gearflow_cli.top.model import Choices, Opened, Question, TopPage, Verb
from gearflow_cli.top.terminal import FullScreen

_SHARE: Final = 5
"""The pause after a look is at least so many times as long as the look took. So servers with a great many
functions are asked less often."""

_SOON: Final = 1.0
"""Seconds to the second look, which brings the first rates."""

_ENOUGH: Final = 0.9
"""The part of the time between two looks from which on they are compared."""

_JOBS: Final = 200
_MOST_JOBS: Final = 1000
_PAGES: Final = 5
"""Pages of a list of jobs that are asked for in one look. A page may have few jobs if a filter finds few."""


class TopLive:
    """One run of ``gearflow top``. Owns what is shown.

    Args:
        client: Makes all calls.
        addresses: The servers.
        screen: The terminal.
        every: Seconds between two looks.
    """

    def __init__(self, client: Client, addresses: Sequence[str], screen: FullScreen, every: float) -> None:
        self._client = client
        self._addresses = list(addresses)
        self._watch = ServerWatch(self._addresses)
        self._screen = screen
        self._every = every
        self.choices = Choices()
        self._shown: Seen | None = None
        self._looks: deque[tuple[float, FleetView]] = deque()
        self._wake = anyio.Event()
        self._asked: object = None  # what the jobs that are shown were asked by
        self._tasks: anyio.abc.TaskGroup

    async def run(self) -> None:
        """Return when the person quits, or the terminal is gone."""
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._watch_signals)
            self._tasks.start_soon(self._watch_servers)
            self._draw()
            await self._read_keys()
            self._tasks.cancel_scope.cancel()

    def _draw(self) -> None:
        columns, rows = self._screen.size
        self._screen.show(frame(self.choices, self._shown, columns, rows))

    async def _watch_signals(self) -> None:
        kinds = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT, signal.SIGTERM, signal.SIGHUP)
        with anyio.open_signal_receiver(*kinds) as signals:
            async for kind in signals:
                match kind:
                    case signal.SIGTERM | signal.SIGHUP:
                        self._tasks.cancel_scope.cancel()
                        return
                    case signal.SIGTSTP:
                        self._screen.leave()
                        os.kill(os.getpid(), signal.SIGSTOP)
                        self._screen.enter()
                    case signal.SIGCONT:
                        self._screen.enter()
                    case _:
                        self._screen.forget()
                self._draw()

    # ------------------------------------------------------------------------------------------ looking

    async def _watch_servers(self) -> None:
        pause = _SOON
        while True:
            self._wake = wake = anyio.Event()
            pause = max(pause, _SHARE * await self._look())
            self._draw()
            with anyio.move_on_after(pause):
                await wake.wait()
            pause = self._every

    async def _look(self) -> float:
        """Look at the servers, and at what else is shown. Returns the seconds that servers took to answer."""
        choices = self.choices
        page, function = choices.page, choices.function
        parts: set[ViewPart] = {"metrics", "limits"}
        if page is TopPage.WORKERS:
            parts.add("workers")
        fleet = FleetView(tuple(await self._watch.look(self._client, parts)))
        asked = time.monotonic()
        before = self._before(asked)
        self._looks.append((time.monotonic(), fleet))
        known: list[KnownJob] = []
        more = False
        if page in (TopPage.JOBS, TopPage.DEAD):
            known, more = await self._list_jobs(fleet)
        if (page, function) != (choices.page, choices.function):  # the person has gone on
            known, more = [], False
            self._wake.set()
        self._shown = Seen(
            fleet,
            fleet.activity_since(before) if before is not None else None,
            time.time(),
            known,
            more,
            several=len(self._addresses) > 1,
        )
        if choices.opened is not None:
            choices.opened.subject = _as_now(choices.opened.subject, fleet)
            await self._describe(choices.opened)
        return self._watch.cost + time.monotonic() - asked

    def _before(self, now: float) -> FleetView | None:
        """The look to which the next one is compared. A key may ask for one at once, which tells no rates."""
        while len(self._looks) > 1 and now - self._looks[1][0] >= min(_SOON, self._every) * _ENOUGH:
            self._looks.popleft()
        return self._looks[0][1] if self._looks else None

    async def _list_jobs(self, fleet: FleetView) -> tuple[list[KnownJob], bool]:
        """The jobs of all servers, and whether there are more."""
        choices = self.choices
        is_dead = choices.page is TopPage.DEAD
        text = choices.listing.filter or None
        select = JobFilter(states=("dead",) if is_dead else LIVE, function=choices.function, text=text)
        wanted = min(max(_JOBS, choices.listing.index + _JOBS), _MOST_JOBS)
        known: list[KnownJob] = []
        more = False
        try:
            for view in self._with_jobs(fleet, is_dead=is_dead):
                found, is_cut = await (
                    self._jobs_of(view, select, wanted) if view.info is not None else self._handles_of(view)
                )
                known += found
                more = more or is_cut
        except (GearflowError, TimeoutError) as error:
            choices.say(str(error), is_error=True)
        return known, more

    @staticmethod
    def _with_jobs(fleet: FleetView, *, is_dead: bool) -> list[ServerView]:
        """The servers that are asked. All servers of a group have the same dead letters."""
        if is_dead:
            return list(fleet.stores)
        own = [view for view in fleet.distinct if view.info is not None]
        return [*own, *(view for view in fleet.distinct if view.kind == "gearmand")]

    async def _jobs_of(self, view: ServerView, select: JobFilter, wanted: int) -> tuple[list[KnownJob], bool]:
        if not view.has_function(JOBS):
            return [], False
        known: list[KnownJob] = []
        after = ""
        for _ in range(_PAGES):
            page = await jobs(
                self._client, select, after=after, limit=wanted - len(known), server=view.address
            )
            known += [KnownJob(view, each.job.handle, each.job, each.listed) for each in page.jobs]
            after = page.next
            if not after or len(known) >= wanted:
                break
        return known, bool(after)

    async def _handles_of(self, view: ServerView) -> tuple[list[KnownJob], bool]:
        """The jobs of C gearmand, of which it tells the handles."""
        text = self.choices.listing.filter
        if self.choices.function is not None:
            return [], False  # it does not tell whose they are
        handles = [
            row.handle.decode("utf-8", "backslashreplace")
            for row in await admin_of(self._client, view.address).jobs()
        ]
        found = [handle for handle in handles if text.lower() in handle.lower()]
        return [KnownJob(view, handle, None, "-") for handle in found[:_MOST_JOBS]], len(found) > _MOST_JOBS

    async def _describe(self, opened: Opened) -> None:
        try:
            opened.lines = await describe(self._client, opened.subject)
        except (GearflowError, TimeoutError) as error:
            opened.lines = [str(error)]

    # --------------------------------------------------------------------------------------------- keys

    async def _read_keys(self) -> None:
        while keys := await self._screen.keys():
            for key in keys:
                if not self._take(self.choices.press(key)):
                    return
            self._draw()

    def _take(self, verb: Verb) -> bool:
        """Do what a key asks for. False if that is the end."""
        choices = self.choices
        match verb:
            case "quit":
                return False
            case "redraw":
                self._screen.forget()
            case "look":
                self._look_elsewhere()
            case "open":
                self._open()
            case "confirmed":
                question, choices.question = choices.question, None
                if question is not None:
                    self._tasks.start_soon(self._carry_out, question.verb, question.subject)
            case "none":
                pass
            case _:
                if (subject := self._subject()) is not None:
                    self._ask_first(verb, subject)
        return True

    def _look_elsewhere(self) -> None:
        """Look now, because something else is to be shown. Jobs that do not belong to it are not."""
        choices = self.choices
        asked = choices.page, choices.function
        if choices.page in (TopPage.JOBS, TopPage.DEAD) and self._shown is not None and self._asked != asked:
            self._asked, self._shown = asked, replace(self._shown, jobs=())
        self._wake.set()

    def _subject(self) -> Any:
        """What an act is about."""
        if self.choices.opened is not None:
            return self.choices.opened.subject
        return selected(self.choices, self._shown) if self._shown is not None else None

    def _open(self) -> None:
        choices, subject = self.choices, self._subject()
        if subject is None:
            return
        if choices.page is TopPage.FUNCTIONS:
            choices.function, choices.page = subject.function, TopPage.JOBS
            self._take("look")
            return
        choices.opened = Opened(title_of(subject), subject)
        self._tasks.start_soon(self._show_opened, choices.opened)

    async def _show_opened(self, opened: Opened) -> None:
        await self._describe(opened)
        self._draw()

    # --------------------------------------------------------------------------------------------- acts

    def _ask_first(self, verb: Verb, subject: Any) -> None:
        """Carry out an act, after a question if it cannot be taken back."""
        if verb == "replay all":
            self._tasks.start_soon(self._ask_about_all)
        elif (text := self._question(verb, subject)) is not None:
            self.choices.question = Question(text, verb, subject)
        else:
            self._tasks.start_soon(self._carry_out, verb, subject)

    def _question(self, verb: Verb, subject: Any) -> str | None:
        match verb, subject:
            case "purge", KnownJob():
                return f"Purge dead letter {subject.handle}?"
            case "purge", _:
                number = sum(subject.waiting) + subject.delayed
                return f"Cancel the {counted(number, 'waiting job')} of {subject.function}?"
            case "cancel", _:
                return f"Cancel job {subject.handle}?"
            case _:
                return None

    async def _ask_about_all(self) -> None:
        """Count first, because the list may be cut off."""
        try:
            select, numbers = await self._count_dead()
        except (GearflowError, TimeoutError) as error:
            self.choices.say(str(error), is_error=True)
        else:
            of = f" of {select.function}" if select.function else ""
            text = f" with {select.text!r}" if select.text else ""
            what = f"{counted(sum(numbers.values()), 'dead letter')}{of}{text}"
            self.choices.question = Question(f"Replay {what}?", "replay all", (select, numbers))
        self._draw()

    async def _count_dead(self) -> tuple[JobFilter, dict[str, int]]:
        """The filter of the dead letters that are listed, and how many there are on each server."""
        choices = self.choices
        select = JobFilter(states=("dead",), function=choices.function, text=choices.listing.filter or None)
        assert self._shown is not None  # there is a dead letter
        numbers: dict[str, int] = {}
        for view in self._shown.fleet.stores:
            numbers[view.address] = (await bulk(self._client, "count", select, server=view.address)).matched
        return select, numbers

    async def _carry_out(self, verb: Verb, subject: Any) -> None:
        acts: dict[Verb, Callable[[Any], Awaitable[str]]] = {
            "pause": self._quiet if isinstance(subject, ListedWorker) else self._pause,
            "purge": self._purge_letter if isinstance(subject, KnownJob) else self._purge,
            "cancel": self._cancel,
            "replay": self._replay,
            "replay all": self._replay_all,
        }
        try:
            self.choices.say(await acts[verb](subject))
        except (GearflowError, TimeoutError) as error:
            self.choices.say(str(error), is_error=True)
        self._draw()
        self._wake.set()

    def _views(self) -> Sequence[ServerView]:
        return self._shown.fleet.distinct if self._shown is not None else ()

    async def _pause(self, function: Any) -> str:
        pauses = not function.paused
        done = await pause_function(self._client, self._views(), function.function, pauses)
        where = f" on {counted(len(done), 'server')}" if len(self._addresses) > 1 else ""
        waiting = counted(sum(done.values()), "job")
        return f"{'paused' if pauses else 'resumed'} {function.function}{where}; {waiting} waiting"

    async def _purge(self, function: Any) -> str:
        done = await purge_function(self._client, self._views(), function.function)
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

    async def _replay_all(self, counted_before: tuple[JobFilter, dict[str, int]]) -> str:
        select, numbers = counted_before
        done = left = 0
        for address, number in numbers.items():
            answer = await bulk(self._client, "replay", select, expected=number, server=address)
            done, left = done + answer.done, left + answer.left
        stay = f"; {left:,} stay, because other jobs have their uniques" if left else ""
        return f"replayed {counted(done, 'dead letter')}{stay}"


def _as_now(subject: Any, fleet: FleetView) -> Any:
    """A worker or a server as it is now, if it is still there."""
    found: Iterable[Any]
    match subject:
        case ServerView(address=address):
            found = (view for view in fleet.servers if view.address == address)
        case ListedWorker(server=server, worker=worker):
            found = (
                ListedWorker(view, each)
                for view in fleet.servers
                if view.address == server.address
                for each in view.workers
                if each.id and each.id == worker.id
            )
        case _:
            return subject
    return next(iter(found), subject)
